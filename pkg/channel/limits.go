package channel

import (
	"errors"
	"fmt"
)

// Limits bounds what one payload may cost the process that decodes it. A zero
// field means the default.
type Limits struct {
	Message    int // bytes of the payload; default 64 MiB + 64 KiB
	Objects    int // JSON values and keys, plus the weight of tagged values; default 5,000,000
	Depth      int // nesting of the JSON text, a tuple takes three levels; default 200
	KeyDepth   int // nesting of tuples and frozensets inside one key or set member; default 16
	KeySize    int // values inside one key or set member; default 1024
	IntDigits  int // hexadecimal digits of an int; default 262,144
	Collisions int // keys of one container with the same hash in Python; default 64
}

func (l Limits) withDefaults() Limits {
	for field, value := range map[*int]int{
		&l.Message: 64<<20 + 64<<10, &l.Objects: 5_000_000, &l.Depth: 200,
		&l.KeyDepth: 16, &l.KeySize: 1024, &l.IntDigits: 1 << 18, &l.Collisions: 64,
	} {
		if *field == 0 {
			*field = value
		}
	}
	return l
}

const (
	plainDigits    = 4300    // of a decimal int in JSON, and of a Decimal
	fractionDigits = 2048    // hexadecimal, of each part of a Fraction
	maxExponent    = 999_999 // of a Decimal, either way
)

// ErrValue is what every [ValueError] is.
var ErrValue = errors.New("value error")

// ErrClass is what the [ValueError] of a well-formed value of a class that the
// caller has not opted in to is, besides ErrValue.
var ErrClass = errors.New("class not accepted")

// ValueError says which rule of the encoding a payload breaks, or why a Go value
// has no encoding.
type ValueError struct {
	Rule  string
	class bool
}

func (e *ValueError) Error() string { return "value error: " + e.Rule }

// Is makes errors.Is work with ErrValue and ErrClass.
func (e *ValueError) Is(target error) bool {
	return target == ErrValue || (e.class && target == ErrClass)
}

func invalid(format string, args ...any) error {
	return &ValueError{Rule: fmt.Sprintf(format, args...)}
}
