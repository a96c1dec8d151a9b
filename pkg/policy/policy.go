package policy

import (
	"fmt"
	"slices"
)

// Bounds of one policy. They keep every cost linear and small, and the canonical
// document within what a supervisor and an annotation carry.
const (
	maxRules    = 4096 // of fs, of tcp, of udp and of imports, each
	maxDenied   = 512  // of tcp and of udp, denied; each is compared with every allowed one
	maxDocument = MaxDocument
)

// MaxDocument bounds a document, and the canonical one, in bytes.
const MaxDocument = 1 << 20

// Policy says what a guest may do. It is an immutable value: copy it freely,
// share it among goroutines; the modifiers return changed copies. The zero
// Policy is [Defaults]. Compare two by [Policy.Digest].
type Policy struct {
	limits         Limits // the zero Limits, which is not valid, stands for the defaults
	fs             []FSRule
	tcp, udp       endpoints
	expose         []uint16 // sorted
	imports        []string // sorted
	importsLimited bool
	allowDegraded  bool
	readOnly       bool
	seccomp        Seccomp
	isolation      Isolation
	preload        []string // sorted
}

// endpoints are the rules of tcp or of udp, as they were written.
type endpoints struct {
	allow, deny []Endpoint
}

func (l endpoints) clone() endpoints {
	return endpoints{slices.Clone(l.allow), slices.Clone(l.deny)}
}

// Defaults returns the policy that holds where nothing else is said: the default
// limits, no host file, no endpoint, every module of the root filesystem.
func Defaults() Policy {
	return Policy{limits: defaultLimits()}
}

// Limits returns how much the guest may use.
func (p Policy) Limits() Limits {
	if p.limits == (Limits{}) {
		return defaultLimits()
	}
	return p.limits
}

// FS returns the file rules in the order in which they were given. Their meaning
// does not depend on the order: a path is open if a read or write rule matches
// it and no deny rule does.
func (p Policy) FS() []FSRule { return slices.Clone(p.fs) }

// TCP returns the endpoints that the guest may connect to by TCP, in the order in
// which they were given, each once. What a deny rule takes away is left out: a
// block with a part denied appears as the smaller blocks that remain. Only a denied
// name below an allowed wildcard cannot be left out; it follows the others, with
// [Endpoint.Deny], and wins over them.
func (p Policy) TCP() []Endpoint { return p.tcp.open("tcp") }

// UDP is as TCP, for datagrams.
func (p Policy) UDP() []Endpoint { return p.udp.open("udp") }

// Endpoints returns those of TCP and of UDP together: all that the guest reaches.
func (p Policy) Endpoints() []Endpoint { return append(p.TCP(), p.UDP()...) }

func (l endpoints) open(key string) []Endpoint {
	open, err := remaining(key, l.allow, l.deny)
	if err != nil {
		return nil // not reachable: every constructor has checked it
	}
	return open
}

// TCPRules returns the rules behind [Policy.TCP] as they were written: what is
// allowed, and what is denied whatever allows it.
func (p Policy) TCPRules() (allowed, denied []Endpoint) {
	return slices.Clone(p.tcp.allow), slices.Clone(p.tcp.deny)
}

// UDPRules is as TCPRules, for datagrams.
func (p Policy) UDPRules() (allowed, denied []Endpoint) {
	return slices.Clone(p.udp.allow), slices.Clone(p.udp.deny)
}

// Imports returns the modules that guest code may import, sorted. A name covers
// the module and, for a package, everything in it. limited false means every
// module of the root filesystem; limited true and no module means none.
func (p Policy) Imports() (modules []string, limited bool) {
	return slices.Clone(p.imports), p.importsLimited
}

// SameImports reports whether two policies have the same list of imports, or both none.
func (p Policy) SameImports(q Policy) bool {
	return p.importsLimited == q.importsLimited && slices.Equal(p.imports, q.imports)
}

// AllowDegraded reports whether the guest may start on a host that cannot
// enforce all of the policy. The guest's state then says what is missing.
func (p Policy) AllowDegraded() bool { return p.allowDegraded }

// ReadOnly reports whether the policy refuses every fs rule that writes.
func (p Policy) ReadOnly() bool { return p.readOnly }

// Seccomp returns which system call filter an engine's container gets.
func (p Policy) Seccomp() Seccomp { return p.seccomp }

// Isolation returns what the guest may share with others.
func (p Policy) Isolation() Isolation { return p.isolation }

