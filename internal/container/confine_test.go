package container

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/psi-runtime/psi/internal/confine"
)

// filtered is a filter that shows: chdir(2) answers ENOTTY.
func filtered(t *testing.T) *confine.Confinement {
	t.Helper()
	errno := uint(unix.ENOTTY)
	program, err := confine.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"chdir"}, Action: specs.ActErrno, ErrnoRet: &errno},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return &confine.Confinement{Filters: [][]byte{program}}
}

const filterShows = "cd /tmp; cat /proc/self/status; ls -l /proc/self/fd; exit 3"

func checkFiltered(t *testing.T, out string, status ExitStatus, caps map[string]string) {
	t.Helper()
	if status.Code != 3 || !strings.Contains(out, "cd: can't cd to /tmp") || !strings.Contains(out, "NoNewPrivs:\t1") {
		t.Errorf("status %+v, output %q", status, out)
	}
	if strings.Contains(out, "psi-init") || strings.Contains(out, "memfd") {
		t.Errorf("psi-init is left: %s", out)
	}
	for _, set := range []string{"Inh", "Prm", "Eff", "Bnd", "Amb"} {
		if !strings.Contains(out, "Cap"+set+":\t0000000000000"+cmp.Or(caps[set], "000")+"\n") {
			t.Errorf("Cap%s is not %q: %s", set, caps[set], out)
		}
	}
}

// What a process puts on itself, it puts on in every kind of container, and a process
// that joins later does too.
func TestConfined(t *testing.T) {
	for name, spec := range map[string]func(string) *specs.Spec{"own ids": autoSpec, "plain": plainSpec} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			for _, script := range []string{filterShows, "echo up; sleep 1000"} {
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				o := f.options(spec(script))
				o.Stdout, o.Stderr, o.Confine = w, w, filtered(t)
				c := f.create(o)
				w.Close()
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				if script != filterShows {
					line(t, r)
					out, status := execOutput(t, c, ProcessOptions{Process: process(filterShows), Confine: filtered(t)})
					checkFiltered(t, out, status, nil)
					continue
				}
				out, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				status, err := c.Wait()
				if err != nil {
					t.Fatal(err)
				}
				checkFiltered(t, string(out), status, nil)
			}
		})
	}
}

// The program has the capabilities that its process names, and not psi-init's.
func TestConfinedCapabilities(t *testing.T) {
	f := newFixture(t)
	c, r := f.start(plainSpec("echo up; sleep 1000"))
	line(t, r)
	for name, tc := range map[string]struct {
		uid  uint32
		caps specs.LinuxCapabilities
		want map[string]string
	}{
		"root with setpcap": {0, specs.LinuxCapabilities{Bounding: []string{"CAP_SETPCAP", "CAP_KILL"}, Permitted: []string{"CAP_SETPCAP"}, Effective: []string{"CAP_SETPCAP"}},
			map[string]string{"Prm": "100", "Eff": "100", "Bnd": "120"}},
		// no_new_privs: what was not permitted before the exec is not after it.
		"root, bounded":   {0, specs.LinuxCapabilities{Bounding: []string{"CAP_KILL", "CAP_SETPCAP"}}, map[string]string{"Bnd": "120"}},
		"root without":    {0, specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL"}}, map[string]string{"Prm": "020", "Eff": "020", "Bnd": "020"}},
		"user":            {7, specs.LinuxCapabilities{Bounding: []string{"CAP_KILL", "CAP_SETPCAP"}}, map[string]string{"Bnd": "120"}},
		"user with all":   {7, specs.LinuxCapabilities{Bounding: []string{"CAP_SETPCAP"}, Permitted: []string{"CAP_SETPCAP"}, Inheritable: []string{"CAP_SETPCAP"}, Ambient: []string{"CAP_SETPCAP"}}, map[string]string{"Inh": "100", "Prm": "100", "Eff": "100", "Bnd": "100", "Amb": "100"}},
		"user, guard too": {7, specs.LinuxCapabilities{Bounding: []string{"CAP_BLOCK_SUSPEND"}, Permitted: []string{"CAP_BLOCK_SUSPEND"}}, nil},
	} {
		p := process(filterShows)
		p.User.UID, p.Capabilities = tc.uid, &tc.caps
		out, status := execOutput(t, c, ProcessOptions{Process: p, Confine: filtered(t)})
		if t.Run(name, func(t *testing.T) { checkFiltered(t, out, status, tc.want) }); t.Failed() {
			break
		}
	}
}

// A process of the container that waits for psi-init, to trace it before it has put
// the confinement on, is refused: psi-init has a capability that it lacks. So many rules
// take psi-init some time.
func TestNobodyTracesPsiInit(t *testing.T) {
	if _, err := confine.LandlockABI(); err != nil {
		t.Skip("needs Landlock: ", err)
	}
	f := newFixture(t)
	caps := &specs.LinuxCapabilities{
		Bounding: []string{"CAP_DAC_OVERRIDE", "CAP_SETPCAP"}, Permitted: []string{"CAP_DAC_OVERRIDE", "CAP_SETPCAP"}, Effective: []string{"CAP_DAC_OVERRIDE", "CAP_SETPCAP"},
	}
	s := plainSpec(`echo up; sleep 1000 & while :; do for p in /proc/[0-9]*; do
read name < $p/comm; case $name in 3|sleep) if (: <> $p/mem) 2>/dev/null; then echo $name open; else echo $name closed; fi;; esac; done; done`)
	s.Process.Capabilities = caps
	c, r := f.start(s)
	line(t, r)
	slow := confine.Confinement{}
	for range 50000 {
		slow.Domain = append(slow.Domain, confine.Rule{Access: confine.Full, Path: "/"})
	}
	p := process("exit 3")
	p.Capabilities = caps
	if _, status := execOutput(t, c, ProcessOptions{Process: p, Confine: &slow}); status.Code != 3 {
		t.Fatalf("%+v", status)
	}
	seen := map[string]int{}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		seen[lines.Text()]++
		if seen["sleep open"] > 10000 || seen["3 closed"] > 0 {
			break
		}
	}
	if seen["3 open"] > 0 || seen["3 closed"] == 0 || seen["sleep open"] == 0 {
		t.Errorf("%v", seen)
	}
}

