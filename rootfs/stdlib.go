package rootfs

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// omission is a part of the standard library that a root does without.
// docs/rootfs.md holds the same list; a test compares the two.
type omission struct {
	pattern string // path.Match against the path below the stdlib directory
	reason  string
}

// omissions lists what is left out of a standard library. The patterns cover
// all supported versions; most of them match nothing in newer ones.
func omissions() []omission {
	const (
		tests   = "tests of CPython itself"
		tk      = "needs Tk and a display"
		tooling = "build or installation tooling, of no use in a read-only root"
		host    = "configuration of the host's Python"
		other   = "of other operating systems"
	)
	return []omission{
		{"test", tests},
		{"*/test", tests},
		{"*/tests", tests},
		{"lib-dynload/_test*", tests},
		{"lib-dynload/_ctypes_test*", tests},
		{"lib-dynload/_xxtestfuzz*", tests},
		{"lib-dynload/xxlimited*", tests},
		{"lib-dynload/xxsubtype*", tests},
		{"idlelib", tk},
		{"tkinter", tk},
		{"turtle.py", tk},
		{"turtledemo", tk},
		{"lib-dynload/_tkinter*", tk},
		{"ensurepip", tooling},
		{"venv", tooling},
		{"distutils", tooling},
		{"_distutils_system_mod.py", tooling},
		{"lib2to3", tooling},
		{"config-*", tooling},
		{"msilib", other},
		{"asyncio/windows_*.py", other},
		{"encodings/mbcs.py", other},
		{"encodings/oem.py", other},
		{"multiprocessing/popen_spawn_win32.py", other},
		{"_pyrepl/windows_*.py", other},
		{"_ios_support.py", other},
		{"pydoc_data", "texts of the interactive help, 1 MB"},
		{"lib-dynload/nis.*", "needs Kerberos and RPC libraries, for a network no guest has"},
		{"sitecustomize.py", host},
		{"usercustomize.py", host},
		{"EXTERNALLY-MANAGED", host},
		{"site-packages", "given by --site-packages"},
		{"dist-packages", "given by --site-packages"},
	}
}

// addInterpreter plans the executable and its other name.
func (b *builder) addInterpreter(context.Context) error {
	name := b.python.executablePath()
	if err := b.tree.file(name, b.python.Executable); err != nil {
		return err
	}
	b.tree.entries[name].mode = 0o755
	b.tree.symlink("usr/bin/python3", path.Base(name))
	return nil
}

// addStdlib plans the standard library at the place where an interpreter with
// prefix /usr looks for it.
func (b *builder) addStdlib(context.Context) error {
	if _, err := os.Stat(filepath.Join(b.python.Stdlib, "os.py")); err != nil {
		return fmt.Errorf("reading standard library of %s: no sources in %s (%w): install the complete library (Debian: libpython%s-stdlib) or give another --python",
			b.python.Executable, b.python.Stdlib, err, b.python.minor())
	}
	to := b.python.stdlibPath()
	copier := b.copier(b.python.Stdlib, to)
	copier.skip = b.skipStdlib
	if err := copier.run(); err != nil {
		return err
	}
	// The interpreter takes /usr for its exec_prefix by this directory, so it
	// is there even if every module is built in or it lies elsewhere.
	b.tree.dir(to+"/lib-dynload", 0o755)
	if b.python.Dynload != "" && filepath.Dir(b.python.Dynload) != filepath.Clean(b.python.Stdlib) {
		copier := b.copier(b.python.Dynload, to+"/lib-dynload")
		copier.skip = func(rel string) (string, bool) { return b.skipStdlib("lib-dynload/" + rel) }
		if err := copier.run(); err != nil {
			return err
		}
	}
	b.linkCompiledInPaths()
	return nil
}

// linkCompiledInPaths makes the library appear where builds with another
// library directory (Fedora: /usr/lib64/python3.X) or free threading
// (/usr/lib/python3.Xt) look for it: both are compiled into the interpreter.
func (b *builder) linkCompiledInPaths() {
	name := "python" + b.python.minor()
	if b.python.ABIThread != "" {
		b.tree.symlink("usr/lib/"+name+b.python.ABIThread, name)
	}
	if lib := b.python.PlatLibDir; lib != "" && lib != "lib" && !strings.Contains(lib, "/") {
		b.tree.symlink("usr/"+lib+"/"+name+b.python.ABIThread, "../lib/"+name)
	}
}

// skipStdlib says whether a path below the standard library is left out.
func (b *builder) skipStdlib(rel string) (reason string, skip bool) {
	for _, o := range omissions() {
		if match, _ := path.Match(o.pattern, rel); match {
			return o.reason, true
		}
	}
	return "", false
}
