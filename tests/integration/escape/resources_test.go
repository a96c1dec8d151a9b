package escape

import (
	"strings"
	"testing"
)

func TestFloods(t *testing.T) {
	family{
		script: "floods", policy: "pids: 24\nopen_files: 64\ncpu: 0.2\ntmp: 4MiB\n",
		loosen: func(c config) {
			loosen("pid", "mount", "network", "ipc", "uts")(c)
			for _, m := range c["mounts"].([]any) {
				unlimit(m.(map[string]any))
			}
		},
	}.bothWays(t)
}

// unlimit takes the size off a tmpfs.
func unlimit(m config) {
	options, _ := m["options"].([]any)
	for i, o := range options {
		if strings.HasPrefix(o.(string), "size=") {
			options[i] = "size=1g"
		}
	}
}

// memoryKinds are the bombs of memory.py. Each needs a guest of its own, because it dies of it.
var memoryKinds = []string{"anonymous", "shared", "tmpfs", "memfd", "page_tables", "areas", "inodes", "pipes", "sockets", "locks", "open_locks", "attributes", "signals", "descriptors"}

const killed = 137 // the code of a guest that was killed

func TestMemoryBombs(t *testing.T) {
	const policy = "mem: 64MiB\npids: 32\nopen_files: 1024\ntmp: 1GiB\n"
	for _, kind := range memoryKinds {
		t.Run(kind, func(t *testing.T) {
			watched(t)
			r := run(t, compile(t, policy, script(t, "memory"), "kind="+kind))
			if r.code == killed && !strings.Contains(r.stdout, "ESCAPED") {
				return
			}
			mustHold(t, r)
		})
	}
	t.Run("control", func(t *testing.T) {
		watched(t)
		bundle := compile(t, policy, script(t, "memory"), "kind="+strings.Join(memoryKinds, ","))
		edit(t, bundle, loosen("pid", "mount", "network", "ipc", "uts"))
		mustEscape(t, run(t, bundle))
	})
}
