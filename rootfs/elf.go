package rootfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// elfObject is what the dynamic loader reads of a program or shared library.
type elfObject struct {
	path    string // as the loader opened it; $ORIGIN is its directory
	class   elf.Class
	machine elf.Machine
	interp  string // PT_INTERP: path of the dynamic loader, of programs only
	needed  []string
	rpath   []string
	runpath []string
}

// isELF says whether the host file begins as ELF files do.
func isELF(host string) (bool, error) {
	file, err := os.Open(host)
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }() // only read
	var magic [len(elf.ELFMAG)]byte
	if _, err := io.ReadFull(file, magic[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return false, nil
		}
		return false, err
	}
	return string(magic[:]) == elf.ELFMAG, nil
}

// readELF reads the host file as the object that the loader would see at
// path. Relocatable files and core dumps, which no loader takes, are not
// objects: ok is false.
func readELF(host, path string) (o *elfObject, ok bool, err error) {
	file, err := elf.Open(host)
	if err != nil {
		return nil, false, fmt.Errorf("reading ELF file %s: %w", host, err)
	}
	defer func() { _ = file.Close() }() // only read
	if file.Type != elf.ET_EXEC && file.Type != elf.ET_DYN {
		return nil, false, nil
	}
	o = &elfObject{path: path, class: file.Class, machine: file.Machine}
	for _, p := range file.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
		if err != nil {
			return nil, false, fmt.Errorf("reading ELF file %s: program interpreter: %w", host, err)
		}
		o.interp = strings.TrimRight(string(name), "\x00")
	}
	for tag, into := range map[elf.DynTag]*[]string{
		elf.DT_NEEDED: &o.needed, elf.DT_RPATH: &o.rpath, elf.DT_RUNPATH: &o.runpath,
	} {
		values, err := file.DynString(tag)
		if err != nil {
			return nil, false, fmt.Errorf("reading ELF file %s: %s: %w", host, tag, err)
		}
		*into = values
	}
	o.rpath, o.runpath = o.expand(o.rpath), o.expand(o.runpath)
	if len(o.runpath) > 0 {
		o.rpath = nil // the loader ignores the old one beside the new one
	}
	return o, true, nil
}

// expand splits search paths at colons and replaces the loader's variables.
func (o *elfObject) expand(values []string) []string {
	var dirs []string
	for _, value := range values {
		for _, dir := range strings.Split(value, ":") {
			if dir == "" {
				continue
			}
			for _, lib := range o.libNames() {
				expanded := strings.NewReplacer(
					"$ORIGIN", path.Dir(o.path), "${ORIGIN}", path.Dir(o.path),
					"$LIB", lib, "${LIB}", lib,
				).Replace(dir)
				dirs = append(dirs, expanded)
				if expanded == dir {
					break // no variable: one directory and not one per $LIB
				}
			}
		}
	}
	return dirs
}

// libNames lists what $LIB can stand for, Debian's way first.
func (o *elfObject) libNames() []string {
	if triplet := o.triplet(); triplet != "" {
		return []string{"lib/" + triplet, "lib64", "lib"}
	}
	return []string{"lib64", "lib"}
}

// triplet is Debian's name of the machine's library directories, "" if the
// machine is not one that psi runs on.
func (o *elfObject) triplet() string {
	switch o.machine {
	case elf.EM_X86_64:
		return "x86_64-linux-gnu"
	case elf.EM_AARCH64:
		return "aarch64-linux-gnu"
	}
	return ""
}
