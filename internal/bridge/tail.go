package bridge

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"unicode"
)

// kept is how much is kept of the beginning and of the end of an engine's stderr, in bytes each.
const kept = 4 << 10

// tail is what an engine wrote to its stderr: warnings, progress, why it failed, and what
// the guest wrote there before its agent took over. It is read to the end, so that nobody
// blocks, and little of it is kept.
type tail struct {
	mu          sync.Mutex // guards all
	first, last []byte
	cut         bool
}

// drain reads until the end.
func (t *tail) drain(r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		t.add(buf[:n])
		if err != nil {
			return
		}
	}
}

func (t *tail) add(data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	room := min(kept-len(t.first), len(data))
	t.first = append(t.first, data[:room]...)
	t.last = append(t.last, data[room:]...)
	if len(t.last) > kept {
		t.cut = true
		t.last = append([]byte(nil), t.last[len(t.last)-kept:]...)
	}
}

// String is what is kept, safe to show.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	middle := ""
	if t.cut {
		middle = "\n…\n"
	}
	return printable(strings.TrimSpace(string(t.first) + middle + string(t.last)))
}

// printable escapes what could steer a terminal or a log.
func printable(text string) string {
	var out strings.Builder
	for _, c := range strings.ToValidUTF8(strings.TrimSpace(text), "\uFFFD") {
		if c == '\n' || c == '\t' || unicode.IsPrint(c) {
			out.WriteRune(c)
		} else {
			fmt.Fprint(&out, strings.Trim(strconv.QuoteRune(c), "'"))
		}
	}
	return out.String()
}
