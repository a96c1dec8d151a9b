package container

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// mountInfo is a mount of the namespace that a thread is in, as mountinfo tells.
type mountInfo struct {
	id, parent uint64
	what       string // device and root: what is mounted
	place      string // where, for the thread, whatever is mounted over that
	shared     bool   // what is mounted on it appears elsewhere too
}

// hostProc is this process's own /proc, which stays open: a container's tells of another
// pid namespace, and is the container's.
var hostProc = sync.OnceValues(func() (int, error) {
	return unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
})

// listMounts lists the mounts that the calling thread sees.
func listMounts() (map[uint64]mountInfo, error) {
	proc, err := hostProc()
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc", Err: err}
	}
	fd, err := unix.Openat(proc, "thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "mountinfo", Err: err}
	}
	f := os.NewFile(uintptr(fd), "mountinfo")
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	all := make(map[uint64]mountInfo)
	for line := range strings.Lines(string(text)) {
		m, err := parseMount(line)
		if err != nil {
			return nil, fmt.Errorf("listing mounts: %w", err)
		}
		all[m.id] = m
	}
	return all, nil
}

// parseMount reads a line of mountinfo: id parent device root place options [field…] - …
func parseMount(line string) (m mountInfo, err error) {
	fields := strings.Split(strings.TrimSuffix(line, "\n"), " ") // other white space may be in a name
	if len(fields) < 7 {
		return m, fmt.Errorf("a line has %d fields: %q", len(fields), line)
	}
	if m.id, err = strconv.ParseUint(fields[0], 10, 64); err != nil {
		return m, err
	}
	if m.parent, err = strconv.ParseUint(fields[1], 10, 64); err != nil {
		return m, err
	}
	m.what = fields[2] + " " + fields[3]
	m.place = unescapeMount(fields[4])
	for _, field := range fields[6:] {
		if field == "-" {
			break
		}
		m.shared = m.shared || strings.HasPrefix(field, "shared:")
	}
	return m, nil
}

// unescapeMount reads a path in which the kernel has written some characters as \ooo.
func unescapeMount(text string) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if c, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		out.WriteByte(text[i])
	}
	return out.String()
}

// isOn reports whether a mount is on another one, or on one that is.
func isOn(all map[uint64]mountInfo, m mountInfo, top uint64) bool {
	for range len(all) {
		if m.parent == top {
			return true
		}
		parent, ok := all[m.parent]
		if !ok || parent.id == m.id {
			return false
		}
		m = parent
	}
	return false
}
