package netproxy

import (
	"io"
	"net"
	"os"
	"testing"
)

// throughput measures one connection to a server that sends as fast as it can.
// The ratio of the two benchmarks is what the proxy costs.
func throughput(b *testing.B, dial func(netns *os.File, addr string) net.Conn) {
	const size = 64 << 20
	block := make([]byte, 256<<10)
	addr := server(b, "127.0.0.1:0", func(c *net.TCPConn) {
		for {
			var go1 [1]byte
			if _, err := c.Read(go1[:]); err != nil {
				return
			}
			for range size / len(block) {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		}
	})
	netns := newNetns(b)
	open(b, netns, Options{}, addr)
	c := dial(netns, addr)
	defer c.Close()
	into := make([]byte, 256<<10)
	b.SetBytes(size)
	for b.Loop() {
		if _, err := c.Write([]byte{1}); err != nil {
			b.Fatal(err)
		}
		for n := 0; n < size; {
			m, err := io.ReadFull(c, into)
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
	}
}

func dialHost(b *testing.B) func(*os.File, string) net.Conn {
	return func(_ *os.File, addr string) net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
}

func dialGuest(b *testing.B) func(*os.File, string) net.Conn {
	return func(netns *os.File, addr string) net.Conn {
		c, err := guestDial(netns, addr)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
}

func BenchmarkThroughputPlain(b *testing.B) { throughput(b, dialHost(b)) }
func BenchmarkThroughputProxy(b *testing.B) { throughput(b, dialGuest(b)) }

func pingPong(b *testing.B, dial func(netns *os.File, addr string) net.Conn) {
	addr := server(b, "127.0.0.1:0", echo)
	netns := newNetns(b)
	open(b, netns, Options{}, addr)
	c := dial(netns, addr)
	defer c.Close()
	buf := make([]byte, 1024)
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEchoPlain(b *testing.B) { pingPong(b, dialHost(b)) }
func BenchmarkEchoProxy(b *testing.B) { pingPong(b, dialGuest(b)) }

func BenchmarkOpenAndClose(b *testing.B) {
	netns := newNetns(b)
	eps := endpoints(b, "127.0.0.1:9200", "10.0.0.0/8:5432", "api.example.com:443")
	for b.Loop() {
		p, err := Open(netns, eps, Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