// AllowFS returns a copy with one more file rule. A rule that is there already
// changes nothing. Errors are [*Error]s with the key "fs".
func (p Policy) AllowFS(pattern string, mode FSMode) (Policy, error) {
	q := p
	q.fs = slices.Clone(p.fs)
	err := q.addFS(FSRule{Mode: mode, Pattern: pattern})
	return checked(p, q, err, "fs")
}

// AllowTCP returns a copy with one more endpoint, written as [ParseEndpoint]
// reads it. Errors are [*Error]s with the key "tcp".
func (p Policy) AllowTCP(endpoint string) (Policy, error) {
	return p.withEndpoint(endpoint, Endpoint{})
}

// AllowPrivateTCP is AllowTCP for a name that may lead to addresses of the host's
// surroundings: private ones, loopback, link-local, a cloud's metadata service.
// Whoever controls the name then decides which of these the guest reaches.
func (p Policy) AllowPrivateTCP(endpoint string) (Policy, error) {
	return p.withEndpoint(endpoint, Endpoint{Private: true})
}

// DenyTCP returns a copy from which an endpoint, written as for AllowTCP, is
// taken away, whatever allows it, now or later. A name and an address cannot be
// told apart before a guest connects, so a deny of one beside an allowed other
// of the same port is refused. Errors are [*Error]s with the key "tcp".
func (p Policy) DenyTCP(endpoint string) (Policy, error) {
	return p.withEndpoint(endpoint, Endpoint{Deny: true})
}

// AllowUDP is [Policy.AllowTCP] for datagrams. Errors of it and of the others of UDP
// are [*Error]s with the key "udp".
func (p Policy) AllowUDP(endpoint string) (Policy, error) {
	return p.withEndpoint(endpoint, Endpoint{UDP: true})
}

// AllowPrivateUDP is [Policy.AllowPrivateTCP] for datagrams.
func (p Policy) AllowPrivateUDP(endpoint string) (Policy, error) {
	return p.withEndpoint(endpoint, Endpoint{UDP: true, Private: true})
}

// DenyUDP is [Policy.DenyTCP] for datagrams.
func (p Policy) DenyUDP(endpoint string) (Policy, error) {
	return p.withEndpoint(endpoint, Endpoint{UDP: true, Deny: true})
}

// withEndpoint adds a rule of the kind that like is of.
func (p Policy) withEndpoint(text string, like Endpoint) (Policy, error) {
	q := p
	q.tcp, q.udp = p.tcp.clone(), p.udp.clone()
	_, err := q.addEndpoint(text, like)
	return checked(p, q, err, like.key())
}

// key is the key of documents under which the endpoint stands.
func (e Endpoint) key() string {
	if e.UDP {
		return "udp"
	}
	return "tcp"
}

// AllowImport returns a copy that lists one more module. The first one turns
// "every module" into a list: Defaults().AllowImport("math") permits math only.
// Errors are [*Error]s with the key "imports".
func (p Policy) AllowImport(name string) (Policy, error) {
	q := p
	q.imports = slices.Clone(p.imports)
	err := q.addImport(name)
	return checked(p, q, err, "imports")
}

// IntersectImports returns a copy that permits only modules that both the policy
// and names cover. No names means no module. Errors are [*Error]s with the key
// "imports".
func (p Policy) IntersectImports(names []string) (Policy, error) {
	var other Policy
	for _, name := range names {
		if err := other.addImport(name); err != nil {
			return checked(p, p, err, "imports")
		}
	}
	q := p
	q.importsLimited = true
	q.imports = other.imports
	if p.importsLimited {
		q.imports = intersectImports(p.imports, other.imports)
	}
	return checked(p, q, nil, "imports")
}

// WithLimits returns a copy with other limits, all of them. To change one, start
// from [Policy.Limits]. Errors are [*Error]s with the key of the limit.
func (p Policy) WithLimits(l Limits) (Policy, error) {
	if err := checkLimits(l); err != nil {
		return p, err
	}
	q := p
	q.limits = l
	return q, nil
}

// BeforeStart returns the part of the policy that has to be in force before a guest's process
// is started: its imports and preloads, its datagrams, whether it can listen, its open files, whether
// /tmp can be written. All else can be put into force while the process waits. Policies with the
// same BeforeStart can have the same guests.
func (p Policy) BeforeStart() Policy {
	l := defaultLimits()
	l.OpenFiles = p.Limits().OpenFiles
	if p.Limits().Tmp == 0 {
		l.Tmp = 0
	}
	var expose []uint16
	if len(p.expose) > 0 {
		expose = []uint16{firstExposed} // which port can be said later
	}
	return Policy{
		limits: l, udp: p.udp.clone(), expose: expose, imports: slices.Clone(p.imports), importsLimited: p.importsLimited,
		allowDegraded: p.allowDegraded, isolation: p.isolation, preload: slices.Clone(p.preload),
	}
}

