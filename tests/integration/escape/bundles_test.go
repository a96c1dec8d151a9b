package escape

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hostile is a bundle that somebody wrote to get out of it, or to make the runtime do something for them.
type hostile struct {
	name   string
	change func(t *testing.T, h *place, c config)
	// refused: the runtime must not start it. Otherwise it may, and what runs must be confined.
	refused bool
}

// place is where a hostile bundle lies, and what it is after.
type place struct {
	bundle, root string
	outside      string // on the host, with the secret in it
	trap         string // on the host: nothing may appear here
}

// link puts a symbolic link into the bundle's root, in the place of what is there.
func (h *place) link(t *testing.T, name, target string) {
	t.Helper()
	path := filepath.Join(h.root, name)
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func hostileBundles() []hostile {
	namespace := func(kind, path string) func(*testing.T, *place, config) {
		return func(_ *testing.T, _ *place, c config) {
			for _, n := range c.at("linux")["namespaces"].([]any) {
				if n := n.(map[string]any); n["type"] == kind {
					n["path"] = path
				}
			}
		}
	}
	mapping := func(container, host, size int) func(*testing.T, *place, config) {
		return func(_ *testing.T, _ *place, c config) {
			m := []any{map[string]any{"containerID": container, "hostID": host, "size": size}}
			c.at("linux")["uidMappings"], c.at("linux")["gidMappings"] = m, m
		}
	}
	cwd := func(path string) func(*testing.T, *place, config) {
		return func(_ *testing.T, _ *place, c config) { c.at("process")["cwd"] = path }
	}
	return []hostile{
		{"the root is a link out of the bundle", func(t *testing.T, h *place, _ config) {
			if err := os.Rename(h.root, filepath.Join(h.outside, "shown")); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(h.outside, "shown/secret"), "the secret of the host", 0o644)
			if err := os.Symlink(filepath.Join(h.outside, "shown"), h.root); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"mounts through links in the root (CVE-2021-30465)", func(t *testing.T, h *place, c config) {
			h.link(t, "escape", h.trap)
			h.link(t, "data", "../../../../../../../.."+h.trap)
			addMount(c, "tmpfs", "/escape/tmpfs", "tmpfs", "size=64k")
			addMount(c, "entry.py", "/escape/file", "bind", "bind", "ro")
			addMount(c, h.bundle, "/data/directory", "bind", "bind", "ro")
			addMount(c, "entry.py", "/data/../../../../../../.."+h.trap+"/file", "bind", "bind", "ro")
		}, false},
		{"/proc is a link (CVE-2019-19921, CVE-2023-27561)", func(t *testing.T, h *place, _ config) { h.link(t, "proc", "/tmp") }, false},
		{"/proc and /sys are links to the host's", func(t *testing.T, h *place, c config) {
			h.link(t, "proc", h.trap)
			h.link(t, "sys", h.trap)
			addMount(c, "tmpfs", "/sys", "tmpfs", "size=64k")
		}, false},
		{"/dev is a link out", func(t *testing.T, h *place, _ config) { h.link(t, "dev", h.trap) }, false},
		{"/etc is a link out: /etc/hosts is written by the runtime", func(t *testing.T, h *place, _ config) { h.link(t, "etc", h.trap) }, false},
		{"/etc/hosts is a link out", func(t *testing.T, h *place, _ config) { h.link(t, "etc/hosts", filepath.Join(h.trap, "hosts")) }, false},
		{"the entry's mount point is a link out", func(t *testing.T, h *place, _ config) {
			h.link(t, "usr/lib/psi/entry.py", filepath.Join(h.trap, "entry.py"))
		}, false},
		{"the working directory is a descriptor of the runtime (CVE-2024-21626)", cwd("/proc/self/fd/7"), false},
		{"the working directory is another one", cwd("/proc/self/fd/8/../../.."), false},
		{"the working directory is the host's root by pid 1", cwd("/proc/1/root/../.."), false},
		{"ids: the host's root", mapping(0, 0, 1), false},
		{"ids: every user of the host", mapping(0, 0, 1<<32-1), true},
		{"ids: container id 1", mapping(1, 0, 1), true},
		{"ids: none", mapping(0, 0, 0), true},
		{"ids: two mappings", func(_ *testing.T, _ *place, c config) {
			list := c.at("linux")["uidMappings"].([]any)
			c.at("linux")["uidMappings"] = append(list, map[string]any{"containerID": 1, "hostID": 0, "size": 1})
		}, true},
		{"ids: no user namespace", func(_ *testing.T, _ *place, c config) {
			c.at("linux")["namespaces"] = []any{map[string]any{"type": "pid"}, map[string]any{"type": "mount"}, map[string]any{"type": "network"}, map[string]any{"type": "uts"}}
		}, true},
		{"ids: another word than auto", func(_ *testing.T, _ *place, c config) { c.at("annotations")["io.psi.ids"] = "host" }, true},
		{"the user namespace of the host", namespace("user", "/proc/1/ns/user"), true},
		{"the network of the host", namespace("network", "/proc/1/ns/net"), true},
		{"no network namespace", func(_ *testing.T, _ *place, c config) {
			list := c.at("linux")["namespaces"].([]any)
			var kept []any
			for _, n := range list {
				if n.(map[string]any)["type"] != "network" {
					kept = append(kept, n)
				}
			}
			c.at("linux")["namespaces"] = kept
		}, true},
		{"an endpoint added by annotation alone, as an engine passes them on", func(_ *testing.T, _ *place, c config) {
			delete(c.at("annotations"), "io.psi.ids")
			c.at("annotations")["io.psi.policy"] = `{"tcp": ["127.0.0.1:22"]}`
		}, true},
		{"a policy that is no policy", func(_ *testing.T, _ *place, c config) { c.at("annotations")["io.psi.policy"] = `{"mem": "lots"}` }, true},
		{"a policy with a rule of another version", func(_ *testing.T, _ *place, c config) {
			c.at("annotations")["io.psi.policy"] = `{"unix": ["/run/docker.sock"]}`
		}, true},
	}
}

func TestHostileBundles(t *testing.T) {
	for _, h := range hostileBundles() {
		t.Run(h.name, func(t *testing.T) {
			watched(t)
			where := newPlace(t)
			edit(t, where.bundle, func(c config) { h.change(t, where, c) })
			r := run(t, where.bundle)
			if changed := where.trapped(t); changed != "" {
				t.Errorf("ESCAPED: the host has %s", changed)
			}
			if strings.Contains(r.stdout, "done: ") {
				if h.refused {
					t.Errorf("the bundle ran: want it refused")
				}
				mustHold(t, r)
			} else if r.code == 0 || strings.TrimSpace(r.stderr) == "" {
				t.Errorf("exit %d, stdout %q, stderr %q: want an error", r.code, r.stdout, r.stderr)
			} else {
				t.Logf("refused: %s", strings.TrimSpace(r.stderr))
			}
		})
	}
}

// A bundle that is given the trap on purpose shows that looking at the trap would tell, and one without
// a user namespace that the script would.
func TestHostileBundlesControl(t *testing.T) {
	watched(t)
	where := newPlace(t)
	edit(t, where.bundle, func(c config) {
		loosen("pid", "mount", "network", "ipc", "uts")(c)
		addMount(c, where.trap, "/mnt", "bind", "bind", "rw")
		addMount(c, where.outside, where.outside, "bind", "bind", "ro")
	})
	write(t, filepath.Join(where.bundle, "entry.py"), "open('/mnt/found', 'w').close()\n"+script(t, "../hostile"), 0o644)
	r := run(t, where.bundle)
	if where.trapped(t) == "" {
		t.Error("a file in the trap is not seen")
	}
	for _, l := range verdicts(t, r) {
		if l.kind != "ESCAPED" && l.name != "the working directory" {
			t.Errorf("%s: %s: %s: want an escape", l.kind, l.name, l.text)
		}
	}
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := publicDir(t)
	h := &place{outside: filepath.Join(dir, "outside"), trap: filepath.Join(dir, "trap")}
	write(t, filepath.Join(h.outside, "secret"), "the secret of the host", 0o644)
	if err := os.Mkdir(h.trap, 0o777); err != nil {
		t.Fatal(err)
	}
	h.bundle = compile(t, "{}\n", script(t, "../hostile"), "outside="+h.outside)
	h.root = filepath.Join(h.bundle, "rootfs")
	return h
}

// trapped says what appeared in the trap: files or mounts.
func (h *place) trapped(t *testing.T) string {
	t.Helper()
	names, err := os.ReadDir(h.trap)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) > 0 {
		return "a file " + names[0].Name() + " in the trap"
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), h.trap) {
		return "a mount on the trap"
	}
	return ""
}
