package channel

import (
	"encoding/json"
	"fmt"
)

// GuestReady is what a READY frame says.
type GuestReady struct {
	Python   string `json:"python"` // "3.11.2"
	PID      int    `json:"pid"`    // in the guest's own pid namespace
	Protocol int    `json:"protocol"`
	Memfd    bool   `json:"memfd"` // it takes large values as files in memory
}

// ParseReady reads the payload of a READY frame. A version of the protocol that
// this package does not speak is a [ProtocolError].
func ParseReady(payload []byte) (GuestReady, error) {
	var ready GuestReady
	if err := json.Unmarshal(payload, &ready); err != nil {
		return GuestReady{}, broken("READY: %v", err)
	}
	if ready.Protocol != Protocol {
		return GuestReady{}, broken("the guest speaks version %d of the protocol: rebuild its rootfs, version %d is spoken here", ready.Protocol, Protocol)
	}
	return ready, nil
}

// GuestError is what an ERROR frame says: the exception that ended a request.
// Everything in it was written by the guest.
type GuestError struct {
	Type      string // "ValueError"
	Module    string // "builtins"
	QualName  string
	Message   string // str() of the exception
	Traceback string // as Python prints it
	Args      []any  // nil if they could not cross
}

func (e *GuestError) Error() string {
	if e.Message == "" {
		return e.Type
	}
	return e.Type + ": " + e.Message
}

// ParseError reads the payload of an ERROR frame.
func ParseError(payload []byte) (*GuestError, error) {
	value, err := Decode(append([]byte{'J'}, payload...), DecodeOptions{Classes: func(string) bool { return true }})
	if err != nil {
		return nil, fmt.Errorf("%w: ERROR: %w", &ProtocolError{Rule: "an ERROR frame that cannot be read"}, err)
	}
	fields, ok := value.(map[string]any)
	if !ok {
		return nil, broken("an ERROR frame that is no JSON object")
	}
	found := &GuestError{}
	for name, field := range map[string]*string{
		"type": &found.Type, "module": &found.Module, "qualname": &found.QualName,
		"message": &found.Message, "traceback": &found.Traceback,
	} {
		if *field, ok = fields[name].(string); !ok {
			return nil, broken("an ERROR frame without %s", name)
		}
	}
	found.Args, _ = fields["args"].([]any)
	return found, nil
}

// ParseNotice reads the payload of a NOTICE frame.
func ParseNotice(payload []byte) (map[string]any, error) {
	var notice map[string]any
	if err := json.Unmarshal(payload, &notice); err != nil {
		return nil, broken("NOTICE: %v", err)
	}
	return notice, nil
}
