package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/psi-runtime/psi/internal/endpoint"
	"github.com/psi-runtime/psi/internal/enforce"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

func policyExplainCommand() *cli.Command {
	return &cli.Command{
		Name: "explain", Usage: "say whether a policy permits something, by which rule and by which mechanism",
		ArgsUsage: "NAME|FILE[#SANDBOX] fs:/PATH|net:HOST:PORT|udp:HOST:PORT|expose:PORT|import:MODULE|-",
		Description: "With - a denial event is read from stdin as JSON, and the one line of policy that would allow it is printed. " +
			"The exit code is 0 when it is permitted, 1 when it is not, 2 when that cannot be said.",
		Flags: []cli.Flag{varFlag(), jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := policyArgs(c, 2, 2); err != nil {
				return trouble(err)
			}
			if c.Args().First() == "-" && c.Args().Get(1) == "-" {
				return trouble(errors.New("- stands for the policy and for the event: give one of them as a file"))
			}
			e, err := effectivePolicy(c, c.Args().First())
			if err != nil {
				return trouble(err)
			}
			if c.Args().Get(1) == "-" {
				return allowEvent(c, e.Policy)
			}
			answer, err := explainTarget(e.Policy, c.Args().Get(1))
			if err != nil {
				return trouble(err)
			}
			return answer.print(c)
		},
	}
}

// answer is what explain says.
type answer struct {
	Target    string   `json:"target"`
	Allowed   bool     `json:"allowed"`
	Access    string   `json:"access,omitempty"` // of a path
	Rules     []string `json:"rules"`            // those that decide, as documents write them
	Mechanism string   `json:"mechanism"`        // what holds the decision on this host
}

func (a answer) print(c *cli.Context) error {
	if c.Bool("json") {
		if err := printJSON(c, a); err != nil {
			return trouble(err)
		}
	} else {
		verdict := "denied"
		if a.Allowed {
			verdict = "allowed"
			if a.Access != "" {
				verdict += " to " + a.Access
			}
		}
		rules := "no rule, and what no rule allows is denied"
		if len(a.Rules) > 0 {
			rules = strings.Join(a.Rules, ", ")
		}
		fmt.Fprintf(c.App.Writer, "%s: %s\n  by rule:      %s\n  by mechanism: %s\n", oneLine(a.Target), verdict, oneLine(rules), oneLine(a.Mechanism))
	}
	if !a.Allowed {
		return exitStatus(codeFailure)
	}
	return nil
}

func explainTarget(p policy.Policy, target string) (answer, error) {
	kind, value, _ := strings.Cut(target, ":")
	switch kind {
	case "fs":
		return explainFS(p, target, value)
	case "net", "tcp":
		allowed, denied := p.TCPRules()
		return explainNet("tcp", allowed, denied, target, value)
	case "udp":
		allowed, denied := p.UDPRules()
		return explainNet("udp", allowed, denied, target, value)
	case "expose":
		return explainExpose(p, target, value)
	case "import":
		return explainImport(p, target, value)
	}
	return answer{}, fmt.Errorf("%q is nothing to explain: write fs:/path, net:host:port, udp:host:port, expose:port or import:module", target)
}

func explainFS(p policy.Policy, target, file string) (answer, error) {
	if !path.IsAbs(file) || path.Clean(file) != file {
		return answer{}, fmt.Errorf("%q is not an absolute, clean path: write it from / on, without \"..\" and \".\" in it", file)
	}
	access, deciding := policy.DecideFS(p.FS(), file)
	a := answer{Target: target, Rules: []string{}, Allowed: access&policy.MayRead != 0}
	for _, r := range deciding {
		a.Rules = append(a.Rules, fmt.Sprintf("fs: {%s: %q}", r.Mode, r.Pattern))
	}
	switch {
	case a.Allowed:
		a.Access = access.String()
		a.Mechanism = shownBy(p, file)
	case access == policy.Denied:
		a.Mechanism = "mounts: it is left out of what the guest is shown"
	case policy.CheckDir(file) != nil:
		a.Mechanism = "mounts: of the host nothing is shown there; the guest finds what its own root has"
	default:
		a.Mechanism = "mounts: nothing of the host is mounted there"
	}
	return a, nil
}

// shownBy says which mount of this host shows a permitted path.
func shownBy(p policy.Policy, file string) string {
	view, err := bundle.PlanView(p)
	if err != nil {
		return "none on this host, so a guest would not start: " + err.Error()
	}
	for _, m := range slices.Backward(view.Mounts) {
		how := "read-only"
		if m.Write {
			how = "writable"
		}
		if m.Dest == file {
			return fmt.Sprintf("a %s bind mount of %s", how, m.Source)
		}
		if m.Dir && strings.HasPrefix(file, m.Dest+"/") {
			return fmt.Sprintf("a %s bind mount of the directory %s", how, m.Source)
		}
	}
	if slices.ContainsFunc(view.Dirs, func(dir string) bool { return dir == file || strings.HasPrefix(dir, file+"/") }) ||
		slices.ContainsFunc(view.Mounts, func(m bundle.ViewMount) bool { return strings.HasPrefix(m.Dest, file+"/") }) {
		return "an empty directory of the guest's root, in which what matches is mounted"
	}
	return "file by file bind mounts of what exists when a guest starts; there is no such file now"
}

