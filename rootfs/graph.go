package rootfs

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/psi-runtime/psi/pkg/modules"
)

//go:embed scripts/imports.py
var importsScript string

// agentPackage is the name under which the agent's modules import one another.
const agentPackage = "_psi"

// addGraph plans the module graph of the root: who imports whom, in which files.
func (b *builder) addGraph(ctx context.Context) error {
	g := &modules.Graph{
		Library: b.python.stdlibPath(), CacheTag: b.python.CacheTag, Program: b.python.executablePath(),
		Modules: b.modules(), Needs: b.needs,
	}
	found, err := b.readImports(ctx, g.Modules)
	if err != nil {
		return err
	}
	for _, f := range found {
		m := g.Modules[f.module]
		m.Imports, m.Later, m.Open = resolveNames(g.Modules, f.module, f.imports), resolveNames(g.Modules, f.module, f.later), f.open
		g.Modules[f.module] = m
	}
	for name, m := range g.Modules {
		if !isExtension(m.File) {
			continue
		}
		if m.Later, err = b.namesIn(g.Modules, name, m); err != nil {
			return err
		}
		m.Open = strings.Contains(name, ".")
		g.Modules[name] = m
	}
	addUnseen(g.Modules)
	g.Base = b.base(g)
	data, err := g.Encode()
	if err != nil {
		return err
	}
	b.tree.bytes(modules.File, data)
	return nil
}

// modules lists the modules of the tree by name, each with its file, and those that are
// part of the interpreter.
func (b *builder) modules() map[string]modules.Module {
	all := map[string]modules.Module{}
	for _, name := range b.python.Builtin {
		all[name] = modules.Module{}
	}
	lib := b.python.stdlibPath()
	// As on sys.path: what comes first shadows the rest.
	for _, place := range []struct{ dir, prefix string }{
		{lib, ""}, {lib + "/lib-dynload", ""}, {b.python.sitePath(), ""}, {agentDir, agentPackage + "."},
	} {
		for _, e := range b.tree.sorted() {
			rel, below := strings.CutPrefix(e.path, place.dir+"/")
			if !below || e.kind == typeDir || e.path == agentDir+"/entry.py" {
				continue
			}
			name, ok := moduleName(rel)
			name = strings.TrimSuffix(place.prefix+name, ".")
			if old, taken := all[name]; ok && (!taken || isExtension(e.path) && path.Dir(old.File) == path.Dir(e.path)) {
				all[name] = modules.Module{File: e.path}
			}
		}
	}
	return all
}

// moduleName is the name of the module in a file below a directory of sys.path.
func moduleName(rel string) (string, bool) {
	if !strings.HasSuffix(rel, ".py") && !isExtension(rel) {
		return "", false
	}
	dir, file := path.Split(rel)
	parts := strings.Split(strings.TrimSuffix(dir, "/"), "/")
	if dir == "" {
		parts = nil
	}
	for _, part := range parts {
		if strings.ContainsAny(part, ".-") || part == "__pycache__" {
			return "", false
		}
	}
	stem, _, _ := strings.Cut(file, ".")
	if stem != "__init__" {
		parts = append(parts, stem)
	}
	return strings.Join(parts, "."), stem != ""
}

func isExtension(file string) bool { return strings.HasSuffix(file, ".so") }

// sourceImports is what scripts/imports.py says of one module.
type sourceImports struct {
	module         string
	imports, later []string
	open           bool
}

func (s *sourceImports) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&s.module, &s.imports, &s.later, &s.open})
}

// readImports has the interpreter read the source of every module, some processes at
// a time.
func (b *builder) readImports(ctx context.Context, all map[string]modules.Module) ([]sourceImports, error) {
	var todo [][3]any
	for name, m := range all {
		if e := b.tree.entries[m.File]; e != nil && strings.HasSuffix(m.File, ".py") {
			source := e.source
			if source == "" { // written there for addBytecode
				source = filepath.Join(b.work, "sources", e.path)
			}
			todo = append(todo, [3]any{name, source, path.Base(m.File) == "__init__.py"})
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		running sync.WaitGroup
		mu      sync.Mutex // guards found
		found   []sourceImports
	)
	for part := range slices.Chunk(todo, len(todo)/runtime.NumCPU()+1) {
		running.Go(func() {
			read, err := b.readPart(ctx, part)
			if err != nil {
				cancel(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, read...)
		})
	}
	running.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("reading what modules import: %w", err)
	}
	return found, nil
}

func (b *builder) readPart(ctx context.Context, part [][3]any) (read []sourceImports, err error) {
	input, err := json.Marshal(part)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, b.python.Executable, "-I", "-S", "-c", importsScript)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w%s", b.python.Executable, err, lastLine(stderr.String()))
	}
	if err := json.Unmarshal(stdout.Bytes(), &read); err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", b.python.Executable, err)
	}
	return read, nil
}

// nameBytes are what dotted names are made of.
const nameBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_."

// namesIn lists the modules whose names are strings of an extension module, or begin them:
// what C code imports, it imports by such a string ("_socket.CAPI"). Some will be mere words.
func (b *builder) namesIn(all map[string]modules.Module, name string, m modules.Module) ([]string, error) {
	e, ok := b.tree.resolve(m.File)
	if !ok || e.source == "" {
		return nil, nil
	}
	data, err := os.ReadFile(e.source)
	if err != nil {
		return nil, fmt.Errorf("reading extension module %s: %w", name, err)
	}
	var names []string
	for word := range bytes.SplitSeq(data, []byte{0}) {
		const longest = 128
		if len(word) < longest && len(bytes.Trim(word, nameBytes)) == 0 {
			names = append(names, string(word))
		}
	}
	return resolveNames(all, name, names), nil
}

// resolveNames turns dotted names of modules and their attributes into those of modules,
// sorted, without the importing module itself.
func resolveNames(all map[string]modules.Module, importer string, names []string) []string {
	var out []string
	for _, name := range names {
		for name != "" {
			if _, known := all[name]; known {
				if name != importer {
					out = append(out, name)
				}
				break
			}
			name = name[:max(strings.LastIndexByte(name, '.'), 0)]
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