// An image or a bundle that puts something of its own where psi-init is started from
// does not get to run it: the container is not even created.
func TestHostileProc(t *testing.T) {
	evil := filepath.Join(t.TempDir(), "root")
	if err := os.CopyFS(evil, os.DirFS(testRoot)); err != nil {
		t.Fatal(err)
	}
	fds := filepath.Join(evil, "proc/self/fd")
	if err := errors.Join(os.Chmod(filepath.Dir(evil), 0o755), os.MkdirAll(fds, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"3", "4", "5"} {
		if err := os.WriteFile(filepath.Join(fds, n), []byte("#!/bin/sh\necho escaped\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*specs.Spec){
		"no proc": func(s *specs.Spec) { s.Mounts = s.Mounts[1:] },
		"tmpfs":   func(s *specs.Spec) { s.Mounts[0] = specs.Mount{Destination: "/proc", Type: "tmpfs", Source: "tmpfs"} },
		"bind of a file system": func(s *specs.Spec) {
			s.Mounts[0] = specs.Mount{Destination: "/proc", Type: "bind", Source: filepath.Join(evil, "proc"), Options: []string{"bind"}}
		},
		"bind of the host's proc": func(s *specs.Spec) {
			s.Mounts[0] = specs.Mount{Destination: "/proc", Type: "bind", Source: "/proc/1", Options: []string{"bind"}}
		},
		"over self": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/self/fd", Type: "bind", Source: fds, Options: []string{"bind"}})
		},
		"over 1": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/1", Type: "bind", Source: filepath.Dir(fds), Options: []string{"bind"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			s := plainSpec("echo ran")
			s.Root.Path = evil
			change(s)
			o := f.options(s)
			o.Confine = filtered(t)
			c, err := Create(context.Background(), o)
			if err == nil {
				t.Error("it was created")
				err = c.Delete(true)
			}
			if err == nil || !strings.Contains(err.Error(), "proc") {
				t.Errorf("error: %v", err)
			}
		})
	}
}

// psi-init has no interpreter: what an image calls a dynamic loader is not run before
// the confinement is on.
func TestHostileLoader(t *testing.T) {
	evil := filepath.Join(t.TempDir(), "root")
	if err := os.CopyFS(evil, os.DirFS(testRoot)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(evil), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(evil, "etc/ld.so.preload"), []byte("/evil.so\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	s := plainSpec("")
	s.Root.Path = evil
	s.Process.Args = []string{"no-such-program"}
	s.Process.Env = []string{"PATH=/bin", "LD_PRELOAD=/evil.so", "LD_AUDIT=/evil.so"}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o := f.options(s)
	o.Stderr, o.Confine = w, filtered(t)
	c := f.create(o)
	w.Close()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := c.Wait(); err != nil || status.Code != 127 || !strings.HasPrefix(string(text), `psi-init: exec: "no-such-program"`) {
		t.Errorf("%+v, %v, %q", status, err, text)
	}
}
