package control

import (
	"fmt"

	"github.com/psi-runtime/psi/pkg/policy"
)

// Document is what a spawn or reload gives as its policy. Two that are equal mean the same.
type Document struct {
	text, source, sandbox string
	given                 bool // else the defaults are meant
}

// Document finds the document. Names are looked up here, files never: the client reads
// them with its own permissions.
func (r Request) Document() (d Document, err error) {
	given := 0
	if r.Policy != nil {
		given++
		d = Document{text: string(r.Policy), source: "policy"}
	}
	if r.PolicyText != nil {
		given++
		d = Document{text: *r.PolicyText, source: r.PolicySource}
	}
	if r.PolicyName != nil {
		given++
		var data []byte
		if data, d.source, d.sandbox, err = policy.Find(*r.PolicyName); err != nil {
			err = fmt.Errorf("%w: %w", ErrPolicy, err)
		}
		d.text = string(data)
	}
	if given > 1 {
		return d, fmt.Errorf("%w: give one of policy, policy_text and policy_name", ErrProtocol)
	}
	d.given = given == 1
	return d, err
}

// Size is what keeping the document takes, in bytes.
func (d Document) Size() int { return len(d.text) + len(d.source) + len(d.sandbox) }

// Parse reads the document.
func (d Document) Parse() (policy.Policy, error) {
	if !d.given {
		return policy.Defaults(), nil
	}
	p, err := policy.ParseSandbox([]byte(d.text), d.source, policy.Choice{Sandbox: d.sandbox})
	if err != nil {
		return p, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return p, nil
}

// Resolve makes the policy that a spawn or reload asks for; parse is Document.Parse, or
// remembers what it said.
func (r Request) Resolve(parse func(Document) (policy.Policy, error)) (p policy.Policy, err error) {
	d, err := r.Document()
	if err != nil {
		return p, err
	}
	if p, err = parse(d); err != nil || !r.ImportsLimited {
		return p, err
	}
	if p, err = p.IntersectImports(r.AllowedImports); err != nil {
		return p, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return p, nil
}

// Limits is how limits appear in replies, in the units of policy documents.
type Limits struct {
	Mem       int64   `json:"mem"`
	CPU       float64 `json:"cpu"`
	CPUMs     int64   `json:"cpu_ms"`
	WallMs    int64   `json:"wall_ms"`
	PIDs      int64   `json:"pids"`
	OpenFiles int64   `json:"open_files"`
	Tmp       int64   `json:"tmp"`
	Message   int64   `json:"message"`
	Output    int64   `json:"output"`
}

// LimitsOf are a policy's limits as replies have them.
func LimitsOf(l policy.Limits) Limits {
	return Limits{
		l.Mem, l.CPU, l.CPUTime.Milliseconds(), l.Wall.Milliseconds(),
		l.PIDs, l.OpenFiles, l.Tmp, l.Message, l.Output,
	}
}
