package policy

import (
	"fmt"
	"strings"
)

// place is a part of the file system that no policy may show to a guest.
type place struct {
	path string
	// below: everything below is forbidden too; begins: everything that begins
	// with the path is, such as /usr/lib/python3.11/os.py for /usr/lib/python3.
	below, begins bool
	why, wayOut   string
}

// The ways out that several places share.
const (
	nameBelow = "name a directory below it, such as "
	copyOut   = "copy what the guest needs to a directory such as /srv/data and allow that"
)

// places lists what is forbidden, the most telling reason first. A directory
// that contains one of these is in the list itself.
func places() []place {
	kernel := "shows the kernel and the devices of the host"
	own := "belongs to the guest's own Python"
	list := []place{
		{path: "/proc", below: true, why: kernel, wayOut: copyOut},
		{path: "/sys", below: true, why: kernel, wayOut: copyOut},
		{path: "/dev", below: true, why: kernel, wayOut: copyOut},
		{path: "/run/psi", below: true, why: "holds the state of psi itself", wayOut: copyOut},
		{path: "/usr/lib/psi", below: true, why: "holds the agent of the guest", wayOut: copyOut},
		{path: "/usr/lib/python3", begins: true, why: own,
			wayOut: "add packages with psi-runtime rootfs build --site-packages DIR"},
		{path: "/usr/bin/python3", begins: true, why: own,
			wayOut: "choose the interpreter with psi-runtime rootfs build --python FILE"},
		{path: "/etc/hosts", why: "is written by psi for each guest", wayOut: "allow names under tcp; they appear in it"},
		{path: "/", why: "is the whole host", wayOut: nameBelow + "/srv/data"},
		{path: "/tmp", why: "is where the guest has its own /tmp", wayOut: nameBelow + "/tmp/job-7"},
		{path: "/run", why: "holds the sockets of the host's services", wayOut: nameBelow + "/run/job-7"},
		{path: "/var", why: "holds /var/run and the state of the host's services", wayOut: nameBelow + "/var/lib/job-7"},
	}
	for _, dir := range []string{
		"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/usr", "/usr/bin", "/usr/sbin", "/usr/lib",
		"/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
	} {
		list = append(list, place{path: dir, why: "is a directory of the guest's own root",
			wayOut: nameBelow + "/usr/share/common-licenses"})
	}
	return list
}

// canonicalPlace follows the links that every distribution has, so that a
// forbidden place has one name. Other links are the business of whoever opens
// the path.
func canonicalPlace(dir string) string {
	for _, link := range [][2]string{
		{"/bin", "/usr/bin"}, {"/sbin", "/usr/sbin"}, {"/lib", "/usr/lib"}, {"/lib32", "/usr/lib32"},
		{"/lib64", "/usr/lib64"}, {"/libx32", "/usr/libx32"}, {"/var/run", "/run"}, {"/var/lock", "/run/lock"},
	} {
		if dir == link[0] || strings.HasPrefix(dir, link[0]+"/") {
			return link[1] + dir[len(link[0]):]
		}
	}
	return dir
}

// covers reports whether dir is in the place.
func (p place) covers(dir string) bool {
	switch {
	case dir == p.path:
		return true
	case p.begins:
		return strings.HasPrefix(dir, p.path)
	case p.below:
		return strings.HasPrefix(dir, p.path+"/")
	}
	return false
}

// CheckDir reports why a policy may not show the host path dir, a file or a
// directory, to a guest; nil when it may. It is what every read or write rule
// has passed for the literal part of its pattern. Whoever resolves symbolic
// links in that part calls it again with the result. dir is absolute and clean.
// The error is an [*Error].
func CheckDir(dir string) error {
	if err := findPlace(dir, dir); err != nil {
		return err
	}
	return nil
}

// findPlace returns the error for showing dir, as written in value.
func findPlace(value, dir string) *Error {
	canonical := canonicalPlace(dir)
	for _, p := range places() {
		if !p.covers(canonical) {
			continue
		}
		subject := dir
		if canonical != p.path && (p.below || p.begins) {
			subject = p.path
			if p.begins {
				subject += "*"
			}
		}
		return &Error{Value: value, Rule: fmt.Sprintf("no policy may open %s: it %s", subject, p.why), WayOut: p.wayOut}
	}
	return nil
}

// checkPlace reports a rule whose literal part lies where no policy may point.
// A deny rule shows nothing, so it may begin anywhere, "/**/*.key" included;
// but where nothing of the host is ever shown there is nothing that it holds.
func checkPlace(r FSRule) *Error {
	dir := LiteralDir(r.Pattern)
	if r.Mode != Deny {
		return findPlace(r.Pattern, dir)
	}
	canonical := canonicalPlace(dir)
	for _, p := range places() {
		if (p.below || p.begins) && p.covers(canonical) {
			return &Error{Value: r.Pattern, Rule: fmt.Sprintf("there is nothing to deny: no policy may open %s", dir),
				WayOut: "remove the rule"}
		}
	}
	return nil
}
