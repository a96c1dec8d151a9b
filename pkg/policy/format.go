package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Format writes a valid document in the usual form: two spaces of indentation,
// the keys in one order, an empty line between sandboxes. It keeps every comment
// and the meaning, and fails rather than lose either. The errors of a document
// that is not valid are those of [ReadDocument], the first of them.
func Format(data []byte, source string) ([]byte, error) {
	before, errs := ReadDocument(data, source)
	if len(errs) > 0 {
		return nil, errs[0]
	}
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	if looksLikeJSON(data, source) {
		var out bytes.Buffer
		if err := json.Indent(&out, bytes.TrimSpace(data), "", "  "); err != nil {
			return nil, fmt.Errorf("formatting %s: %w", source, err)
		}
		return append(out.Bytes(), '\n'), nil
	}
	out, err := formatYAML(data)
	if err != nil {
		return nil, fmt.Errorf("formatting %s: %w", source, err)
	}
	if lost := lostComment(data, out); lost != "" {
		return nil, &Error{Source: source, Value: lost, Rule: "the comment would be lost", WayOut: "put it on a line of its own above a key or an entry"}
	}
	after, errs := ReadDocument(out, source)
	if len(errs) > 0 || !sameMeaning(before, after) {
		return nil, fmt.Errorf("formatting %s: the result would mean something else: leave it as it is", source)
	}
	return out, nil
}

func formatYAML(data []byte) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, err
	}
	arrangeKeys(&document)
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(&document); err != nil {
		return nil, err
	}
	if err := encoder.Close(); err != nil {
		return nil, err
	}
	return separate(out.Bytes())
}

// keyOrder is the order of the keys of every map of a document.
func keyOrder() []string {
	return append([]string{"version", "defaults", "sandboxes", "extends"}, displayKeys()...)
}

// arrangeKeys orders the keys of the document, of the defaults and of each
// sandbox. Names of sandboxes stay in their order.
func arrangeKeys(n *yaml.Node) {
	if n.Kind == yaml.DocumentNode {
		for _, child := range n.Content {
			arrangeKeys(child)
		}
		return
	}
	if n.Kind != yaml.MappingNode {
		return
	}
	type entry struct{ key, value *yaml.Node }
	var entries []entry
	for i := 0; i+1 < len(n.Content); i += 2 {
		entries = append(entries, entry{n.Content[i], n.Content[i+1]})
		switch n.Content[i].Value {
		case "defaults":
			arrangeKeys(n.Content[i+1])
		case "sandboxes":
			for j, body := range n.Content[i+1].Content {
				if j%2 == 1 {
					arrangeKeys(body)
				}
			}
		}
	}
	order := keyOrder()
	rank := func(e entry) int {
		if at := slices.Index(order, e.key.Value); at >= 0 {
			return at
		}
		return len(order)
	}
	// An alias must stay behind its anchor.
	if !hasAnchors(n) {
		slices.SortStableFunc(entries, func(a, b entry) int { return rank(a) - rank(b) })
	}
	for i, e := range entries {
		n.Content[2*i], n.Content[2*i+1] = e.key, e.value
	}
}

func hasAnchors(n *yaml.Node) bool {
	return n.Anchor != "" || n.Kind == yaml.AliasNode || slices.ContainsFunc(n.Content, hasAnchors)
}

// separate puts an empty line before the sections of a document with sandboxes,
// and between the sandboxes.
func separate(text []byte) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, err
	}
	lines := strings.Split(string(text), "\n")
	gap := make(map[int]bool) // before the line with this index
	if len(document.Content) == 1 && document.Content[0].Kind == yaml.MappingNode {
		root := document.Content[0]
		for i := 0; i+1 < len(root.Content); i += 2 {
			key, value := root.Content[i], root.Content[i+1]
			if key.Value != "defaults" && key.Value != "sandboxes" {
				continue
			}
			gap[aboveComments(lines, key.Line-1)] = true
			if key.Value == "sandboxes" && value.Style&yaml.FlowStyle == 0 {
				for j := 2; j < len(value.Content); j += 2 {
					gap[aboveComments(lines, value.Content[j].Line-1)] = true
				}
			}
		}
	}
	var out []string
	for i, line := range lines {
		if gap[i] && i > 0 && strings.TrimSpace(lines[i-1]) != "" {
			out = append(out, "")
		}
		out = append(out, line)
	}
	return []byte(strings.Join(out, "\n")), nil
}

// aboveComments returns the first of the comment lines right above a line.
func aboveComments(lines []string, at int) int {
	for at > 0 && strings.HasPrefix(strings.TrimSpace(lines[at-1]), "#") {
		at--
	}
	return at
}

// lostComment returns a comment of before that after does not have, or "".
func lostComment(before, after []byte) string {
	left := make(map[string]int)
	for _, c := range comments(string(after)) {
		left[c]++
	}
	for _, c := range comments(string(before)) {
		if left[c]--; left[c] < 0 {
			return c
		}
	}
	return ""
}

// comments lists the comments of a YAML text. Inside texts of several lines it
// may find some that are none, in either version alike.
func comments(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		var quoted byte
		for i := range len(line) {
			c := line[i]
			switch {
			case quoted != 0:
				if c == quoted {
					quoted = 0
				}
			case (c == '"' || c == '\'') && (i == 0 || strings.IndexByte(" \t[{,:", line[i-1]) >= 0):
				quoted = c
			case c == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t'):
				all = append(all, strings.TrimSpace(line[i:]))
				quoted = '\n'
			}
		}
	}
	return all
}

// sameMeaning compares the policies of two documents, variables left open.
func sameMeaning(a, b *Document) bool {
	if a.pyisolate != b.pyisolate || !slices.Equal(a.Names(), b.Names()) {
		return false
	}
	meaning := func(d *Document) []string {
		r := d.resolver(&variables{sample: true, used: make(map[string]bool)})
		var all []string
		for _, s := range d.sandboxes {
			all = append(all, r.resolve(s).policy.Digest())
		}
		return all
	}
	return slices.Equal(meaning(a), meaning(b))
}
