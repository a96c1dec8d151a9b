package channel

import (
	"errors"
	"math"
	"math/big"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func TestValuesComeBack(t *testing.T) {
	zone := &TimeZone{Offset: -3_600_000_000, Name: "X", HasName: true}
	for _, value := range []any{
		nil, true, int64(-5), int64(math.MinInt64), new(big.Int).Lsh(big.NewInt(-3), 200), 1.0, 1e300, -0.25, math.Inf(-1),
		"", "é\U0001f600\x00\n\"\\", "\xed\xa0\x80lone", []byte{}, []byte("raw"), ByteArray("x"),
		[]any{}, []any{[]any{nil}}, Tuple{}, Tuple{int64(1), Tuple{"a"}}, map[string]any{"a": []any{1.5}},
		Dict{Class: "dict", Pairs: []Pair{{int64(1), "x"}, {Tuple{"k"}, nil}}}, Dict{Class: "defaultdict", Factory: "list", Pairs: []Pair{}},
		Set{Items: []any{int64(1), "a"}}, Set{Frozen: true, Items: []any{}}, Deque{Items: []any{int64(1)}, MaxLen: 5},
		Range{big.NewInt(0), new(big.Int).Lsh(big.NewInt(1), 90), big.NewInt(-1)}, Slice{nil, int64(3), nil},
		Date{2024, 2, 29}, Time{1, 2, 3, 4, 1, zone}, DateTime{Date{1, 1, 1}, Time{Zone: zone}}, TimeDelta{-1, 2, 3}, *zone,
		Decimal{Digits: "120", Exponent: -3, Negative: true}, Decimal{Digits: "0", Special: "F"}, big.NewRat(-2, 3),
		UUID{15: 9}, Path{Path: "/a"}, Path{Windows: true, Path: `C:\`}, Exception{"OSError", []any{int64(2), "no"}},
		NDArray{"<f8", []int{2, 1}, 'C', make([]byte, 16)}, Instance{"Point", []any{int64(1)}}, complex(1, math.Inf(1)),
		[]any{[]byte("a"), []byte("bc"), map[string]any{"x": ByteArray("d")}},
	} {
		payload, err := Encode(value, 0)
		if err != nil {
			t.Errorf("%#v: %v", value, err)
			continue
		}
		got, err := Decode(payload, DecodeOptions{Classes: func(string) bool { return true }})
		if err != nil || !reflect.DeepEqual(got, value) {
			t.Errorf("%#v became %#v (%v) by %q", value, got, err, payload)
		}
	}
}

func TestEncodeWidens(t *testing.T) {
	for _, value := range []any{5, int8(5), int16(5), int32(5), uint(5), uint8(5), uint16(5), uint32(5), uint64(5)} {
		if payload, err := Encode(value, 0); err != nil || string(payload) != "J5" {
			t.Errorf("%T: %q, %v", value, payload, err)
		}
	}
	if payload, err := Encode(map[string]any{"$": 1}, 0); err != nil || string(payload) != `J{"$":["dict",[["$",1]]]}` {
		t.Errorf("a map with the key $: %q, %v", payload, err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	cycle := []any{nil}
	cycle[0] = cycle
	for name, value := range map[string]any{
		"struct": struct{}{}, "channel": make(chan int), "cycle": cycle, "not utf-8": "\xff", "nil int": (*big.Int)(nil),
		"set of lists": Set{Items: []any{[]any{}}}, "bad date": Date{2023, 2, 29}, "bad array": NDArray{"|O", nil, 'C', nil},
		"too large": strings.Repeat("x", 64<<20),
	} {
		if payload, err := Encode(value, 0); !errors.Is(err, ErrValue) {
			t.Errorf("%s: %.80q, %v", name, payload, err)
		}
	}
}

func TestClassesAreOptedIn(t *testing.T) {
	payload := []byte(`J{"$":["class","Point",[1,2]]}`)
	if _, err := Decode(payload, DecodeOptions{}); !errors.Is(err, ErrClass) || !errors.Is(err, ErrValue) {
		t.Errorf("not opted in: %v", err)
	}
	if _, err := Decode([]byte("J["), DecodeOptions{}); errors.Is(err, ErrClass) {
		t.Errorf("malformed: %v", err)
	}
}

// The killers of pickle, as this encoding could say them, at full size: each is
// refused or harmless, in bounded memory.
func TestKillers(t *testing.T) {
	for name, payload := range map[string]string{
		"lists":        "J[" + strings.Repeat("[],", 20<<20) + "1]",
		"deques":       "J[" + strings.Repeat(`{"$":["deque",[],null]},`, 2<<20) + "1]",
		"key":          `J{"$":["dict",[[` + strings.Repeat(`{"$":["tuple",[`, 70_000) + strings.Repeat("]]}", 70_000) + ",1]]]}",
		"unclosed":     "J" + strings.Repeat("[", 64<<20),
		"collisions":   `J{"$":["set",[` + strings.Repeat(`{"$":["int","1fffffffffffffff"]},`, 30_000) + "0]]}",
		"huge buffers": "B\x00\x00\x00\x23[[4294967296],{\"$\":[\"bytes\",0]}] ",
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decode([]byte(payload), DecodeOptions{})
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrValue) {
			t.Errorf("%s: %v", name, err)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<30 {
			t.Errorf("%s: allocated %d MiB", name, grown>>20)
		}
	}
}

func TestReports(t *testing.T) {
	if _, err := ParseReady([]byte(`{"python":"3.11.2","pid":1,"protocol":3}`)); !errors.Is(err, ErrProtocol) {
		t.Errorf("another version: %v", err)
	}
	found, err := ParseError([]byte(`{"type":"KeyError","module":"builtins","qualname":"KeyError","message":"'k'","traceback":"","args":[{"$":["tuple",[1]]}]}`))
	if err != nil || found.Error() != "KeyError: 'k'" || !reflect.DeepEqual(found.Args, []any{Tuple{int64(1)}}) {
		t.Errorf("%#v, %v", found, err)
	}
	for _, payload := range []string{"", "[]", `{"type":1}`, `{"type":"x"}`} {
		if _, err := ParseError([]byte(payload)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: %v", payload, err)
		}
	}
}
