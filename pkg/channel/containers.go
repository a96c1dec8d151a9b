package channel

import (
	"encoding/hex"
	"math"
	"math/big"
	"slices"
	"strings"
)

func readSet(t *tagged) any {
	items := t.list(0)
	t.keys(items)
	return Set{Frozen: t.name == "frozenset", Items: items}
}

func readDict(t *tagged) any { return Dict{Class: t.name, Pairs: t.pairs(0)} }

func readDefaultDict(t *tagged) any {
	pairs := t.pairs(1)
	if t.args[0] == nil {
		return Dict{Class: t.name, Pairs: pairs}
	}
	factory := t.str(0)
	if !isFactory(factory) {
		t.fail("unknown default factory %.40q", factory)
	}
	return Dict{Class: t.name, Factory: factory, Pairs: pairs}
}

func isFactory(name string) bool {
	return slices.Contains([]string{
		"list", "dict", "set", "frozenset", "tuple", "int", "float", "complex", "bool", "str", "bytes", "bytearray",
	}, name)
}

func readDeque(t *tagged) any {
	items := t.list(0)
	if t.args[1] == nil {
		return Deque{Items: items, MaxLen: -1}
	}
	return Deque{Items: items, MaxLen: t.within(1, int64(len(items)), math.MaxInt64)}
}

func readFloat(t *tagged) any {
	switch t.str(0) {
	case "nan":
		return math.NaN()
	case "inf":
		return math.Inf(1)
	case "-inf":
		return math.Inf(-1)
	}
	t.fail("a tagged float is nan, inf or -inf")
	return nil
}

func isHex(digits string) bool { return strings.Trim(digits, "0123456789abcdef") == "" }

func readInt(t *tagged) any {
	text := t.str(0)
	digits := strings.TrimPrefix(text, "-")
	if digits == "" || !isHex(digits) {
		t.fail("a tagged int is written in hexadecimal")
		return nil
	}
	if len(digits) > t.limits.IntDigits {
		t.fail("an int of %d hexadecimal digits: the limit is %d", len(digits), t.limits.IntDigits)
		return nil
	}
	n, _ := new(big.Int).SetString(text, 16)
	return normalInt(n)
}

func normalInt(n *big.Int) any {
	if n.IsInt64() {
		return n.Int64()
	}
	return n
}

func readRange(t *tagged) any {
	r := Range{Start: t.integer(0), Stop: t.integer(1), Step: t.integer(2)}
	if r.Step.Sign() == 0 {
		t.fail("the step of a range is not 0")
	}
	return r
}

func readSlice(t *tagged) any {
	for i, part := range t.args {
		if part != nil {
			t.integer(i)
		}
	}
	return Slice{Start: t.args[0], Stop: t.args[1], Step: t.args[2]}
}

func readDecimal(t *tagged) any {
	d := Decimal{Negative: t.within(0, 0, 1) == 1, Digits: t.str(1)}
	if strings.Trim(d.Digits, "0123456789") != "" || len(d.Digits) > plainDigits {
		t.fail("the digits of a Decimal are 0 to 9, at most %d", plainDigits)
	}
	if special, ok := t.args[2].(string); ok {
		d.Special = special
		isNaN := (special == "n" || special == "N") && !strings.HasPrefix(d.Digits, "0")
		if !isNaN && (special != "F" || d.Digits != "0") {
			t.fail("a Decimal that is no number is F with digits 0, or n or N")
		}
		return d
	}
	d.Exponent = int(t.within(2, -maxExponent, maxExponent))
	if d.Digits == "" {
		t.fail("a Decimal has digits")
	}
	return d
}

func readFraction(t *tagged) any {
	numerator, denominator := t.integer(0), t.integer(1)
	if t.err == nil && (denominator.Sign() <= 0 || max(numerator.BitLen(), denominator.BitLen()) > 4*fractionDigits) {
		t.fail("a Fraction has a positive denominator, and at most %d hexadecimal digits", fractionDigits)
	}
	if t.err != nil {
		return nil
	}
	return new(big.Rat).SetFrac(numerator, denominator)
}

func readUUID(t *tagged) any {
	var id UUID
	text := t.str(0)
	if len(text) != 32 || !isHex(text) {
		t.fail("a UUID is 32 hexadecimal digits")
		return nil
	}
	hex.Decode(id[:], []byte(text)) //nolint:errcheck // the digits were just checked
	return id
}

func readException(t *tagged) any {
	e := Exception{Type: t.str(0), Args: t.list(1)}
	if t.err == nil && !slices.Contains(exceptionNames(), e.Type) {
		t.fail("%.40q is not a builtin exception", e.Type)
	}
	return e
}

// exceptionNames are the builtin exceptions of every Python from 3.9 on.
func exceptionNames() []string {
	return strings.Fields(`ArithmeticError AssertionError AttributeError BaseException BlockingIOError BrokenPipeError
		BufferError BytesWarning ChildProcessError ConnectionAbortedError ConnectionError
		ConnectionRefusedError ConnectionResetError DeprecationWarning EOFError Exception FileExistsError
		FileNotFoundError FloatingPointError FutureWarning GeneratorExit ImportError ImportWarning
		IndentationError IndexError InterruptedError IsADirectoryError KeyError KeyboardInterrupt
		LookupError MemoryError ModuleNotFoundError NameError NotADirectoryError NotImplementedError
		OSError OverflowError PendingDeprecationWarning PermissionError ProcessLookupError RecursionError
		ReferenceError ResourceWarning RuntimeError RuntimeWarning StopAsyncIteration StopIteration
		SyntaxError SyntaxWarning SystemError SystemExit TabError TimeoutError TypeError UnboundLocalError
		UnicodeDecodeError UnicodeEncodeError UnicodeError UnicodeTranslateError UnicodeWarning
		UserWarning ValueError Warning ZeroDivisionError`)
}

func readClass(t *tagged) any {
	i := Instance{Class: t.str(0), Args: t.list(1)}
	if t.err == nil && (t.classes == nil || !t.classes(i.Class)) {
		t.err = &ValueError{Rule: "a value of class " + i.Class[:min(len(i.Class), 80)] + ": it was not opted in to", class: true}
	}
	return i
}
