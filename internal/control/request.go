package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Version is that of the control protocol, as hello says it.
const Version = 2

// Request is one decoded request. Which fields are set depends on Op; Decode
// has already refused every other key.
type Request struct {
	ID uint64
	Op string

	// hello
	Version int
	Client  string
	Watch   bool // also push the events of the uid's other connections

	// spawn and reload
	Name           string
	Policy         json.RawMessage // a policy document; nil when one of the next two is given
	PolicyText     *string
	PolicySource   string // where PolicyText came from, for error messages
	PolicyName     *string
	AllowedImports []string
	ImportsLimited bool // AllowedImports was given; an empty list allows none
	Rootfs         string

	// reload
	Guests []string // more than one guest: all of them get the policy, or none
	DryRun bool     // only say what would change

	Token string // of reload and protect

	// everything about one guest
	Guest   string
	Timeout time.Duration
	Error   string
	Port    uint16 // of connect: one that the guest listens at
}

// Keys names the keys an operation takes beside id and op.
func Keys(op string) (keys []string, known bool) {
	policyKeys := []string{"policy", "policy_text", "policy_source", "policy_name"}
	switch op {
	case "hello":
		return []string{"version", "client", "watch"}, true
	case "spawn":
		return append(policyKeys, "name", "allowed_imports", "rootfs"), true
	case "close":
		return []string{"guest", "timeout"}, true
	case "connect":
		return []string{"guest", "port", "timeout"}, true
	case "kill", "stats", "find":
		return []string{"guest"}, true
	case "reload":
		return append(policyKeys, "guest", "guests", "allowed_imports", "token", "dry_run"), true
	case "protect":
		return []string{"token"}, true
	case "report":
		return []string{"guest", "error"}, true
	case "list":
		return nil, true
	}
	return nil, false
}

// Decode reads one request. The request returned with an error carries the id
// when there was one, so that the error can be answered.
func Decode(data []byte) (Request, error) {
	var r Request
	fields, err := decodeObject(data)
	if err != nil {
		return r, err
	}
	if err := take(fields, "id", &r.ID); err != nil {
		return r, err
	}
	if r.ID == 0 {
		return r, fmt.Errorf("%w: key \"id\" is 0; ids of requests begin at 1", ErrProtocol)
	}
	if err := take(fields, "op", &r.Op); err != nil {
		return r, err
	}
	keys, known := Keys(r.Op)
	if !known {
		return r, fmt.Errorf("%w: unknown op %q; known are hello, spawn, connect, close, kill, stats, reload, find, protect, report, list", ErrProtocol, r.Op)
	}
	for key := range fields {
		if key != "id" && key != "op" && !slices.Contains(keys, key) {
			return r, fmt.Errorf("%w: op %q takes no key %q; it takes %s", ErrProtocol, r.Op, key, strings.Join(keys, ", "))
		}
	}
	return r, r.fill(fields)
}

// fill takes the operation's own keys.
func (r *Request) fill(fields map[string]json.RawMessage) error {
	timeout := 0.2
	var errs []error
	for key := range fields {
		if into := r.field(key, &timeout); into != nil {
			errs = append(errs, take(fields, key, into))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if raw, given := fields["policy"]; given && !isNull(raw) {
		r.Policy = raw
	}
	r.ImportsLimited = r.AllowedImports != nil
	if timeout < 0 || timeout > 3600 {
		return fmt.Errorf("%w: timeout %v is not between 0 and 3600 seconds", ErrProtocol, timeout)
	}
	r.Timeout = time.Duration(timeout * float64(time.Second))
	switch {
	case r.Op == "spawn":
		return checkName(r.Name)
	case r.Op == "connect" && r.Port == 0:
		return fmt.Errorf("%w: connect needs a port from 1 to 65535", ErrProtocol)
	}
	return nil
}

// field is what a key is decoded into; nil for those that are looked at elsewhere.
func (r *Request) field(key string, timeout *float64) any {
	switch key {
	case "version":
		return &r.Version
	case "client":
		return &r.Client
	case "watch":
		return &r.Watch
	case "name":
		return &r.Name
	case "policy_text":
		return &r.PolicyText
	case "policy_source":
		return &r.PolicySource
	case "policy_name":
		return &r.PolicyName
	case "allowed_imports":
		return &r.AllowedImports
	case "rootfs":
		return &r.Rootfs
	case "guest":
		return &r.Guest
	case "guests":
		return &r.Guests
	case "timeout":
		return timeout
	case "error":
		return &r.Error
	case "token":
		return &r.Token
	case "dry_run":
		return &r.DryRun
	case "port":
		return &r.Port
	}
	return nil
}

// checkName holds the rule for guest names: a label for people, never a path.
func checkName(name string) error {
	count := 0
	for _, c := range name {
		if c == utf8.RuneError || !strings.ContainsRune("._-", c) && !unicode.IsLetter(c) && !unicode.IsDigit(c) {
			return fmt.Errorf("%w: guest name %q holds %q; letters, digits, '.', '_' and '-' are allowed", ErrProtocol, name, c)
		}
		count++
	}
	if count < 1 || count > 64 {
		return fmt.Errorf("%w: guest name %q has %d characters; 1 to 64 are allowed", ErrProtocol, name, count)
	}
	return nil
}

func isNull(raw json.RawMessage) bool { return bytes.Equal(raw, []byte("null")) }

// take decodes a required key. Null stands for the zero value of what may be absent.
func take(fields map[string]json.RawMessage, key string, into any) error {
	raw, given := fields[key]
	if !given {
		return fmt.Errorf("%w: the request has no key %q", ErrProtocol, key)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%w: key %q: %s", ErrProtocol, key, strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// decodeObject splits a JSON object into its keys. encoding/json alone would let a
// key stand twice and, in a struct, would match keys in any case.
func decodeObject(data []byte) (fields map[string]json.RawMessage, err error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: the request is not UTF-8", ErrProtocol)
	}
	var other *json.UnmarshalTypeError
	switch err = json.Unmarshal(data, &fields); {
	case errors.As(err, &other):
		err = fmt.Errorf("it is of type %s", other.Value)
	case err == nil && fields == nil:
		err = errors.New("it is null")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the request is not a JSON object: %w", ErrProtocol, err)
	}
	if countKeys(data) != len(fields) {
		return nil, fmt.Errorf("%w: a key of the request is given twice", ErrProtocol)
	}
	return fields, nil
}

// countKeys counts the keys of a JSON object, not those of objects in it: a colon follows
// each, and in valid JSON there is no other outside of strings.
func countKeys(object []byte) (keys int) {
	depth := 0
	for i := 0; i < len(object); i++ {
		switch object[i] {
		case '"':
			for i++; object[i] != '"'; i++ {
				if object[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ':':
			if depth == 1 {
				keys++
			}
		}
	}
	return keys
}
