package channel

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

const (
	maxDimensions = 32
	maxDimension  = 1<<40 - 1
)

func readNDArray(t *tagged) any {
	a := NDArray{DType: t.str(0)}
	sizes := t.list(1)
	if t.err != nil {
		return nil
	}
	item := itemSize(a.DType)
	order, _ := t.args[2].(string)
	if item == 0 || len(sizes) > maxDimensions || (order != "C" && order != "F") {
		t.fail("an array of dtype %.40q, %d dimensions and order %.9q cannot cross", a.DType, len(sizes), order)
		return nil
	}
	a.Order = order[0]
	for _, size := range sizes {
		n, ok := size.(int64)
		if !ok || n < 0 || n > maxDimension {
			t.fail("a dimension of an array is out of range")
			return nil
		}
		a.Shape = append(a.Shape, int(n))
	}
	a.Data = t.buffer(3)
	extent := saturatingProduct(a.Shape, true)
	if saturatingProduct(append(a.Shape, item), false) != len(a.Data) ||
		saturatingProduct([]int{extent, item}, true) > max(t.limits.Message, len(a.Data)) {
		t.fail("an array of dtype %s does not fit its %d bytes", a.DType, len(a.Data))
	}
	if t.err == nil {
		t.checkItems(a)
	}
	return a
}

// saturatingProduct multiplies sizes; a zero counts as one if nonzero is set.
func saturatingProduct(sizes []int, nonzero bool) int {
	if !nonzero && slices.Contains(sizes, 0) {
		return 0
	}
	product := 1
	for _, n := range sizes {
		n = max(n, 1)
		if product > math.MaxInt/n {
			return math.MaxInt
		}
		product *= n
	}
	return product
}

// checkItems refuses items that no program can hold: bool 7, code point 0x110000.
func (t *tagged) checkItems(a NDArray) {
	if a.DType == "|b1" {
		for _, b := range a.Data {
			if b > 1 {
				t.fail("a bool in an array is neither 0 nor 1")
				return
			}
		}
	}
	if a.DType[1] != 'U' {
		return
	}
	var endian binary.ByteOrder = binary.LittleEndian
	if a.DType[0] == '>' {
		endian = binary.BigEndian
	}
	for at := 0; at < len(a.Data); at += 4 {
		if endian.Uint32(a.Data[at:]) > unicode.MaxRune {
			t.fail("a character in an array is beyond Unicode")
			return
		}
	}
}

// itemSize is the number of bytes per item of an array type that may cross, as
// numpy spells it; 0 if it may not.
func itemSize(dtype string) int {
	if len(dtype) < 3 {
		return 0
	}
	order, kind, rest := dtype[0], dtype[1], dtype[2:]
	swapped := order == '<' || order == '>'
	switch {
	case kind == 'M' || kind == 'm':
		if swapped && (rest == "8" || isTimeUnit(rest)) {
			return 8
		}
	case (kind == 'S' && order == '|') || (kind == 'U' && swapped):
		if len(rest) <= 9 && strings.Trim(rest, "0123456789") == "" && rest[0] != '0' {
			n, _ := strconv.Atoi(rest)
			if kind == 'U' {
				n *= 4
			}
			return n
		}
	case (swapped || order == '|') && (order == '|') == (rest == "1"):
		if slices.Contains(strings.Fields("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16"), dtype[1:]) {
			n, _ := strconv.Atoi(rest)
			return n
		}
	}
	return 0
}

func isTimeUnit(rest string) bool {
	unit, ok := strings.CutPrefix(rest, "8[")
	unit, closed := strings.CutSuffix(unit, "]")
	return ok && closed && slices.Contains(strings.Fields("Y M W D h m s ms us ns ps fs as"), unit)
}
