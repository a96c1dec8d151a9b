package rootfs

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// loader finds shared libraries as ld.so does. It works on the host, to learn
// what to copy, and on the planned root, to prove that it will be found.
type loader struct {
	// locate maps a path as the loader would open it to the host file with
	// its content; ok is false if there is no such file.
	locate  func(path string) (host string, ok bool)
	library []string // LD_LIBRARY_PATH
	dirs    []string // ld.so.conf and built-in directories
	cache   map[string]*elfObject
}

// hostLoader searches as the host's ld.so does for objects like program.
func hostLoader(program *elfObject) (*loader, error) {
	configured, err := readLoaderConfig("/etc/ld.so.conf", 0)
	if err != nil {
		return nil, err
	}
	return &loader{
		locate: func(path string) (string, bool) {
			info, err := os.Stat(path)
			return path, err == nil && info.Mode().IsRegular()
		},
		library: filepath.SplitList(os.Getenv("LD_LIBRARY_PATH")),
		dirs:    append(configured, defaultDirs(program)...),
		cache:   map[string]*elfObject{},
	}, nil
}

// rootLoader searches as ld.so does inside the planned root, which has neither
// an ld.so.cache nor an environment: only dir and the built-in directories.
func rootLoader(t *tree, program *elfObject, dir string) *loader {
	return &loader{
		locate: func(path string) (string, bool) {
			e, ok := t.resolve(path)
			if !ok || e.kind != typeFile || e.source == "" {
				return "", false
			}
			return e.source, true
		},
		dirs:  append([]string{dir}, defaultDirs(program)...),
		cache: map[string]*elfObject{},
	}
}

// defaultDirs are the directories that loaders have built in: glibc's on
// Debian, on others, and musl's.
func defaultDirs(program *elfObject) []string {
	dirs := []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib"}
	if program.interp != "" && strings.Contains(path.Base(program.interp), "musl") {
		return []string{"/lib", "/usr/local/lib", "/usr/lib"}
	}
	if triplet := program.triplet(); triplet != "" {
		dirs = append([]string{"/lib/" + triplet, "/usr/lib/" + triplet}, dirs...)
	}
	return dirs
}

// maxIncludes bounds the nesting of ld.so.conf files.
const maxIncludes = 8

// readLoaderConfig returns the directories that an ld.so.conf names, those of
// the files it includes at their place. A missing file names none (musl).
func readLoaderConfig(name string, depth int) ([]string, error) {
	if depth > maxIncludes {
		return nil, fmt.Errorf("reading %s: includes nested deeper than %d", name, maxIncludes)
	}
	file, err := os.Open(name)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading loader configuration: %w", err)
	}
	defer file.Close()
	var dirs []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t,:", r) })
		switch {
		case len(fields) == 0 || fields[0] == "hwcap":
		case fields[0] == "include":
			for _, pattern := range fields[1:] {
				included, err := readIncluded(name, pattern, depth)
				if err != nil {
					return nil, err
				}
				dirs = append(dirs, included...)
			}
		default:
			dirs = append(dirs, fields...)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading loader configuration %s: %w", name, err)
	}
	return dirs, nil
}

func readIncluded(from, pattern string, depth int) ([]string, error) {
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(filepath.Dir(from), pattern)
	}
	names, err := filepath.Glob(pattern)
	if err != nil {
		return nil, fmt.Errorf("reading loader configuration %s: include %s: %w", from, pattern, err)
	}
	var dirs []string
	for _, name := range names {
		more, err := readLoaderConfig(name, depth+1)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, more...)
	}
	return dirs, nil
}

// find returns the library that the last object of chain gets for a
// DT_NEEDED name: its path as opened, and the host file. chain begins with
// the program and holds the objects that loaded one another.
func (l *loader) find(name string, chain []*elfObject) (opened, host string, ok bool) {
	if strings.Contains(name, "/") {
		host, ok := l.matching(name, chain)
		return name, host, ok
	}
	for _, dir := range l.searchPath(chain) {
		opened := dir + "/" + name // not cleaned: ".." after a link is not lexical
		if host, ok := l.matching(opened, chain); ok {
			return opened, host, true
		}
	}
	return "", "", false
}

// searchPath is the order of ld.so(8): DT_RPATH of the object and of those
// that loaded it, unless it has DT_RUNPATH; LD_LIBRARY_PATH; DT_RUNPATH; the
// configured and built-in directories.
func (l *loader) searchPath(chain []*elfObject) []string {
	var dirs []string
	object := chain[len(chain)-1]
	if len(object.runpath) == 0 {
		for _, o := range slices.Backward(chain) {
			dirs = append(dirs, o.rpath...)
		}
	}
	return slices.Concat(dirs, l.library, object.runpath, l.dirs)
}

// matching locates a file that is an object for the same machine as the
// program; the loader passes over all others (32-bit libraries, scripts).
func (l *loader) matching(opened string, chain []*elfObject) (string, bool) {
	host, ok := l.locate(opened)
	if !ok {
		return "", false
	}
	if valid, err := isELF(host); err != nil || !valid {
		return "", false
	}
	o, valid, err := l.read(host, opened)
	if err != nil || !valid {
		return "", false
	}
	return host, o.class == chain[0].class && o.machine == chain[0].machine
}

// read is readELF, remembered.
func (l *loader) read(host, opened string) (*elfObject, bool, error) {
	if o, ok := l.cache[opened]; ok {
		return o, o != nil, nil
	}
	o, ok, err := readELF(host, opened)
	if err == nil {
		l.cache[opened] = o
	}
	return o, ok, err
}
