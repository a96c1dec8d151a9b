package escape

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// line is one attempt's outcome.
type line struct {
	kind, name, text string
	everywhere       bool // it holds without confinement too
}

var pattern = regexp.MustCompile(`^(held|ESCAPED|broken): (.*?): (.*)$`)

// verdicts reads a script's output. A script that did not come to its last line fails the test.
func verdicts(t *testing.T, r result) []line {
	t.Helper()
	var lines []line
	done := -1
	for _, text := range strings.Split(strings.TrimSpace(r.stdout), "\n") {
		if n, ok := strings.CutPrefix(text, "done: "); ok {
			done, _ = strconv.Atoi(strings.Fields(n)[0])
			continue
		}
		m := pattern.FindStringSubmatch(text)
		if m == nil || done >= 0 {
			t.Errorf("unexpected output %q", text)
			continue
		}
		lines = append(lines, line{m[1], m[2], m[3], strings.Contains(m[3], "[holds everywhere: ")})
	}
	if done != len(lines) || done <= 0 || r.code != 0 {
		t.Errorf("the script ended with code %d after %d lines, its last line says %d\nstderr: %s", r.code, len(lines), done, r.stderr)
		if len(lines) == 0 {
			t.Fatalf("stdout: %s", r.stdout)
		}
	}
	return lines
}

// mustHold fails the test for every attempt that was not held.
func mustHold(t *testing.T, r result) {
	t.Helper()
	lines := verdicts(t, r)
	for _, l := range lines {
		if l.kind != "held" {
			t.Errorf("%s: %s: %s", l.kind, l.name, l.text)
		} else if testing.Verbose() {
			t.Logf("held: %s: %s", l.name, l.text)
		}
	}
}

// mustEscape fails the test for every attempt that would be held by nothing: one that does not escape
// where nothing confines it. A call that this kernel lacks says nothing.
func mustEscape(t *testing.T, r result) {
	t.Helper()
	for _, l := range verdicts(t, r) {
		switch {
		case l.kind == "broken":
			t.Errorf("broken without confinement: %s: %s", l.name, l.text)
		case l.kind == "held" && !l.everywhere && !strings.Contains(l.text, "ENOSYS"):
			t.Errorf("held without confinement, so the attempt shows nothing: %s: %s", l.name, l.text)
		}
	}
}

// loosen takes the confinement out of a configuration. Namespaces named in keep stay; the pid and the
// mount namespace should, lest an attempt really changes the host.
func loosen(keep ...string) func(config) {
	return func(c config) {
		delete(c, "annotations")
		c.at("root")["readonly"] = false
		process, linux := c.at("process"), c.at("linux")
		process["noNewPrivileges"] = false
		process["args"] = append(process["args"].([]any), "--control")
		sets := map[string]any{}
		for _, set := range []string{"bounding", "effective", "permitted"} {
			sets[set] = capabilities()
		}
		process["capabilities"] = sets
		for _, gone := range []string{"seccomp", "maskedPaths", "readonlyPaths", "uidMappings", "gidMappings"} {
			delete(linux, gone)
		}
		linux["namespaces"] = slices.DeleteFunc(linux["namespaces"].([]any), func(n any) bool {
			return !slices.Contains(keep, n.(map[string]any)["type"].(string))
		})
		linux["resources"] = map[string]any{"devices": []any{map[string]any{"allow": true, "access": "rwm"}}}
		delete(process, "rlimits")
		for _, m := range c["mounts"].([]any) {
			loosenMount(m.(map[string]any))
		}
	}
}

func loosenMount(m config) {
	delete(m, "uidMappings")
	delete(m, "gidMappings")
	options, _ := m["options"].([]any)
	m["options"] = slices.DeleteFunc(options, func(o any) bool {
		return slices.Contains([]string{"ro", "noexec", "nodev", "nosuid", "idmap"}, o.(string))
	})
}

// addMount adds a mount to a configuration.
func addMount(c config, source, dest, kind string, options ...string) {
	var list []any
	for _, o := range options {
		list = append(list, o)
	}
	c["mounts"] = append(c["mounts"].([]any), map[string]any{"source": source, "destination": dest, "type": kind, "options": list})
}

// capabilities are those that the test itself has.
func capabilities() []any {
	names := strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
		NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
		SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND
		AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)
	status, _ := os.ReadFile("/proc/self/status")
	m := regexp.MustCompile(`CapEff:\s*([0-9a-f]+)`).FindSubmatch(status)
	if m == nil {
		return nil
	}
	mask, _ := strconv.ParseUint(string(m[1]), 16, 64)
	var have []any
	for i, name := range names {
		if mask>>i&1 == 1 {
			have = append(have, fmt.Sprint("CAP_", name))
		}
	}
	return have
}
