package install

import (
	"fmt"
	"strings"
)

// context is how many unchanged lines a diff shows around the change.
const context = 3

// Diff shows the change as one hunk of a unified diff; "" when there is nothing to do.
func (c Change) Diff() string {
	if c.Empty() {
		return ""
	}
	before, after := lines(c.Before), lines(c.After)
	same := 0
	for same < min(len(before), len(after)) && before[same] == after[same] {
		same++
	}
	tail := 0
	for tail < min(len(before), len(after))-same && before[len(before)-1-tail] == after[len(after)-1-tail] {
		tail++
	}
	from := max(0, same-context)
	oldEnd, newEnd := len(before)-tail, len(after)-tail
	end := min(len(before), oldEnd+context)

	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", name(c.Path, c.Before), name(c.Path, c.After))
	fmt.Fprintf(&out, "@@ -%s +%s @@\n", span(from, end), span(from, newEnd+end-oldEnd))
	show := func(sign string, text []string) {
		for _, line := range text {
			fmt.Fprintf(&out, "%s%s\n", sign, line)
		}
	}
	show(" ", before[from:same])
	show("-", before[same:oldEnd])
	show("+", after[same:newEnd])
	show(" ", before[oldEnd:end])
	return out.String()
}

func name(path string, content []byte) string {
	if content == nil {
		return "/dev/null"
	}
	return path
}

// span is a hunk's place: the number of its first line, and how many there are.
func span(from, to int) string {
	if to == from {
		return fmt.Sprintf("%d,0", from)
	}
	return fmt.Sprintf("%d,%d", from+1, to-from)
}

func lines(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}