// explainNet explains an endpoint by the rules of key, which is tcp or udp.
func explainNet(key string, allowed, denied []policy.Endpoint, target, text string) (answer, error) {
	e, err := policy.ParseEndpoint(text)
	if err != nil {
		return answer{}, err
	}
	block, isAddress := e.Prefix()
	if isAddress && !block.IsSingleIP() {
		return answer{}, fmt.Errorf("%q is a block of addresses: give one address or name", text)
	}
	if e.Last != 0 || e.IsWildcard() {
		return answer{}, fmt.Errorf("%q is a range of ports or a wildcard: give one name or address and one port", text)
	}
	a := answer{Target: target, Rules: []string{}}
	for _, rule := range denied {
		prefix, ok := rule.Prefix()
		first, last := rule.Ports()
		covers := ok && isAddress && prefix.Contains(block.Addr()) || !isAddress && rule.CoversName(e.Host)
		if covers && first <= e.Port && e.Port <= last {
			a.Rules = append(a.Rules, fmt.Sprintf("%s: {deny: %q}", key, rule))
		}
	}
	a.Mechanism = "network namespace: there is no route and no listener for it; " + connectPrograms()
	if len(a.Rules) > 0 {
		return a, nil
	}
	private := false
	for _, rule := range allowed {
		rule.UDP = false // the question is of one protocol
		list, err := endpoint.Compile([]policy.Endpoint{rule})
		if err != nil {
			return answer{}, err
		}
		if isAddress && list.AllowsAddr(block.Addr(), e.Port) || !isAddress && list.AllowsName(e.Host, e.Port) {
			text := fmt.Sprintf("%s: %q", key, rule)
			if rule.Private {
				text = fmt.Sprintf("%s: {allow: %q, private: true}", key, rule)
			}
			a.Rules = append(a.Rules, text)
			private = private || rule.Private
		}
	}
	if a.Allowed = len(a.Rules) > 0; a.Allowed {
		a.Mechanism = "network namespace: a listener in it that the host connects onward; " + connectPrograms()
		if !isAddress && !private {
			a.Mechanism += "; the name is resolved on the host, and refused where it leads to private addresses"
		}
	}
	return a, nil
}

// connectPrograms says whether this host loads the programs that hold the list
// of endpoints a second time.
func connectPrograms() string { return cgroupPrograms("cgroup/connect", "hold the same list") }

// bindPrograms says the same of those that hold the list of exposed ports.
func bindPrograms() string { return cgroupPrograms("cgroup/bind", "hold the list of ports") }

func cgroupPrograms(which, does string) string {
	programs, err := enforce.Load()
	if err != nil {
		return "not by " + which + " programs, which this host does not load: " + err.Error()
	}
	if err := programs.Close(); err != nil {
		return which + " programs (" + err.Error() + ")"
	}
	return which + " programs " + does
}

func explainExpose(p policy.Policy, target, text string) (answer, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return answer{}, fmt.Errorf("%q is not a port: write a number from 1 to 65535", text)
	}
	a := answer{Target: target, Rules: []string{}, Allowed: slices.Contains(p.Expose(), uint16(port)), Mechanism: bindPrograms()}
	if a.Allowed {
		a.Rules = append(a.Rules, fmt.Sprintf("expose: [%d]", port))
		a.Mechanism += "; the host connects from a socket in the guest's network namespace"
	}
	if len(p.Expose()) == 0 {
		a.Mechanism = "seccomp: the guest cannot bind and listen; " + a.Mechanism
	}
	return a, nil
}

func explainImport(p policy.Policy, target, module string) (answer, error) {
	if _, err := policy.Defaults().AllowImport(module); err != nil {
		return answer{}, err
	}
	allowed, by := p.DecideImport(module)
	a := answer{Target: target, Allowed: allowed, Rules: []string{},
		Mechanism: "the guest's root, in which the files of other modules are not, and the import hook of its agent, which says so"}
	switch {
	case by != "":
		a.Rules = append(a.Rules, fmt.Sprintf("imports: [%s]", by))
	case allowed:
		a.Rules = append(a.Rules, "there is no imports key, so every module of the root may be imported")
		a.Mechanism = "none: nothing is forbidden"
	}
	return a, nil
}

// syntheticNames gives what the table of endpoints needs to know about names,
// and the way back.
func syntheticNames(synthetic map[string]netip.Addr) (addresses map[string][]netip.Addr, names map[netip.Addr]string) {
	addresses, names = make(map[string][]netip.Addr), make(map[netip.Addr]string)
	for name, addr := range synthetic {
		addresses[name], names[addr] = []netip.Addr{addr}, name
	}
	return addresses, names
}