// Loading returns the part of the policy that says what an interpreter loads, and from which
// files.
func (p Policy) Loading() Policy {
	return Policy{limits: defaultLimits(), imports: slices.Clone(p.imports), importsLimited: p.importsLimited, preload: slices.Clone(p.preload)}
}

// checked ends a modifier: it returns q, or before and the error about key.
func checked(before, q Policy, err *Error, key string) (Policy, error) {
	if err == nil {
		err = q.checkDocument()
	}
	if err != nil {
		if err.Key == "" {
			err.Key = key
		}
		return before, err
	}
	return q, nil
}

// checkDocument reports a policy whose canonical document could not be read back.
func (p Policy) checkDocument() *Error {
	if err := p.checkPreload(); err != nil {
		return err
	}
	for key, list := range map[string]endpoints{"tcp": p.tcp, "udp": p.udp} {
		if _, err := remaining(key, list.allow, list.deny); err != nil {
			return err
		}
	}
	// The bound of the cheap sum is the worst that JSON can make of a byte.
	bytes := kib
	for _, r := range p.fs {
		bytes += int64(6*len(r.Pattern) + 32)
	}
	for _, list := range [][]Endpoint{p.tcp.allow, p.tcp.deny, p.udp.allow, p.udp.deny} {
		for _, e := range list {
			bytes += int64(len(e.Host) + 48)
		}
	}
	for _, name := range slices.Concat(p.imports, p.preload) {
		bytes += int64(len(name) + 4)
	}
	if bytes <= maxDocument || len(p.Canonical()) <= maxDocument {
		return nil
	}
	return &Error{Rule: fmt.Sprintf("the policy is larger than %s", formatSize(maxDocument)),
		WayOut: "use fewer rules, with wildcards"}
}

// The add methods change p in place: their callers own its lists.

func (p *Policy) addFS(r FSRule) *Error {
	if err := r.check(); err != nil {
		return err
	}
	if p.readOnly && r.Mode == Write {
		return &Error{Value: r.Pattern, Rule: "no rule of a policy with read_only: true may write",
			WayOut: "use read, or start from another policy such as defaults"}
	}
	if slices.Contains(p.fs, r) {
		return nil
	}
	if len(p.fs) >= maxRules {
		return tooMany(r.Pattern)
	}
	p.fs = append(p.fs, r)
	return nil
}

// addEndpoint adds a rule of the kind that like is of, and returns it.
func (p *Policy) addEndpoint(text string, like Endpoint) (Endpoint, *Error) {
	e, err := parseEndpoint(text)
	if err != nil {
		return e, err
	}
	e.UDP, e.Private, e.Deny = like.UDP, like.Private, like.Deny
	if e.Private && !e.isName() {
		return e, &Error{Value: text, Rule: "is an address, and private is about where a name may lead", WayOut: "allow the address without private"}
	}
	list := &p.tcp
	if e.UDP {
		list = &p.udp
	}
	own, others := &list.allow, list.deny
	if e.Deny {
		own, others = &list.deny, list.allow
	}
	switch {
	case slices.Contains(*own, e):
		return e, nil
	case e.Deny && len(*own) >= maxDenied:
		return e, &Error{Value: text, Rule: fmt.Sprintf("is one more than the %d endpoints that a policy may deny", maxDenied),
			WayOut: "deny blocks of addresses, or allow less"}
	case len(*own) >= maxRules:
		return e, tooMany(text)
	}
	for _, other := range others {
		allow, deny := e, other
		if e.Deny {
			allow, deny = other, e
		}
		if err := clash(allow, deny); err != nil {
			return e, err
		}
	}
	for _, port := range p.expose {
		if err := taken(port, e); err != nil {
			err.Value = text
			return e, err
		}
	}
	*own = append(*own, e)
	return e, nil
}

func (p *Policy) addImport(name string) *Error {
	if err := checkImport(name); err != nil {
		return err
	}
	p.importsLimited = true
	at, found := slices.BinarySearch(p.imports, name)
	if found {
		return nil
	}
	if len(p.imports) >= maxRules {
		return tooMany(name)
	}
	p.imports = slices.Insert(p.imports, at, name)
	return nil
}

func tooMany(value string) *Error {
	return &Error{Value: value, Rule: fmt.Sprintf("is one more than the %d entries that a policy may hold here", maxRules),
		WayOut: "use fewer rules, with wildcards"}
}
