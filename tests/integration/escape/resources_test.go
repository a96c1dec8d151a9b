package escape

import (
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
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

// A guest that sends to a server that does not read fills buffers of the host: they have to be bounded, in
// proportion to what the guest may use itself.
func TestMemoryOfTheProxy(t *testing.T) {
	const bound = 128 << 20 // twice the guest's own memory
	for _, way := range []string{"confined", "control"} {
		t.Run(way, func(t *testing.T) {
			watched(t)
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go silent(l)
			bundle := compile(t, "mem: 64MiB\nopen_files: 4096\ntcp: [\""+l.Addr().String()+"\"]\n", script(t, "buffers"), "endpoint="+l.Addr().String(), "seconds=6")
			if way == "control" {
				edit(t, bundle, loosen("pid", "mount", "ipc", "uts"))
			}
			stop := make(chan struct{})
			most := make(chan int64)
			go watchTCP(stop, most)
			r := run(t, bundle)
			close(stop)
			grown := <-most
			t.Logf("the host's TCP memory grew by %d MiB", grown>>20)
			switch {
			case way == "control":
				mustEscape(t, r)
				if grown < bound {
					t.Errorf("without a proxy it grew by %d MiB only, so looking shows nothing", grown>>20)
				}
			case grown > bound:
				t.Errorf("ESCAPED: a guest with 64 MiB took %d MiB of the host's TCP memory", grown>>20)
			default:
				mustHold(t, r)
			}
		})
	}
}

// silent accepts connections, and reads nothing.
func silent(l net.Listener) {
	var held []net.Conn
	for {
		conn, err := l.Accept()
		if err != nil {
			break
		}
		held = append(held, conn)
	}
	for _, conn := range held {
		conn.Close()
	}
}

// watchTCP tells by how many bytes the host's TCP memory grew at most.
func watchTCP(stop <-chan struct{}, most chan<- int64) {
	start := tcpMemory()
	var peak int64
	for {
		select {
		case <-stop:
			most <- peak
			return
		case <-time.After(50 * time.Millisecond):
			peak = max(peak, tcpMemory()-start)
		}
	}
}

// tcpMemory reads the memory of all TCP sockets of the host, in bytes.
func tcpMemory() int64 {
	data, _ := os.ReadFile("/proc/net/sockstat")
	for _, line := range strings.Split(string(data), "\n") {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "TCP:" {
			pages, _ := strconv.ParseInt(fields[len(fields)-1], 10, 64)
			return pages * int64(os.Getpagesize())
		}
	}
	return 0
}
