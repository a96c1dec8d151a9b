package policy

import (
	"errors"
	"strings"
	"testing"
)

func TestPlaces(t *testing.T) {
	for _, test := range []struct {
		pattern string
		want    string // a part of the message; "" means that reading is allowed
	}{
		{"/srv/data", ""},
		{"/srv/**", ""},
		{"/srv", ""},
		{"/home/anna/**", ""},
		{"/data/*.csv", ""},
		{"/usr/share/common-licenses/*", ""},
		{"/usr/local/share/x", ""},
		{"/usr/lib/pythonic/x", ""},
		{"/tmp/job-7", ""},
		{"/tmp/job-7/**", ""},
		{"/run/job-7/**", ""},
		{"/run/psix/**", ""},
		{"/var/lib/job/**", ""},
		{"/etc/ssl/certs/**", ""},
		{"/etc/passwd", ""},
		{"/process/x", ""},
		{"/devices", ""},

		{"/", "/: it is the whole host"},
		{"/**", "is the whole host"},
		{"/*/x", "is the whole host"},
		{"/pro?/self/environ", "is the whole host"},
		{"/proc", "/proc: it shows the kernel"},
		{"/proc/self/**", "/proc: it shows the kernel"},
		{"/proc/[0-9]*/environ", "/proc: it shows the kernel"},
		{"/sys/fs/cgroup/**", "/sys: it shows"},
		{"/dev/shm/x", "/dev: it shows"},
		{"/run", "/run: it holds the sockets"},
		{"/run/*", "/run: it holds the sockets"},
		{"/run/psi", "/run/psi: it holds the state of psi"},
		{"/run/psi/owners/**", "/run/psi: it holds the state of psi"},
		{"/var/run", "/var/run: it holds the sockets"},
		{"/var/run/psi/x", "/run/psi: it holds the state of psi"},
		{"/var", "/var: it holds /var/run"},
		{"/var/*/docker.sock", "/var: it holds /var/run"},
		{"/tmp", "/tmp: it is where the guest has its own /tmp"},
		{"/tmp/*.csv", "name a directory below it, such as /tmp/job-7"},
		{"/etc", "is a directory of the guest's own root"},
		{"/etc/*", "is a directory of the guest's own root"},
		{"/etc/hosts", "is written by psi"},
		{"/usr", "is a directory of the guest's own root"},
		{"/usr/**", "is a directory of the guest's own root"},
		{"/usr/li[b]/x", "/usr: it is a directory"},
		{"/lib", "/lib: it is a directory of the guest's own root"},
		{"/lib64", "is a directory of the guest's own root"},
		{"/bin/*", "is a directory of the guest's own root"},
		{"/lib/x86_64-linux-gnu/**", "is a directory of the guest's own root"},
		{"/usr/lib/python3.11", "/usr/lib/python3*: it belongs to the guest's own Python"},
		{"/usr/lib/python3/dist-packages/**", "rootfs build --site-packages"},
		{"/lib/python3.11/json/*", "belongs to the guest's own Python"},
		{"/usr/lib/psi/agent.pyc", "/usr/lib/psi: it holds the agent"},
		{"/usr/bin/python3.11", "belongs to the guest's own Python"},
		{"/bin/python3", "belongs to the guest's own Python"},
	} {
		for _, mode := range []FSMode{Read, Write} {
			_, err := Defaults().AllowFS(test.pattern, mode)
			if test.want == "" {
				if err != nil {
					t.Errorf("%s %s: %v", mode, test.pattern, err)
				}
				continue
			}
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s %s: %v, want …%s…", mode, test.pattern, err, test.want)
				continue
			}
			if e.Value != test.pattern || e.WayOut == "" || e.Key != "fs" {
				t.Errorf("%s %s: %#v does not name value, key and way out", mode, test.pattern, e)
			}
		}
	}
}

// TestPlacesContain holds the rule that a directory which contains a forbidden
// one is forbidden too.
func TestPlacesContain(t *testing.T) {
	for _, p := range places() {
		for dir := p.path; dir != "/"; {
			dir = dir[:strings.LastIndexByte(dir, '/')]
			if dir == "" {
				dir = "/"
			}
			if CheckDir(dir) == nil {
				t.Errorf("%s is allowed and contains %s", dir, p.path)
			}
		}
	}
	if err := CheckDir("/srv/data"); err != nil {
		t.Errorf("CheckDir(/srv/data): %v (an interface holding a nil *Error?)", err)
	}
}

func TestPlacesOfDeny(t *testing.T) {
	for _, pattern := range []string{"/**/*.key", "/srv/data/private/**", "/tmp/*", "/etc/*", "/**"} {
		if _, err := Defaults().AllowFS(pattern, Deny); err != nil {
			t.Errorf("deny %s: %v", pattern, err)
		}
	}
	for _, pattern := range []string{"/proc/**", "/sys/x", "/run/psi/**", "/usr/lib/psi/*"} {
		_, err := Defaults().AllowFS(pattern, Deny)
		if err == nil || !strings.Contains(err.Error(), "nothing to deny") {
			t.Errorf("deny %s: %v", pattern, err)
		}
	}
}
