package install

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

const (
	blockBegin = "# psi-runtime install wrote from here"
	blockEnd   = "# to here; psi-runtime uninstall removes it"
)

// What is looked for in containerd's configuration. A table may be indented, and its keys quoted.
// Compiled when they are used: every call of the runtime would pay for it.
const (
	versionLine = `(?m)^[ \t]*version[ \t]*=[ \t]*(\d+)`
	classTable  = `(?m)^[ \t]*\[plugins\..*\.runtimes\."?` + Class + `"?[\].]`
	criDisabled = `(?m)^[ \t]*disabled_plugins[ \t]*=[^\n]*"(cri|io\.containerd\.grpc\.v1\.cri|io\.containerd\.cri\.v1\.runtime)"`
	systemd     = `(?m)^[ \t]*SystemdCgroup[ \t]*=[ \t]*true`
)

// addContainerd appends the runtime class as a block of its own: a table may stand anywhere in a TOML
// file, and containerd's own way to import files replaces a whole plugin's configuration.
func addContainerd(before []byte, runtime string) ([]byte, error) {
	rest, err := removeBlock(before)
	if err != nil {
		return nil, err
	}
	text := string(rest)
	if rest == nil { // no file, or one that we made
		text = "version = 2\n"
	}
	version := regexp.MustCompile(versionLine).FindStringSubmatch(text)
	var plugin string
	switch {
	case version != nil && version[1] == "2":
		plugin = "io.containerd.grpc.v1.cri"
	case version != nil && version[1] == "3":
		plugin = "io.containerd.cri.v1.runtime"
	default:
		return nil, errors.New("the file is not of version 2 or 3: bring it up with `containerd config migrate` first")
	}
	if regexp.MustCompile(classTable).MatchString(text) {
		return nil, fmt.Errorf("a runtime class %s is there already, and not by psi-runtime install: remove it first", Class)
	}
	if regexp.MustCompile(criDisabled).MatchString(text) {
		return nil, errors.New("the file disables the cri plugin (disabled_plugins): runtime classes would have no effect, so enable it first")
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		return nil, errors.New("the file's last line has no end: it may be cut off")
	}
	table := fmt.Sprintf(`[plugins.%q.containerd.runtimes.%s`, plugin, Class)
	block := []string{
		blockBegin, table + "]",
		`  runtime_type = "io.containerd.runc.v2"`,
		`  # Which annotations of pods and containers reach the runtime.`,
		`  pod_annotations = ["io.psi.*"]`,
		`  container_annotations = ["io.psi.*"]`,
		table + ".options]",
		fmt.Sprintf("  BinaryName = %q", runtime),
	}
	if regexp.MustCompile(systemd).MatchString(text) {
		block = append(block, "  SystemdCgroup = true")
	}
	return []byte(text + strings.Join(append(block, blockEnd), "\n") + "\n"), nil
}

// removeBlock takes the block out again. What is left of a file that we made is none.
func removeBlock(before []byte) ([]byte, error) {
	begin := bytes.Index(before, []byte(blockBegin+"\n"))
	if begin < 0 {
		return before, nil
	}
	end := bytes.Index(before[begin:], []byte(blockEnd+"\n"))
	if end < 0 {
		return nil, fmt.Errorf("the line %q is there and the line %q is not: repair the file by hand", blockBegin, blockEnd)
	}
	rest := append(bytes.Clone(before[:begin]), before[begin+end+len(blockEnd)+1:]...)
	if string(rest) == "version = 2\n" {
		return nil, nil
	}
	return rest, nil
}
