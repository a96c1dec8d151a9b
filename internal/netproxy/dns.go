package netproxy

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/psi-runtime/psi/internal/endpoint"
)

// A guest whose policy has wildcards asks endpoint.Resolver for names, by TCP (its
// /etc/resolv.conf says so). The answer is one of the guest's own addresses, or that
// there is no such name; nothing is asked of anybody. What a guest sends is hostile:
// everything about it is bounded.
const (
	maxQuery    = 512              // bytes of a question
	dnsPatience = 10 * time.Second // for the next question of a connection
	dnsTTL      = 60               // seconds
	maxDynamic  = 1024             // names that wildcards cover and the guest has asked for
)

// dynamicNames are the addresses of names that wildcards cover. When there are
// maxDynamic of them the oldest makes room, and its address gets another name: both are
// names of the guest's policy. The zero value is ready.
type dynamicNames struct {
	mu    sync.Mutex
	addrs map[string]netip.Addr
	names []string // by the offset of the address, less one
	next  int
}

// address returns the name's address, a new one if it has none.
func (d *dynamicNames) address(name string) netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	if addr, ok := d.addrs[name]; ok {
		return addr
	}
	if d.addrs == nil {
		d.addrs, d.names = make(map[string]netip.Addr), make([]string, maxDynamic)
	}
	delete(d.addrs, d.names[d.next])
	d.names[d.next] = name
	addr := dynamicAddr(d.next)
	d.addrs[name] = addr
	d.next = (d.next + 1) % maxDynamic
	return addr
}

// name returns whose address it is, or "".
func (d *dynamicNames) name(addr netip.Addr) string {
	if !endpoint.DynamicRange().Contains(addr) {
		return ""
	}
	b, base := addr.As4(), endpoint.DynamicRange().Addr().As4()
	at := int(binary.BigEndian.Uint32(b[:])-binary.BigEndian.Uint32(base[:])) - 1
	d.mu.Lock()
	defer d.mu.Unlock()
	if at < 0 || at >= len(d.names) {
		return ""
	}
	return d.names[at]
}

func dynamicAddr(at int) netip.Addr {
	b := endpoint.DynamicRange().Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(at)+1)
	return netip.AddrFrom4(b)
}

// serveDNS answers the questions of one connection, each preceded by its length.
func (p *Proxy) serveDNS(guest net.Conn) {
	defer guest.Close()
	buf := make([]byte, 2+maxQuery)
	for {
		_ = guest.SetDeadline(time.Now().Add(dnsPatience)) // fails only if it is closed
		if _, err := io.ReadFull(guest, buf[:2]); err != nil {
			return
		}
		size := int(binary.BigEndian.Uint16(buf))
		if size > maxQuery {
			return
		}
		if _, err := io.ReadFull(guest, buf[2:2+size]); err != nil {
			return
		}
		answer := p.answer(buf[2 : 2+size])
		if answer == nil {
			return
		}
		if _, err := guest.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answer returns the answer to a question, or nil for what is no question.
func (p *Proxy) answer(query []byte) []byte {
	var parser dnsmessage.Parser
	header, err := parser.Start(query)
	if err != nil || header.Response {
		return nil
	}
	reply := dnsmessage.Header{ID: header.ID, Response: true, OpCode: header.OpCode, Authoritative: true,
		RecursionDesired: header.RecursionDesired, RecursionAvailable: true}
	questions, err := parser.AllQuestions()
	switch {
	case err != nil || len(questions) != 1:
		reply.RCode = dnsmessage.RCodeFormatError
		questions = nil
	case header.OpCode != 0:
		reply.RCode = dnsmessage.RCodeNotImplemented
	}
	var addr netip.Addr
	if reply.RCode == 0 {
		addr = p.lookUp(questions[0])
		if !addr.IsValid() {
			reply.RCode = dnsmessage.RCodeNameError
		}
	}
	return pack(reply, questions, addr)
}

// pack writes an answer; addr is left out where the question is not about it.
func pack(reply dnsmessage.Header, questions []dnsmessage.Question, addr netip.Addr) []byte {
	b := dnsmessage.NewBuilder(nil, reply)
	if b.StartQuestions() != nil {
		return nil
	}
	for _, q := range questions {
		if b.Question(q) != nil || b.StartAnswers() != nil {
			return nil
		}
		if !addr.IsValid() || q.Type != dnsmessage.TypeA && q.Type != dnsmessage.TypeALL {
			continue
		}
		record := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: dnsTTL}
		if b.AResource(record, dnsmessage.AResource{A: addr.As4()}) != nil {
			return nil
		}
	}
	answer, err := b.Finish()
	if err != nil {
		return nil
	}
	return answer
}

// lookUp returns the address that stands for a name in this guest; none means that the
// policy does not know the name.
func (p *Proxy) lookUp(q dnsmessage.Question) netip.Addr {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if q.Class != dnsmessage.ClassINET || !isHostName(name) {
		return netip.Addr{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.rules.list.Knows(name) {
		return netip.Addr{}
	}
	if addr, ok := p.rules.hosts[name]; ok {
		return addr
	}
	return p.dynamic.address(name)
}

// isHostName keeps out what a resolver on the host might read as something else.
func isHostName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(name) <= 253
}
