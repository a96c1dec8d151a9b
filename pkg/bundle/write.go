package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxScript bounds a script entry, in bytes.
const maxScript = 16 << 20

// Write makes the bundle directory dir, which must not exist or be empty:
//
//	config.json   spec
//	rootfs/       the files of r.Path as hard links (copies on another file system), and the mount points of v;
//	              with an import list, only those that the allowed modules need
//	entry.py      a copy of the script of e, if it has one
//
// Everything is readable for all users and dir is mode 0755, because the
// guest's user has to find its way to rootfs. On error what was made is removed.
// The links share their files with r.Path: editing one edits both.
func Write(dir string, spec *specs.Spec, r RootfsInfo, v View, e Entry) error {
	made, err := makeEmpty(dir)
	if err != nil {
		return fmt.Errorf("writing bundle %q: %w", dir, err)
	}
	if err := write(dir, spec, r, v, e); err != nil {
		return errors.Join(fmt.Errorf("writing bundle %q: %w", dir, err), undo(dir, made))
	}
	return nil
}

// makeEmpty makes dir, or takes an empty one; made says which.
func makeEmpty(dir string) (made bool, err error) {
	err = os.Mkdir(dir, 0o755)
	if err == nil {
		return true, os.Chmod(dir, 0o755) // whatever the umask is
	}
	if !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	if len(names) > 0 {
		return false, fmt.Errorf("the directory exists and holds %q: name a new or an empty one", names[0].Name())
	}
	return false, os.Chmod(dir, 0o755)
}

// undo removes what write made, and dir itself if makeEmpty made it.
func undo(dir string, made bool) error {
	if made {
		return os.RemoveAll(dir)
	}
	var errs []error
	for _, name := range []string{rootDir, scriptCopy, configFile} {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

const configFile = "config.json"

func write(dir string, spec *specs.Spec, r RootfsInfo, v View, e Entry) error {
	config, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return fmt.Errorf("formatting %s: %w", configFile, err)
	}
	if e.Script != "" {
		if err := copyScript(e.Script, filepath.Join(dir, scriptCopy)); err != nil {
			return fmt.Errorf("copying script: %w", err)
		}
	}
	hidden, err := hiddenFiles(spec, r)
	if err != nil {
		return err
	}
	if err := linkTree(r.Path, filepath.Join(dir, rootDir), hidden); err != nil {
		return fmt.Errorf("linking root filesystem %q: %w", r.Path, err)
	}
	if err := makeMountPoints(filepath.Join(dir, rootDir), v); err != nil {
		return fmt.Errorf("making mount points: %w", err)
	}
	return writeFile(filepath.Join(dir, configFile), append(config, '\n'), 0o644)
}

// writeFile makes a new file, with the mode whatever the umask is.
func writeFile(name string, data []byte, mode fs.FileMode) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Chmod(mode), file.Close())
}

// copyScript copies a regular file, without waiting for the writer of a FIFO.
func copyScript(from, to string) error {
	file, err := os.OpenFile(from, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := regular(file); err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxScript+1))
	if err != nil {
		return err
	}
	if len(data) > maxScript {
		return fmt.Errorf("%q is larger than %d bytes", from, maxScript)
	}
	return writeFile(to, data, 0o644)
}

// regular returns the state of an open file that is a regular one.
func regular(file *os.File) (fs.FileInfo, error) {
	st, err := file.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%q is not a regular file", file.Name())
	}
	return st, err
}

// makeMountPoints makes, in the root, what the mounts of v are mounted on, as far as
// it is not in another mount: the runtime makes those in a tmpfs, and those in a
// host directory exist. Nothing leaves the root, whatever links are in it.
func makeMountPoints(dir string, v View) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // it was only a way to files
	for _, empty := range v.Dirs {
		if !isBelow(empty, "/tmp") {
			if err := makeDir(root, empty); err != nil {
				return err
			}
		}
	}
	shown := "" // the last directory mount
	for _, m := range v.Mounts {
		if isBelow(m.Dest, "/tmp") || shown != "" && isBelow(m.Dest, shown) {
			continue
		}
		if m.Dir {
			shown = m.Dest
			err = makeDir(root, m.Dest)
		} else {
			err = makeFile(root, m.Dest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes a directory, and those above it, in the root. The modes do not
// depend on the umask: the guest's user has to pass.
func makeDir(root *os.Root, dest string) error {
	if dest == "/" {
		return nil
	}
	name := ""
	for _, component := range strings.Split(strings.TrimPrefix(dest, "/"), "/") {
		name = filepath.Join(name, component)
		err := root.Mkdir(name, 0o755)
		if err == nil {
			err = root.Chmod(name, 0o755)
		} else if st, statErr := root.Stat(name); statErr == nil && st.IsDir() {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("the root filesystem has no place for %q: %w", dest, err)
		}
	}
	return nil
}

// makeFile makes an empty file. One that is there already is left alone: it is
// linked to the original, and covered by the mount.
func makeFile(root *os.Root, dest string) error {
	if err := makeDir(root, filepath.Dir(dest)); err != nil {
		return err
	}
	name := strings.TrimPrefix(dest, "/")
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		if st, err := root.Stat(name); err != nil || !st.Mode().IsRegular() {
			return fmt.Errorf("the root filesystem has something else than a file at %q", dest)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("the root filesystem has no place for %q: %w", dest, err)
	}
	return errors.Join(file.Chmod(0o644), file.Close())
}
