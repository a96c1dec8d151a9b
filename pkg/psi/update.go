package psi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/psi-runtime/psi/pkg/policy"
)

// UpdatePolicy puts another policy into force in the running guest: all of it, or with an
// error nothing. What a running guest cannot be given, and files that are to be taken away
// while it has them open, are a *PolicyError; the token is the one of Protect, or "".
func (sb *Sandbox) UpdatePolicy(ctx context.Context, p Policy, token string) error {
	_, err := sb.reload(ctx, p, token, false)
	return err
}

// Difference is something that one of two policies permits and the other does not.
type Difference = policy.Difference

// TryPolicy changes nothing, and returns what UpdatePolicy would: what the guest could do
// then, and what no more.
func (sb *Sandbox) TryPolicy(ctx context.Context, p Policy, token string) (permits, forbids []Difference, err error) {
	ok, err := sb.reload(ctx, p, token, true)
	if err != nil {
		return nil, nil, err
	}
	var reply struct {
		Changes []struct {
			Permits []Difference `json:"permits"`
			Forbids []Difference `json:"forbids"`
		} `json:"changes"`
	}
	if err := json.Unmarshal(ok, &reply); err != nil || len(reply.Changes) != 1 {
		return nil, nil, &SandboxError{Sandbox: sb.name, Text: fmt.Sprintf("the supervisor's answer to a dry run is not one: %v", err)}
	}
	return reply.Changes[0].Permits, reply.Changes[0].Forbids, nil
}

func (sb *Sandbox) reload(ctx context.Context, p Policy, token string, dryRun bool) (json.RawMessage, error) {
	if p.err != nil {
		return nil, p.err
	}
	fields := maps.Clone(p.fields)
	if fields == nil {
		fields = map[string]any{"policy_name": "defaults"}
	}
	if token != "" {
		fields["token"] = token
	}
	if dryRun {
		fields["dry_run"] = true
	}
	return sb.ask(ctx, "reload", fields)
}

// Protect has every later UpdatePolicy of this client's sandboxes need the token, of at
// least 16 random characters. It cannot be changed: another one is a *PolicyAuthError.
func (c *Client) Protect(ctx context.Context, token string) error {
	_, err := c.link.ask(ctx, "", "protect", map[string]any{"token": token})
	return err
}
