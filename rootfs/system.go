package rootfs

import (
	"context"
	"encoding/binary"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// addSystemFiles plans the mount points, the links of a merged /usr, and the
// few files below /etc and /usr/share that libc and the standard library read.
func (b *builder) addSystemFiles(context.Context) error {
	for _, dir := range []string{"proc", "dev", "sys", "srv", "run", "mnt", "data", "home", "opt", "var"} {
		b.tree.dir(dir, 0o755)
	}
	b.tree.dir("tmp", 0o1777)
	b.tree.dir("usr/lib64", 0o755)
	for _, dir := range []string{"bin", "lib", "lib64"} {
		b.tree.symlink(dir, "usr/"+dir)
	}
	for name, text := range etcFiles() {
		b.tree.bytes("etc/"+name, []byte(text))
	}
	if err := b.addTimeZones(); err != nil {
		return err
	}
	if err := b.addCertificates(); err != nil {
		return err
	}
	return b.addLocale()
}

// etcFiles returns the files of /etc by name. User 0 is called guest: it is
// root in nothing but the number.
func etcFiles() map[string]string {
	return map[string]string{
		"passwd": "guest:x:0:0:guest:/tmp:/usr/sbin/nologin\n" +
			"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"group": "guest:x:0:\nnogroup:x:65534:\n",
		"hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		// psi writes the names a policy allows to /etc/hosts; DNS is for
		// engines that give the guest a resolver. Without this file, glibc
		// would ask DNS first.
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
		"localtime":     utcZone(),
	}
}

// utcZone is UTC as a compiled time zone: a version 1 block and, as readers
// of newer versions expect, the same again with 64-bit times and a POSIX rule
// (RFC 8536).
func utcZone() string {
	block := func(version byte) []byte {
		header := append([]byte("TZif"), version)
		header = append(header, make([]byte, 15)...)
		for _, count := range []uint32{0, 0, 0, 0, 1, 4} { // one type, "UTC\0"
			header = binary.BigEndian.AppendUint32(header, count)
		}
		return append(header, 0, 0, 0, 0, 0, 0, 'U', 'T', 'C', 0)
	}
	return string(block('2')) + string(block('2')) + "\nUTC0\n"
}

// addTimeZones plans the time zone database, for zoneinfo and for Debian's
// pytz and dateutil, without its copies in other shapes (posix, right).
func (b *builder) addTimeZones() error {
	if b.python.TimeZones == "" {
		b.leaveOut("/usr/share/zoneinfo", "this host has no time zone database")
		return nil
	}
	copier := b.copier(b.python.TimeZones, "usr/share/zoneinfo")
	copier.skip = func(rel string) (string, bool) {
		return "other shape of the same zones", rel == "posix" || rel == "right" || rel == "localtime" || rel == "posixrules"
	}
	return copier.run()
}

// addCertificates plans the host's certificate authorities where the
// interpreter's OpenSSL looks first, so that guests can verify the servers
// that their policy lets them reach.
func (b *builder) addCertificates() error {
	if b.python.Certificates == "" || !filepath.IsAbs(b.python.CAFile) {
		b.leaveOut("certificate authorities", "this host has none, or its Python no ssl module")
		return nil
	}
	const bundle = "etc/ssl/certs/ca-certificates.crt"
	if err := b.tree.file(bundle, b.python.Certificates); err != nil {
		return err
	}
	if at := inRoot(b.python.CAFile); at != bundle {
		b.tree.symlink(at, "/"+bundle)
	}
	return nil
}

// addLocale plans the character type table of C.UTF-8 where glibc has it in a
// file (before Debian and glibc agreed on one it had another name, hence the
// link). Guests run with LANG=C.UTF-8.
func (b *builder) addLocale() error {
	const dir = "usr/lib/locale/"
	for _, name := range []string{"C.utf8", "C.UTF-8"} {
		if info, err := os.Stat("/" + dir + name); err != nil || !info.IsDir() {
			continue
		}
		if err := b.copier("/"+dir+name, dir+"C.UTF-8").run(); err != nil {
			return err
		}
		b.tree.symlink(dir+"C.utf8", "C.UTF-8")
		return nil
	}
	return nil
}

// inRoot turns an absolute host path into a path of the root, where /bin,
// /lib and /lib64 are links into /usr.
func inRoot(host string) string {
	name := strings.TrimPrefix(path.Clean(host), "/")
	for _, dir := range []string{"bin", "lib", "lib64"} {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return "usr/" + name
		}
	}
	return name
}
