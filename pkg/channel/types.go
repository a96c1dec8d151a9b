package channel

import "math/big"

// Decode and Encode map Python's values to these Go types:
//
//	None, bool, float, complex   nil, bool, float64, complex128
//	int                          int64, or *big.Int beyond it
//	str                          string (a lone surrogate as its three bytes, as WTF-8 does)
//	bytes, bytearray             []byte, ByteArray
//	list, tuple                  []any, Tuple
//	dict with str keys           map[string]any (the order is lost)
//	other dicts                  Dict
//	set, frozenset, deque        Set, Deque
//	range, slice                 Range, Slice
//	date, time, datetime         Date, Time, DateTime
//	timedelta, timezone          TimeDelta, TimeZone
//	Decimal, Fraction, UUID      Decimal, *big.Rat, UUID
//	PurePosixPath, …WindowsPath  Path
//	a builtin exception          Exception
//	numpy.ndarray                NDArray
//	a class opted in to          Instance
//
// Encode also takes int, int32, uint32, uint64 and the like as int, float32 as float.

// Tuple is a Python tuple.
type Tuple []any

// ByteArray is a Python bytearray.
type ByteArray []byte

// Pair is one entry of a Dict.
type Pair struct{ Key, Value any }

// Dict is a Python dict that a Go map cannot be: with other keys than strings,
// or of a class of its own. Entries are in the order of the wire; equal keys are
// not merged.
type Dict struct {
	Class   string // "dict", "OrderedDict", "defaultdict" or "Counter"
	Factory string // of a defaultdict: the name of a builtin class, "" for None
	Pairs   []Pair
}

// Set is a Python set or frozenset, in the order of the wire.
type Set struct {
	Frozen bool
	Items  []any
}

// Deque is a collections.deque.
type Deque struct {
	Items  []any
	MaxLen int64 // -1: none
}

// Range is a Python range. Nothing is expanded.
type Range struct{ Start, Stop, Step *big.Int }

// Slice is a Python slice; each part is nil, an int64 or a *big.Int.
type Slice struct{ Start, Stop, Step any }

// Date is a datetime.date.
type Date struct{ Year, Month, Day int }

// Time is a datetime.time.
type Time struct {
	Hour, Minute, Second, Microsecond, Fold int
	Zone                                    *TimeZone // nil: naive
}

// DateTime is a datetime.datetime.
type DateTime struct {
	Date
	Time
}

// TimeDelta is a datetime.timedelta, normalised as Python does: only Days is negative.
type TimeDelta struct{ Days, Seconds, Microseconds int }

// TimeZone is a datetime.timezone.
type TimeZone struct {
	Offset  int64 // microseconds east of UTC
	Name    string
	HasName bool
}

// Decimal is a decimal.Decimal: (-1)^Negative × Digits × 10^Exponent.
type Decimal struct {
	Negative bool
	Digits   string // of NaN: its payload
	Exponent int
	Special  string // "F" infinity, "n" NaN, "N" signalling NaN, "" a number
}

// UUID is a uuid.UUID.
type UUID [16]byte

// Path is a pathlib pure path.
type Path struct {
	Windows bool
	Path    string
}

// Exception is an exception of a builtin type, as a value.
type Exception struct {
	Type string
	Args []any
}

// NDArray is a numpy array. Data is in the order that Order says.
type NDArray struct {
	DType string // as numpy spells it: "<f8"
	Shape []int
	Order byte // 'C' or 'F'
	Data  []byte
}

// Instance is a value of a class that the caller has opted in to.
type Instance struct {
	Class string
	Args  []any
}
