package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"slices"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/attend"
	"github.com/psi-runtime/psi/pkg/policy"
)

// denial is a DENIED event, as far as a policy can answer it. The fields stand in
// the event itself or in its details.
type denial struct {
	Kind    string      `json:"kind"`    // fs, net, bind or import
	Path    string      `json:"path"`    // of fs
	Access  string      `json:"access"`  // of fs: read or write; empty is read
	Address string      `json:"address"` // of net: host:port, or the host alone beside port
	Name    string      `json:"name"`    // of net: the name that the guest connected to, if there was one
	Port    json.Number `json:"port"`    // of net
	// Protocol of net: tcp or udp; none is tcp. That of a socket is a number.
	Protocol any     `json:"protocol"`
	Reason   string  `json:"reason"` // of net, if the proxy denied it: rebound
	Module   string  `json:"module"` // of import
	Details  *denial `json:"details"`
}

var errNothingDenied = errors.New("the event says nothing that a policy could allow")

// maxEvent bounds one event, in bytes: a path has at most 4 KiB.
const maxEvent = 64 << 10

// readDenial reads one event, and only one.
func readDenial(from io.Reader) (denial, error) {
	data, err := io.ReadAll(io.LimitReader(from, maxEvent+1))
	if err != nil {
		return denial{}, fmt.Errorf("reading event: %w", err)
	}
	if len(data) > maxEvent {
		return denial{}, fmt.Errorf("reading event: it is larger than %d bytes: give one event", maxEvent)
	}
	var d denial
	if err := json.Unmarshal(data, &d); err != nil {
		return denial{}, fmt.Errorf("reading event: it is not one JSON object: %w", err)
	}
	if d.Details != nil {
		d = *d.Details
	}
	if d.Kind != "" {
		return d, nil
	}
	switch {
	case d.Path != "":
		d.Kind = "fs"
	case d.Address != "" || d.Name != "":
		d.Kind = "net"
	case d.Module != "":
		d.Kind = "import"
	}
	return d, nil
}

// allowEvent prints the line of policy that allows what an event says was denied.
func allowEvent(c *cli.Context, p policy.Policy) error {
	d, err := readDenial(c.App.Reader)
	if err != nil {
		return trouble(err)
	}
	line, err := d.allowingLine(p)
	if err != nil {
		return trouble(err)
	}
	fmt.Fprintln(c.App.Writer, line)
	return nil
}

// allowingLine returns the line. It fails when no line can allow it: because a
// rule denies it, because no policy may, or because it is allowed.
func (d denial) allowingLine(p policy.Policy) (string, error) {
	switch d.Kind {
	case "fs":
		return d.fsLine(p)
	case "net":
		return d.netLine(p)
	case "bind":
		return d.bindLine(p)
	case "import":
		if allowed, _ := p.DecideImport(d.Module); allowed {
			return "", fmt.Errorf("the policy allows import:%s already: the event is of another policy", d.Module)
		}
		if _, err := p.AllowImport(d.Module); err != nil {
			return "", err
		}
		return fmt.Sprintf("imports: [%s]", d.Module), nil
	}
	return "", fmt.Errorf("%w: its kind is %q: fs, net, bind and import have rules", errNothingDenied, d.Kind)
}

func (d denial) fsLine(p policy.Policy) (string, error) {
	mode, need := policy.Read, policy.MayRead
	switch d.Access {
	case "", "read":
	case "write":
		mode, need = policy.Write, policy.MayWrite
	default:
		return "", fmt.Errorf("%w: its access is %q: read and write have rules", errNothingDenied, d.Access)
	}
	if !path.IsAbs(d.Path) || path.Clean(d.Path) != d.Path {
		return "", fmt.Errorf("%w: its path %q is not absolute and clean", errNothingDenied, d.Path)
	}
	access, deciding := policy.DecideFS(p.FS(), d.Path)
	switch {
	case access == policy.Denied:
		return "", fmt.Errorf("no line allows %q: {deny: %q} wins over every other rule: remove or narrow that one", d.Path, deciding[0].Pattern)
	case access&need != 0:
		return "", fmt.Errorf("the policy allows fs:%s already: the event is of another policy, or the file came after the guest", d.Path)
	}
	pattern := policy.QuotePattern(d.Path)
	if _, err := p.AllowFS(pattern, mode); err != nil {
		return "", err
	}
	quoted, err := json.Marshal(pattern)
	return fmt.Sprintf("fs: [{%s: %s}]", mode, quoted), err
}

func (d denial) netLine(p policy.Policy) (string, error) {
	host := d.Address
	if d.Name != "" {
		host = d.Name
		if at, err := netip.ParseAddrPort(d.Address); err == nil && d.Port == "" {
			d.Port = json.Number(strconv.Itoa(int(at.Port())))
		}
	}
	text := host
	if d.Port != "" {
		text = joinPort(host, d.Port.String())
	}
	if text == "" {
		return "", fmt.Errorf("%w: it has no address", errNothingDenied)
	}
	e, err := policy.ParseEndpoint(text)
	if err != nil {
		return "", err
	}
	key, rules, allow := "tcp", p.TCPRules, p.AllowTCP
	switch d.Protocol {
	case nil, "tcp":
	case "udp":
		key, rules, allow = "udp", p.UDPRules, p.AllowUDP
	default:
		return "", fmt.Errorf("%w: its protocol is %v: tcp and udp have rules", errNothingDenied, d.Protocol)
	}
	allowed, denied := rules()
	a, err := explainNet(key, allowed, denied, key+":"+text, text)
	switch {
	case err != nil:
		return "", err
	case a.Allowed && d.Reason == attend.Rebound:
		if allow = p.AllowPrivateTCP; key == "udp" {
			allow = p.AllowPrivateUDP
		}
		if _, err := allow(e.String()); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s: [{allow: %q, private: true}]", key, e.String()), nil
	case a.Allowed:
		return "", fmt.Errorf("the policy allows %s:%s already: the event is of another policy", key, e)
	case len(a.Rules) > 0:
		return "", fmt.Errorf("no line allows %s: %s wins over every other rule: remove or narrow that one", e, a.Rules[0])
	}
	if _, err := allow(e.String()); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: [%q]", key, e.String()), nil
}

// bindLine exposes the port that the guest wanted to listen at.
func (d denial) bindLine(p policy.Policy) (string, error) {
	at, err := netip.ParseAddrPort(d.Address)
	if err != nil {
		return "", fmt.Errorf("%w: its address %q is not address:port", errNothingDenied, d.Address)
	}
	host := at.Addr().Unmap()
	switch _, err := p.ExposePort(int(at.Port())); {
	case d.Protocol == "udp":
		return "", fmt.Errorf("%w: a guest has no port of its own for datagrams", errNothingDenied)
	case err != nil:
		return "", err
	case slices.Contains(p.Expose(), at.Port()):
		return "", fmt.Errorf("the policy exposes port %d already: a guest listens there at 127.0.0.1, ::1 or every address, and the event says %s", at.Port(), host)
	}
	return fmt.Sprintf("expose: [%d]", at.Port()), nil
}

// joinPort writes host and port as an endpoint, unless the host has its port.
func joinPort(host, port string) string {
	if _, err := policy.ParseEndpoint(host); err == nil {
		return host
	}
	if e, err := policy.ParseEndpoint("[" + host + "]:" + port); err == nil {
		return e.String()
	}
	return host + ":" + port
}
