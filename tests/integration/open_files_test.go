package integration

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"
)

// fewestOpenFiles is the least that a policy may say.
const fewestOpenFiles = 20

// A bundle with the fewest open files that a policy may say starts, and can open what it needs: libcontainer's init, which
// puts the container together, is held to them too. Plain runc's is, and a process that comes later.
func TestFewestOpenFiles(t *testing.T) {
	watched(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("pong"))
			_ = conn.Close()
		}
	}()
	const opens = `import resource, decimal
with open("%s") as f: print(f.read())
print(resource.getrlimit(resource.RLIMIT_NOFILE))
`
	shown := publicDir(t)
	if err := os.WriteFile(shown+"/a.txt", []byte("shown"), 0o644); err != nil {
		t.Fatal(err)
	}
	policy := fmt.Sprintf("open_files: %d\nfs: [%s]\ntcp: [\"%s\"]\nimports: [decimal, resource, socket, time]\n", fewestOpenFiles, shown, listener.Addr())
	script := fmt.Sprintf(opens, shown+"/a.txt")
	want := "shown\n(" + strconv.Itoa(fewestOpenFiles) + ", " + strconv.Itoa(fewestOpenFiles) + ")\n"
	connects := fmt.Sprintf("import socket\nprint(socket.create_connection(('127.0.0.1', %d), 5).recv(4).decode())\n", listener.Addr().(*net.TCPAddr).Port)
	if got := psi(t, "run", "--bundle", bundleOf(t, policy, script+connects), newID(t)); got.code != 0 || got.stdout != want+"pong\n" {
		t.Errorf("run: exit %d, stdout %q, stderr %q, want %q", got.code, got.stdout, got.stderr, want+"pong\n")
	}
	if got := invoke(t, "", "runc", "run", "--bundle", bundleOf(t, fmt.Sprintf("open_files: %d\n", fewestOpenFiles), fmt.Sprintf(opens, "/etc/passwd")), newID(t)); got.code != 0 {
		t.Errorf("runc: exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
	id := newID(t)
	t.Cleanup(func() { psi(t, "delete", "--force", id) })
	psi(t, "run", "--detach", "--bundle", bundleOf(t, policy, "import time\ntime.sleep(600)\n"), id)
	if got := psi(t, "exec", id, "/usr/bin/python3", "-I", "-S", "-c", script); got.code != 0 || got.stdout != want {
		t.Errorf("exec: exit %d, stdout %q, stderr %q, want %q", got.code, got.stdout, got.stderr, want)
	}
}
