package channel

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// python is the other decoder, as a process that answers one payload at a time.
type python struct {
	stdin  io.WriteCloser
	stdout io.Reader
}

func startPython(t *testing.T) *python {
	t.Helper()
	cmd := exec.Command("/usr/bin/python3.11", "-B", "testdata/verdicts.py", "../../rootfs/agent/codec.py")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting Debian's Python with numpy (packages python3, python3-numpy): %v", err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the Python decoder ended: %v", err)
		}
	})
	return &python{stdin: stdin, stdout: stdout}
}

func (p *python) decode(t *testing.T, payload []byte) (accepted bool, answer []byte) {
	t.Helper()
	request := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	if _, err := p.stdin.Write(append(request, payload...)); err != nil {
		t.Fatal(err)
	}
	var head [5]byte
	if _, err := io.ReadFull(p.stdout, head[:]); err != nil {
		t.Fatalf("Python gave no verdict on %.200q: %v", payload, err)
	}
	answer = make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(p.stdout, answer); err != nil {
		t.Fatal(err)
	}
	return head[0] == 1, answer
}

func corpus(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/corpus/*")
	if err != nil || len(files) < 300 {
		t.Fatalf("corpus of %d files (run testdata/corpus.py): %v", len(files), err)
	}
	found := make(map[string][]byte)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found[filepath.Base(file)] = data
	}
	return found
}

// Each file says in its name what both decoders must say; and what Python
// decodes and encodes again is the same value in Go.
func TestCorpus(t *testing.T) {
	py := startPython(t)
	for name, payload := range corpus(t) {
		want := strings.HasPrefix(name, "accept-")
		value, err := Decode(payload, DecodeOptions{})
		if (err == nil) != want {
			t.Errorf("%s: Go: %v", name, err)
		}
		accepted, answer := py.decode(t, payload)
		if accepted != want {
			t.Errorf("%s: Python: accepted %v: %.200s", name, accepted, answer)
		}
		if err != nil || !accepted || strings.Contains(name, "exception-") || strings.Contains(name, "collide-") {
			continue // constructors of exceptions change args; sets merge equal members
		}
		again, err := Decode(answer, DecodeOptions{})
		if err != nil {
			t.Errorf("%s: what Python encodes: %v: %q", name, err, answer)
		} else if !same(value, again) {
			t.Errorf("%s: Go reads %#v, Python encodes it again as %q", name, value, answer)
		}
		testReencode(t, name, value)
	}
}

// testReencode checks that Go's own encoding of a value means the same.
func testReencode(t *testing.T, name string, value any) {
	t.Helper()
	payload, err := Encode(value, 0)
	if err != nil {
		t.Errorf("%s: encoding %#v: %v", name, value, err)
		return
	}
	if again, err := Decode(payload, DecodeOptions{}); err != nil || !same(value, again) {
		t.Errorf("%s: %#v became %#v (%v)", name, value, again, err)
	}
}

// same compares values; NaN equals NaN, sets are compared by size, and what
// Python normalises (paths, leading zeros of a Decimal, NaN's sign) is not compared.
func same(a, b any) bool {
	switch x := a.(type) {
	case float64:
		y, ok := b.(float64)
		return ok && (x == y || (x != x && y != y))
	case Set:
		y, ok := b.(Set)
		return ok && len(x.Items) == len(y.Items) && x.Frozen == y.Frozen
	case Path:
		y, ok := b.(Path)
		return ok && x.Windows == y.Windows
	case Decimal:
		y, ok := b.(Decimal)
		return ok && strings.TrimLeft(x.Digits, "0") == strings.TrimLeft(y.Digits, "0") && x.Exponent == y.Exponent
	case NDArray:
		y, ok := b.(NDArray)
		return ok && x.DType == y.DType && reflect.DeepEqual(x.Data, y.Data)
	case Dict:
		y, ok := b.(Dict)
		return ok && len(x.Pairs) == len(y.Pairs) && x.Class == y.Class && x.Factory == y.Factory
	}
	return reflect.DeepEqual(a, b)
}

// Mutations of the corpus: neither decoder may fail otherwise than by refusing,
// and they agree. The seed is fixed: a failure is found again.
func TestMutationsAgree(t *testing.T) {
	py := startPython(t)
	random := rand.New(rand.NewPCG(1, 2))
	var seeds [][]byte
	for _, payload := range corpus(t) {
		if len(payload) > 0 && len(payload) < 2000 {
			seeds = append(seeds, payload)
		}
	}
	slices.SortFunc(seeds, bytes.Compare) // maps have no order
	for range 30_000 {
		payload := mutate(random, seeds)
		_, err := Decode(payload, DecodeOptions{})
		if accepted, answer := py.decode(t, payload); accepted != (err == nil) {
			t.Fatalf("%q: Go: %v, Python: accepted %v: %s", payload, err, accepted, answer)
		}
	}
}

func mutate(random *rand.Rand, seeds [][]byte) []byte {
	payload := append([]byte(nil), seeds[random.IntN(len(seeds))]...)
	for range 1 + random.IntN(3) {
		at := random.IntN(len(payload))
		switch random.IntN(5) {
		case 0:
			payload[at] ^= 1 << random.IntN(8)
		case 1:
			payload = append(payload[:at], payload[min(len(payload), at+1+random.IntN(4)):]...)
		case 2:
			other := seeds[random.IntN(len(seeds))]
			from := random.IntN(len(other))
			piece := other[from:min(len(other), from+random.IntN(30))]
			payload = append(payload[:at:at], append(append([]byte(nil), piece...), payload[at:]...)...)
		case 3:
			payload[at] = "[]{},:\"$0123456789-.eE\\u nft\x00\xff"[random.IntN(29)]
		case 4:
			words := []string{"null", "true", "-1", "1e400", `{"$":["float","nan"]}`, `{"$":["int","ffffffffffffffffffff"]}`, `"$"`, `{}`, `[]`}
			payload = append(payload[:at:at], append([]byte(words[random.IntN(len(words))]), payload[at:]...)...)
		}
		if len(payload) == 0 {
			return []byte{'J'}
		}
	}
	return payload
}
