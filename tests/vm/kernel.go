package main

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
)

// kernel is Debian's cloud kernel, taken out of its package.
type kernel struct {
	Image   string   // vmlinuz
	Modules []string // the modules that the machine needs, each after those it depends on
}

// wantedModules are loaded at boot; what they depend on is found by itself. Those of the second
// line are what criu looks for, and xfrm_user what libcontainer does when it moves a network device.
var wantedModules = []string{
	"virtio_pci", "virtio_blk", "overlay", "xfrm_user",
	"nf_tables", "unix_diag", "inet_diag", "tcp_diag", "udp_diag", "netlink_diag", "af_packet_diag", "veth", "tun",
}

// fetchKernel downloads and unpacks the newest kernel package once; a second call finds it there.
func fetchKernel(ctx context.Context, dir string) (kernel, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return kernel{}, err
	}
	if images, _ := filepath.Glob(filepath.Join(dir, "root/boot/vmlinuz-*")); len(images) == 0 {
		if err := downloadKernel(ctx, dir); err != nil {
			return kernel{}, err
		}
	}
	images, _ := filepath.Glob(filepath.Join(dir, "root/boot/vmlinuz-*"))
	if len(images) != 1 {
		return kernel{}, fmt.Errorf("found %d kernel images below %s: remove the directory and try again", len(images), dir)
	}
	modules, err := resolveModules(filepath.Join(dir, "root/lib/modules"), wantedModules)
	return kernel{Image: images[0], Modules: modules}, err
}

// downloadKernel unpacks the package that linux-image-cloud-amd64 stands for into dir/root.
func downloadKernel(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "linux-image-cloud-amd64").Output()
	if err != nil {
		return fmt.Errorf("asking for the kernel package (is `apt-get update` needed?): %w", err)
	}
	var name string
	for _, field := range strings.Fields(string(out)) {
		if strings.HasPrefix(field, "linux-image-") && field != "linux-image-cloud-amd64" {
			name = field
		}
	}
	if name == "" {
		return fmt.Errorf("apt-cache knows no package behind linux-image-cloud-amd64: run `apt-get update`")
	}
	if err := inDir(ctx, dir, "apt-get", "download", "-q", name); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("apt-get download %s left %d packages in %s", name, len(debs), dir)
	}
	return inDir(ctx, dir, "dpkg-deb", "-x", debs[0], "root")
}

// resolveModules returns the files of the named modules and of all they depend on, dependencies first.
func resolveModules(dir string, names []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			files[strings.ReplaceAll(strings.TrimSuffix(d.Name(), ".ko"), "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var ordered []string
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("the kernel package has no module %s", name)
		}
		needs, err := moduleNeeds(path)
		if err != nil {
			return err
		}
		for _, need := range needs {
			if err := add(need); err != nil {
				return err
			}
		}
		ordered = append(ordered, path)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return ordered, nil
}

// moduleNeeds reads the names in a module's "depends=" line.
func moduleNeeds(path string) ([]string, error) {
	file, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading module %s: %w", path, err)
	}
	defer file.Close()
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("module %s has no .modinfo", path)
	}
	data, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, line := range bytes.Split(data, []byte{0}) {
		if value, ok := bytes.CutPrefix(line, []byte("depends=")); ok && len(value) > 0 {
			needs := strings.Split(strings.ReplaceAll(string(value), "-", "_"), ",")
			sort.Strings(needs)
			return needs, nil
		}
	}
	return nil, nil
}

// inDir runs a command quietly in dir; its output is shown only when it fails.
func inDir(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
