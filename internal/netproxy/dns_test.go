package netproxy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/pkg/policy"
)

// wildcards are endpoints that texts cannot say alone.
func wildcards(t testing.TB) []policy.Endpoint {
	t.Helper()
	p := policy.Defaults()
	for _, step := range []func() (policy.Policy, error){
		func() (policy.Policy, error) { return p.AllowTCP("*.example.org:443") },
		func() (policy.Policy, error) { return p.AllowPrivateTCP("*.corp.example:80") },
		func() (policy.Policy, error) { return p.AllowTCP("api.example.com:443") },
		func() (policy.Policy, error) { return p.DenyTCP("secret.example.org:1-65535") },
	} {
		var err error
		if p, err = step(); err != nil {
			t.Fatal(err)
		}
	}
	return p.TCP()
}

func question(name string, kind dnsmessage.Type) []byte {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// ask sends a question over a connection of the guest.
func ask(t testing.TB, c net.Conn, query []byte) dnsmessage.Message {
	t.Helper()
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		t.Fatal(err)
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, reply); err != nil {
		t.Fatal(err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(reply); err != nil || m.ID != 7 || !m.Response {
		t.Fatalf("%+v, %v", m, err)
	}
	return m
}

func addressIn(m dnsmessage.Message) netip.Addr {
	if len(m.Answers) != 1 {
		return netip.Addr{}
	}
	return netip.AddrFrom4(m.Answers[0].Body.(*dnsmessage.AResource).A)
}

func openWildcards(t testing.TB, opts Options) (*Proxy, net.Conn, func(dest string) (*net.TCPConn, error)) {
	t.Helper()
	netns := newNetns(t)
	p, err := Open(netns, wildcards(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, mustDial(t, netns, endpoint.Resolver().String()), func(dest string) (*net.TCPConn, error) { return guestDial(netns, dest) }
}

func TestWildcardNames(t *testing.T) {
	watchLeaks(t)
	target := server(t, "127.0.0.1:0", echo)
	zone := fakeDNS{
		"a.example.org": {"8.8.8.8"}, "rebind.example.org": {"10.0.0.1"}, "meta.example.org": {"169.254.169.254"},
		"db.corp.example": {"10.1.1.1"}, "self.corp.example": {"127.0.0.1"}, "many.corp.example": {"224.0.0.1"}, "api.example.com": {"8.8.4.4"},
	}
	dialled := make(chan string, 100)
	_, c, dial := openWildcards(t, Options{Resolve: zone.resolve, Dial: dialTo(target, dialled)})
	for _, tt := range []struct {
		name, dest string
		want       string // where it leads; "" reset
	}{
		{"a.example.org.", ":443", "8.8.8.8:443"},
		{"A.Example.ORG.", ":443", "8.8.8.8:443"},
		{"a.example.org.", ":80", ""},
		{"rebind.example.org.", ":443", ""},
		{"meta.example.org.", ":443", ""},
		{"db.corp.example.", ":80", "10.1.1.1:80"},
		{"self.corp.example.", ":80", "127.0.0.1:80"},
		{"many.corp.example.", ":80", ""},
		{"api.example.com.", ":443", "8.8.4.4:443"},
	} {
		addr := addressIn(ask(t, c, question(tt.name, dnsmessage.TypeA)))
		if !endpoint.SyntheticRange().Contains(addr) {
			t.Errorf("%s is %s", tt.name, addr)
			continue
		}
		conn, err := dial(addr.String() + tt.dest)
		if err != nil {
			if tt.want != "" {
				t.Errorf("%s%s: %v", tt.name, tt.dest, err)
			}
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if tt.want == "" {
			wantReset(t, conn)
		} else {
			wantEcho(t, conn)
			if got := <-dialled; got != tt.want {
				t.Errorf("%s leads to %s, want %s", tt.name, got, tt.want)
			}
		}
		conn.Close()
	}
}

func TestNamesThatNobodyIsTold(t *testing.T) {
	watchLeaks(t)
	_, c, _ := openWildcards(t, Options{})
	for _, name := range []string{
		"example.org.", "badexample.org.", "secret.example.org.", "example.com.", "x.api.example.com.", "localhost.", "corp.example.", ".",
		"127.0.0.1.", "metadata.google.internal.", "a b.example.org.", "*.example.org.", "ü.example.org.", "a\x00.example.org.",
	} {
		if m := ask(t, c, question(name, dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeNameError || len(m.Answers) != 0 {
			t.Errorf("%q: %+v", name, m)
		}
	}
	// A name that exists, and has nothing of the kind that was asked for.
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeMX, dnsmessage.TypeTXT, 65} {
		if m := ask(t, c, question("a.example.org.", kind)); m.RCode != 0 || len(m.Answers) != 0 {
			t.Errorf("%v: %+v", kind, m)
		}
	}
	if m := ask(t, c, func() []byte { b := question("a.example.org.", dnsmessage.TypeA); b[2] |= 5 << 3; return b }()); m.RCode != dnsmessage.RCodeNotImplemented {
		t.Errorf("an update: %+v", m)
	}
	if m := ask(t, c, func() []byte { b := question("a.example.org.", dnsmessage.TypeA); b[5] = 9; return b }()); m.RCode != dnsmessage.RCodeFormatError {
		t.Errorf("nine questions in the place of one: %+v", m)
	}
}

// A guest that asks for every name there is gets answers, and no more memory.
func TestManyNames(t *testing.T) {
	watchLeaks(t)
	p, c, _ := openWildcards(t, Options{})
	first := addressIn(ask(t, c, question("n0.example.org.", dnsmessage.TypeA)))
	for i := range 3 * maxDynamic {
		name := fmt.Sprintf("n%d.example.org.", i)
		addr := addressIn(ask(t, c, question(name, dnsmessage.TypeA)))
		if again := addressIn(ask(t, c, question(name, dnsmessage.TypeA))); addr != again || p.dynamic.name(addr)+"." != name {
			t.Fatalf("%s is %s, then %s", name, addr, again)
		}
	}
	if len(p.dynamic.addrs) != maxDynamic {
		t.Errorf("%d names are kept", len(p.dynamic.addrs))
	}
	if name := p.dynamic.name(first); name == "n0.example.org" {
		t.Error("the oldest name keeps its address for ever")
	}
	for _, addr := range []string{"127.65.128.0", "127.65.255.255", "127.65.0.1", "10.0.0.1", "::1"} {
		if name := p.dynamic.name(netip.MustParseAddr(addr)); name != "" {
			t.Errorf("%s is %s", addr, name)
		}
	}
}

// Whoever sends no question is cut off, and takes nobody with him.
func TestMalformedQuestions(t *testing.T) {
	watchLeaks(t)
	netns := newNetns(t)
	p, err := Open(netns, wildcards(t), Options{MaxConns: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	resolver := endpoint.Resolver().String()
	good := question("a.example.org.", dnsmessage.TypeA)
	for _, bytesOf := range [][]byte{
		{0, 0}, {0xff, 0xff}, {0, 1, 0}, append([]byte{0, 12}, bytes.Repeat([]byte{0xff}, 12)...),
		append([]byte{0, byte(len(good))}, func() []byte { b := bytes.Clone(good); b[2] |= 0x80; return b }()...), // an answer
		[]byte("GET / HTTP/1.1\r\nHost: a.example.org\r\n\r\n"),
	} {
		c := mustDial(t, netns, resolver)
		_, _ = c.Write(bytesOf) // it may be closed already
		if n, err := io.Copy(io.Discard, c); n != 0 {
			t.Errorf("%q: %d bytes, %v", bytesOf, n, err)
		}
		c.Close()
	}
	// Half a question, held open by all the connections that there may be.
	var half []net.Conn
	for range 8 {
		c := mustDial(t, netns, resolver)
		_, _ = c.Write([]byte{0})
		half = append(half, c)
	}
	eventually(t, "all connections are taken", func() bool { return p.Stats().Active == 8 })
	wantRefused(t, netns, resolver)
	for _, c := range half {
		c.Close()
	}
	eventually(t, "they are free again", func() bool { return p.Stats().Active == 0 })
	if addr := addressIn(ask(t, mustDial(t, netns, resolver), good)); !addr.IsValid() {
		t.Error("no answer after all that")
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(question("a.example.org.", dnsmessage.TypeA))
	f.Add(question("secret.example.org.", dnsmessage.TypeALL))
	f.Add([]byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	r, err := newRules(wildcards(f), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, query []byte) {
		p := &Proxy{rules: r}
		answer := p.answer(query)
		if answer == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil || !m.Response || len(answer) > 65535 {
			t.Fatalf("%q gives %q: %v", query, answer, err)
		}
		for _, a := range m.Answers {
			if !endpoint.SyntheticRange().Contains(addressIn(m)) {
				t.Fatalf("%q leads to %v", query, a)
			}
		}
	})
}
