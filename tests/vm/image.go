package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/psi-runtime/psi/tests/suite"
)

// buildTags are those of the Makefile.
const buildTags = "seccomp,netgo,osusergo,urfave_cli_no_docs"

// conformance is the suite whose programs are built apart, there being no Go in the machine.
const conformance = "tests/integration/conformance"

// hostPrograms are copied from this machine with the libraries they need; python3.11 runs the
// Python tests, runc is the peer that bundles must also run under, the rest is for shell scripts.
var hostPrograms = []string{
	"/usr/bin/python3.11", "/usr/sbin/runc", "/usr/bin/crun", "/bin/sh", "/bin/bash", "/bin/cat", "/bin/ls", "/bin/mount", "/bin/umount",
	"/bin/sleep", "/bin/true", "/bin/false", "/bin/ps", "/bin/dd", "/bin/mkdir", "/usr/bin/mkfifo", "/bin/rm", "/bin/rmdir", "/bin/touch", "/bin/stty", "/bin/readlink", "/bin/ln", "/bin/cp", "/bin/chmod", "/bin/chown", "/bin/sed", "/usr/bin/env", "/usr/bin/id", "/bin/ip", "/usr/sbin/bpftool", "/usr/bin/setpriv", "/usr/bin/unshare", "/usr/sbin/criu", "/lib/systemd/systemd", "/bin/systemctl", "/usr/bin/dbus-daemon", "/bin/tar", "/bin/gzip",
}

// engines is the suite for which containerd is there too.
const engines = "tests/integration/engines"

var enginePrograms = []string{"/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2", "/usr/bin/ctr", "/bin/busybox"}

// buildInitramfs packs the first stage and the kernel modules.
func buildInitramfs(ctx context.Context, work string, k kernel) (string, error) {
	root := filepath.Join(work, "initramfs")
	if err := os.RemoveAll(root); err != nil {
		return "", err
	}
	for _, dir := range []string{"dev", "new", "modules"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := buildGuest(ctx, filepath.Join(root, "init")); err != nil {
		return "", err
	}
	for i, module := range k.Modules {
		name := fmt.Sprintf("%02d-%s", i, filepath.Base(module))
		if err := inDir(ctx, root, "cp", module, filepath.Join("modules", name)); err != nil {
			return "", err
		}
	}
	archive := filepath.Join(work, "initramfs.cpio")
	return archive, inDir(ctx, root, "sh", "-c", "find . | cpio -o -H newc --quiet >"+shellQuote(archive))
}

// buildGuest compiles tests/vm/guest.
func buildGuest(ctx context.Context, output string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", output, "./tests/vm/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the guest's init: %w\n%s", err, out)
	}
	return nil
}

// buildImage makes the ext4 image that is the machine's disk.
func buildImage(ctx context.Context, work string, steps []step) (string, error) {
	root := filepath.Join(work, "disk")
	if err := os.RemoveAll(root); err != nil {
		return "", err
	}
	for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "psi", "root", "etc", "srv", "var/lib", "var/tmp", "src/build/tests"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := buildGuest(ctx, filepath.Join(root, "psi/guest")); err != nil {
		return "", err
	}
	if err := writeJSON(filepath.Join(root, "psi/steps.json"), steps); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hosts"), []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644); err != nil {
		return "", err
	}
	programs := hostPrograms
	if slices.ContainsFunc(steps, func(s step) bool { return s.suite == engines }) {
		programs = append(slices.Clone(programs), enginePrograms...)
	}
	if err := copyUserland(ctx, root, programs); err != nil {
		return "", err
	}
	if err := copyCheckout(ctx, root, steps); err != nil {
		return "", err
	}
	for _, s := range steps {
		if s.suite == suite.Python {
			continue
		}
		if err := compileTests(ctx, s.suite, filepath.Join(root, testBinary(s.suite))); err != nil {
			return "", err
		}
	}
	image := filepath.Join(work, "disk.ext4")
	if err := os.Remove(image); err != nil && !os.IsNotExist(err) {
		return "", err
	}
	return image, inDir(ctx, work, "mkfs.ext4", "-q", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", root, image, "3G")
}

