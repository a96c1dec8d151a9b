package control

import (
	"fmt"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Resolve makes the policy that a spawn or reload asks for. Names are looked up here,
// files never: the client reads them with its own permissions.
func (r Request) Resolve() (p policy.Policy, err error) {
	given := 0
	for _, is := range []bool{r.Policy != nil, r.PolicyText != nil, r.PolicyName != nil} {
		if is {
			given++
		}
	}
	switch {
	case given > 1:
		return p, fmt.Errorf("%w: give one of policy, policy_text and policy_name", ErrProtocol)
	case r.Policy != nil:
		p, err = policy.Parse(r.Policy, "policy")
	case r.PolicyText != nil:
		p, err = policy.Parse([]byte(*r.PolicyText), r.PolicySource)
	case r.PolicyName != nil:
		p, err = policy.Lookup(*r.PolicyName)
	default:
		p = policy.Defaults()
	}
	if err == nil && r.ImportsLimited {
		p, err = p.IntersectImports(r.AllowedImports)
	}
	if err != nil {
		return p, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return p, nil
}

// LimitsOf is how limits appear in replies, in the units of policy documents.
func LimitsOf(l policy.Limits) map[string]any {
	return map[string]any{
		"mem": l.Mem, "cpu": l.CPU, "cpu_ms": l.CPUTime.Milliseconds(), "wall_ms": l.Wall.Milliseconds(),
		"pids": l.PIDs, "open_files": l.OpenFiles, "tmp": l.Tmp, "message": l.Message, "output": l.Output,
	}
}
