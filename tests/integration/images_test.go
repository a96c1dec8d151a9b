package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// podman and containerd cannot run in the small virtual machine; what is tested here is a file
// format, which does not depend on the kernel.
func engine(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("PSI_TEST_VM") != "" {
			t.Skipf("the test machine has no %s: the image format is tested on the host", name)
		}
		t.Fatalf("%s is missing: run `make setup`", name)
	}
	return path
}

// image builds the root file system as an OCI archive.
func image(t *testing.T) string {
	t.Helper()
	archive := filepath.Join(publicDir(t), "python.tar")
	mustPsi(t, "rootfs", "build", "--python", "/usr/bin/python3.11", "--format", "oci", "-o", archive)
	return archive
}

func TestPodmanLoadsTheImageAndRunsIt(t *testing.T) {
	podman := engine(t, "podman")
	watched(t)
	dir := publicDir(t)
	storage := []string{"--root", dir + "/storage", "--runroot", dir + "/run", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"}
	t.Cleanup(func() { invoke(t, "", podman, append(storage, "system", "reset", "--force")...) })

	loaded := invoke(t, "", podman, append(storage, "load", "-i", image(t))...)
	_, name, found := strings.Cut(strings.TrimSpace(loaded.stdout), "Loaded image: ")
	if loaded.code != 0 || !found {
		t.Fatalf("podman load: exit %d, %s%s", loaded.code, loaded.stdout, loaded.stderr)
	}
	got := invoke(t, "", podman, append(storage, "--runtime", program(t), "run", "--rm", "--network", "none",
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
		"--entrypoint", "/usr/bin/python3", name, "-I", "-S", "-c", "print(6 * 7)")...)
	if got.code != 0 || strings.TrimSpace(got.stdout) != "42" {
		t.Errorf("podman run: exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestContainerdImportsTheImage(t *testing.T) {
	daemon := engine(t, "containerd")
	watched(t)
	dir := publicDir(t)
	cmd := exec.Command(daemon, "--root", dir+"/root", "--state", dir+"/state", "--address", dir+"/sock", "--log-level", "error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	waitFor(t, func() bool { _, err := os.Stat(dir + "/sock"); return err == nil })
	got := invoke(t, "", "ctr", "--address", dir+"/sock", "image", "import", "--snapshotter", "native", image(t))
	if got.code != 0 || !strings.Contains(got.stdout, "psi-python:3.11") {
		t.Errorf("ctr image import: exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}
