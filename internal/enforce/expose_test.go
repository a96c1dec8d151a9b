package enforce_test

import (
	"testing"
)

// A guest may bind the ports that its policy exposes, at its own loopback and at every
// address, for TCP; and nothing else.
func TestExposedPortsCanBeBound(t *testing.T) {
	dir := newCgroup(t)
	c := startChild(t, dir)
	for _, network := range []string{"udp4", "udp6"} {
		if r := c.do(request{Op: "early", Net: network}); r.Errno != 0 {
			t.Fatal(r)
		}
	}
	g, err := load(t).Attach(dir, endpoints(t, "10.0.0.1:7001"), nil, 7000, 7002)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	for _, addr := range []string{"127.0.0.1:7000", "0.0.0.0:7000", "127.0.0.1:7002"} {
		c.expect("bind", "tcp4", addr, "", 0)
	}
	for _, addr := range []string{"[::1]:7000", "[::]:7000", "[::ffff:127.0.0.1]:7002", "[::ffff:0.0.0.0]:7002"} {
		c.expect("bind", "tcp6", addr, "", 0)
	}
	denied := []struct{ network, addr string }{
		{"tcp4", "127.0.0.1:7001"}, // an endpoint's port is not one to listen at
		{"tcp4", "127.0.0.1:6999"},
		{"tcp4", "127.0.0.1:0"},
		{"tcp4", "0.0.0.0:0"},
		{"tcp4", "127.0.0.2:7000"},
		{"tcp4", "10.0.0.1:7000"},
		{"tcp6", "[::1]:7001"},
		{"tcp6", "[::]:0"},
		{"tcp6", "[fd00::1]:7000"},
		{"tcp6", "[::2]:7000"},
		{"tcp6", "[::ffff:10.0.0.1]:7000"},
		{"tcp6", "[0:0:0:1::1]:7000"},
		{"udp4", "127.0.0.1:7000"},
		{"udp6", "[::1]:7000"},
	}
	for _, d := range denied {
		c.expect("bind", d.network, d.addr, "bind", eperm)
	}
	// Binding a port opens no way to it.
	c.expect("connect", "tcp4", "127.0.0.1:7000", "connect", eperm)
	if n, err := g.Denied(); n != uint64(len(denied))+1 || err != nil {
		t.Errorf("%d denials counted, want %d (%v)", n, len(denied)+1, err)
	}
	if err := g.Update(endpoints(t), nil, 7003); err != nil {
		t.Fatal(err)
	}
	c.expect("bind", "tcp4", "127.0.0.1:7003", "", 0)
	c.expect("bind", "tcp4", "127.0.0.1:7000", "bind", eperm)
	if err := g.Update(endpoints(t), nil); err != nil {
		t.Fatal(err)
	}
	c.expect("bind", "tcp4", "127.0.0.1:7003", "bind", eperm)
}
