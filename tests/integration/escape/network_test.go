package escape

import (
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// host is what listens on the host while a guest tries to reach it.
type host struct {
	endpoint  string   // the one the policy allows
	forbidden []string // others
	path      string   // of a unix socket
	abstract  string   // name of another
	udp       int
	visits    atomic.Int64 // connections and datagrams that came to what is forbidden
}

// word is said to whoever connects; network.py knows it too.
const word = "hello from the host"

func (h *host) listen(t *testing.T, network, address string, forbidden bool) net.Addr {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	h.serve(t, l, forbidden)
	return l.Addr()
}

// listenTogether listens at a port that is free at every address, the
// first of which the policy allows.
func (h *host) listenTogether(t *testing.T, addresses ...string) (port string) {
	t.Helper()
	for {
		port = "0"
		var all []net.Listener
		for _, address := range addresses {
			l, err := net.Listen("tcp", net.JoinHostPort(address, port))
			if errors.Is(err, unix.EADDRINUSE) && len(all) > 0 {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, l)
			_, port, _ = net.SplitHostPort(l.Addr().String())
		}
		if len(all) == len(addresses) {
			for i, l := range all {
				h.serve(t, l, i > 0)
			}
			return port
		}
		for _, l := range all {
			l.Close()
		}
	}
}

func (h *host) serve(t *testing.T, l net.Listener, forbidden bool) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if forbidden {
				h.visits.Add(1)
			}
			conn.Write([]byte(word))
			conn.Close()
		}
	}()
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{abstract: "psi-escape-" + rand.Text()}
	// The allowed port at other addresses, and another port at every address.
	allowed := h.listenTogether(t, "127.0.0.1", "127.1.2.3", "::1")
	h.endpoint = "127.0.0.1:" + allowed
	_, other, _ := net.SplitHostPort(h.listen(t, "tcp4", "0.0.0.0:0", true).String())
	six := h.listen(t, "tcp6", "[::1]:0", true).String()
	h.forbidden = []string{"127.0.0.1:" + other, "127.1.2.3:" + other, "127.1.2.3:" + allowed, "0.0.0.0:" + other, "127.65.0.1:" + other, "127.65.128.0:" + other, "127.65.128.1:" + other, "127.5.6.7:" + other, "::ffff:127.0.0.1:" + other,
		"::ffff:127.1.2.3:" + allowed, "::1:" + allowed, strings.ReplaceAll(strings.ReplaceAll(six, "[", ""), "]", ""), "0.0.0.0:" + allowed, ":::" + allowed}
	for _, address := range ownAddresses(t) {
		h.forbidden = append(h.forbidden, address+":"+other)
	}
	h.path = filepath.Join(publicDir(t), "socket")
	h.listen(t, "unix", h.path, true)
	if err := os.Chmod(h.path, 0o666); err != nil {
		t.Fatal(err)
	}
	h.listen(t, "unix", "@"+h.abstract, true)
	h.listenUDP(t)
	return h
}

func (h *host) listenUDP(t *testing.T) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h.udp = conn.LocalAddr().(*net.UDPAddr).Port
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			h.visits.Add(1)
			conn.WriteTo([]byte(word), from)
		}
	}()
}

// ownAddresses are the machine's IPv4 addresses beside the loopback.
func ownAddresses(t *testing.T) []string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var own []string
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			own = append(own, ip.IP.String())
		}
	}
	return own
}

func TestNetworkOfTheHost(t *testing.T) {
	var h *host
	for _, way := range []string{"confined", "control"} {
		t.Run(way, func(t *testing.T) {
			watched(t)
			h = newHost(t)
			policy := "open_files: 4096\nmem: 512MiB\ntcp: [\"" + h.endpoint + "\", \"127.5.0.0/16:1-442\", \"*.example.org:443\", {deny: \"secret.example.org:443\"}]\n"
			bundle := compile(t, policy, script(t, "network"), "endpoint="+h.endpoint, "forbidden="+strings.Join(h.forbidden, ","),
				"unix="+h.path, "abstract="+h.abstract, "udp="+strconv.Itoa(h.udp))
			if way == "confined" {
				mustHold(t, run(t, bundle))
				if n := h.visits.Load(); n != 0 {
					t.Errorf("ESCAPED: somebody came %d times to what is forbidden", n)
				}
				return
			}
			edit(t, bundle, func(c config) {
				loosen("pid", "mount", "ipc", "uts")(c)
				addMount(c, filepath.Dir(h.path), filepath.Dir(h.path), "bind", "bind", "rw")
			})
			mustEscape(t, run(t, bundle))
			if h.visits.Load() == 0 {
				t.Error("nobody came without confinement, so counting visits shows nothing")
			}
		})
	}
}