// copyUserland copies programs of the host, their libraries and Python's standard library.
func copyUserland(ctx context.Context, root string, programs []string) error {
	var present []string
	for _, program := range programs {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("the machine needs %s (run `make setup`): %w", program, err)
		}
		present = append(present, program)
	}
	modules, err := filepath.Glob("/usr/lib/python3.11/lib-dynload/*.so")
	if err != nil {
		return err
	}
	files, err := libraries(ctx, append(present, modules...))
	if err != nil {
		return err
	}
	files = append(files, present...)
	files = append(files, "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/usr/share/common-licenses", "/usr/share/dbus-1/session.conf")
	for _, dir := range [][2]string{{"usr/bin", "bin"}, {"usr/sbin", "sbin"}, {"usr/lib", "lib"}, {"usr/lib64", "lib64"}} {
		if err := os.MkdirAll(filepath.Join(root, dir[0]), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(dir[0], filepath.Join(root, dir[1])); err != nil {
			return err
		}
	}
	for _, file := range files {
		if err := copyInto(ctx, root, file); err != nil {
			return err
		}
	}
	return inDir(ctx, "/", "sh", "-c", "tar -c --exclude=__pycache__ --exclude=usr/lib/python3.11/test usr/lib/python3.11 | tar -x -C "+shellQuote(root))
}

// copyInto copies a file or directory to the same path below root, following links at the end only.
func copyInto(ctx context.Context, root, path string) error {
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	target := filepath.Join(root, real)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return inDir(ctx, "/", "cp", "-rL", "--preserve=mode,timestamps", path, filepath.Join(target, filepath.Base(path)))
}

// libraries asks ldd for the shared libraries of trusted programs of this machine.
func libraries(ctx context.Context, programs []string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ldd", programs...).Output()
	if err != nil && len(out) == 0 {
		return nil, fmt.Errorf("listing libraries: %w", err)
	}
	seen := map[string]bool{}
	var files []string
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasSuffix(line, ":") {
			continue // the program's own name
		}
		for _, field := range strings.Fields(line) {
			if strings.HasPrefix(field, "/") && !seen[field] {
				seen[field] = true
				files = append(files, field)
			}
		}
	}
	return files, nil
}

// copyCheckout copies the files that git knows or does not ignore, the binaries and the rootfs.
func copyCheckout(ctx context.Context, root string, steps []step) error {
	target := shellQuote(filepath.Join(root, source))
	if err := inDir(ctx, ".", "sh", "-c", "git ls-files -z -co --exclude-standard | xargs -0 sh -c 'for f; do [ -e \"$f\" ] && printf \"%s\\0\" \"$f\"; done; true' _ | tar -c --null -T - | tar -x -C "+target); err != nil {
		return fmt.Errorf("copying the checkout: %w", err)
	}
	parts := []string{"bin", "build/rootfs"}
	if slices.ContainsFunc(steps, func(s step) bool { return s.suite == conformance }) {
		if out, err := exec.CommandContext(ctx, "scripts/conformance").CombinedOutput(); err != nil {
			return fmt.Errorf("building the conformance suite: %w\n%s", err, out)
		}
		parts = append(parts, "build/conformance")
	}
	for _, built := range parts {
		if _, err := os.Stat(built); err != nil {
			return fmt.Errorf("%s is missing (run `make build rootfs`): %w", built, err)
		}
		if err := inDir(ctx, ".", "cp", "-a", "--parents", built, filepath.Join(root, source)); err != nil {
			return err
		}
	}
	return nil
}

// compileTests builds a package's tests as one static binary.
func compileTests(ctx context.Context, name, output string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", buildTags,
		"-ldflags", "-linkmode external -extldflags -static", "-o", output, "./"+name)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compiling the tests of %s: %w\n%s", name, err, out)
	}
	return nil
}

// shellQuote quotes a path for sh.
func shellQuote(path string) string {
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
