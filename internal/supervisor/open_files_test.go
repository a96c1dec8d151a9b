package supervisor

import (
	"fmt"
	"maps"
	"testing"
)

// fewestOpenFiles is the least that a policy may say.
const fewestOpenFiles = 20

// A guest with the fewest open files that a policy may say starts, of whatever origin, and can do what guests do: libcontainer's
// init, which puts it together, is held to them too.
func TestFewestOpenFiles(t *testing.T) {
	runDir := newRunDir(t)
	without, direct := embeddedWith(t, Config{RunDir: runDir})
	with, ahead := embeddedWith(t, Config{RunDir: runDir, Pool: PoolOptions{Size: 1, CPU: 4}})
	address, port := echoServer(t)
	source := `import decimal, os, resource, sys
print(decimal.Decimal(1)); sys.stdout.flush()
with open("/etc/passwd") as f: f.read()
post(str(resource.getrlimit(resource.RLIMIT_NOFILE)))
` + connect("127.0.0.1", port)
	for name, policy := range map[string]map[string]any{
		"defaults": {}, "imports": {"imports": []string{"decimal", "os", "resource", "socket", "sys"}},
		"preload": {"imports": []string{"decimal", "os", "resource", "socket", "sys"}, "preload": []string{"decimal", "socket"}},
	} {
		t.Run(name, func(t *testing.T) {
			policy := maps.Clone(policy)
			policy["open_files"], policy["tcp"] = fewestOpenFiles, []string{address}
			fresh := maps.Clone(policy)
			fresh["isolation"] = "fresh"
			want := fmt.Sprintf("(%d, %d) pong", fewestOpenFiles, fewestOpenFiles)
			for origin, make := range map[string]func() *testGuest{
				"libcontainer":                func() *testGuest { return direct.spawn(t, "cold-"+name, fresh) },
				"a zygote":                    func() *testGuest { return direct.forked(t, without, policy) },
				"libcontainer, from the pool": func() *testGuest { return ahead.pooled(t, with, fresh, false) },
				"a zygote, from the pool":     func() *testGuest { return ahead.pooled(t, with, policy, true) },
			} {
				g := make()
				if got := g.run(t, source); got != want {
					t.Errorf("a guest made by %s posted %q, want %q", origin, got, want)
				}
			}
		})
	}
}
