package filtercache

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// names are system calls of this machine.
func names() []string {
	var out []string
	for number := range libseccomp.ScmpSyscall(460) {
		if name, err := number.GetName(); err == nil {
			out = append(out, name)
		}
	}
	return out
}

// randomFilter is one as an engine might give: hundreds of names, some with conditions.
func randomFilter(r *rand.Rand) *configs.Seccomp {
	filter := &configs.Seccomp{DefaultAction: configs.Errno, Architectures: []string{"amd64", "x86", "x32"}}
	if r.IntN(4) == 0 {
		filter.DefaultAction = configs.Allow
	}
	if r.IntN(4) == 0 {
		filter.Architectures = nil
	}
	actions := []configs.Action{configs.Allow, configs.Allow, configs.Allow, configs.Errno, configs.Trap, configs.Log, configs.KillProcess}
	all := names()
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, name := range all[:1+r.IntN(60)] {
		call := &configs.Syscall{Name: name, Action: actions[r.IntN(len(actions))]}
		for index := range uint(r.IntN(3)) {
			call.Args = append(call.Args, &configs.Arg{Index: index, Value: r.Uint64N(8), Op: configs.Operator(1 + r.IntN(6))})
		}
		filter.Syscalls = append(filter.Syscalls, call)
	}
	return filter
}

// again compiles a filter on a thread that knows dir, and tells whether it was found there.
func again(t *testing.T, dir string, filter *configs.Seccomp) (program []byte, hit bool) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	Load(dir)
	_, program, hit, err := compiled(filter)
	if err != nil {
		t.Fatal(err)
	}
	return program, hit
}

func mustSave(t *testing.T, dir string, filter *configs.Seccomp) {
	t.Helper()
	if err := Save(dir, filter); err != nil {
		t.Fatal(err)
	}
}

func mustCompile(t *testing.T, filter *configs.Seccomp) []byte {
	t.Helper()
	_, program, err := compile(filter)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// clone is a deep copy.
func clone(t *testing.T, filter *configs.Seccomp) *configs.Seccomp {
	t.Helper()
	text, err := json.Marshal(filter)
	if err != nil {
		t.Fatal(err)
	}
	out := &configs.Seccomp{}
	if err := json.Unmarshal(text, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// change returns filters that differ from one in a single thing each.
func change(t *testing.T, r *rand.Rand, filter *configs.Seccomp) map[string]*configs.Seccomp {
	t.Helper()
	out := map[string]*configs.Seccomp{}
	make := func(what string, do func(*configs.Seccomp)) {
		changed := clone(t, filter)
		do(changed)
		out[what] = changed
	}
	at := r.IntN(len(filter.Syscalls))
	make("one rule less", func(f *configs.Seccomp) { f.Syscalls = slices.Delete(f.Syscalls, at, at+1) })
	make("the last rule missing", func(f *configs.Seccomp) { f.Syscalls = f.Syscalls[:len(f.Syscalls)-1] })
	make("another action", func(f *configs.Seccomp) { f.Syscalls[at].Action = configs.KillThread })
	make("another default", func(f *configs.Seccomp) { f.DefaultAction = configs.KillThread })
	make("another order", func(f *configs.Seccomp) { slices.Reverse(f.Syscalls) })
	make("one more rule", func(f *configs.Seccomp) {
		f.Syscalls = append(f.Syscalls, &configs.Syscall{
			Name: "getpid", Action: configs.KillThread,
			Args: []*configs.Arg{{Index: 5, Value: 1 << 40, Op: configs.EqualTo}},
		})
	})
	make("one condition more", func(f *configs.Seccomp) {
		f.Syscalls[at].Args = append(f.Syscalls[at].Args, &configs.Arg{Index: 4, Value: 77, Op: configs.EqualTo})
	})
	return out
}

func TestTheProgramIsLibseccomps(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for round := range 6 {
		dir := filepath.Join(t.TempDir(), "filters")
		filter := randomFilter(r)
		want := mustCompile(t, filter)
		mustSave(t, dir, filter)
		if got, hit := again(t, dir, filter); !hit || !bytes.Equal(got, want) {
			t.Fatalf("round %d: hit %v, %d bytes of program, %d wanted", round, hit, len(got), len(want))
		}
		for what, changed := range change(t, r, filter) {
			want := mustCompile(t, changed)
			got, hit := again(t, dir, changed)
			if !bytes.Equal(got, want) {
				t.Errorf("round %d, %s (hit %v): %d bytes of program, %d wanted", round, what, hit, len(got), len(want))
			}
			if hit && !bytes.Equal(want, mustCompile(t, filter)) {
				t.Errorf("round %d, %s: taken for the one that is known", round, what)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// Of several that begin alike each is told from the others.
func TestSeveralAreKnown(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "filters")
	filter := randomFilter(rand.New(rand.NewPCG(1, 2)))
	all := change(t, rand.New(rand.NewPCG(3, 4)), filter)
	all["itself"] = filter
	for _, one := range all {
		mustSave(t, dir, one)
	}
	for what, one := range all {
		if got, hit := again(t, dir, one); !hit || !bytes.Equal(got, mustCompile(t, one)) {
			t.Errorf("%s: hit %v, or another's program", what, hit)
		}
	}
}

func TestTheOldestGo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "filters")
	for n := range uint64(most + 3) {
		filter := &configs.Seccomp{DefaultAction: configs.Allow, Syscalls: []*configs.Syscall{{
			Name: "getpid", Action: configs.Errno, Args: []*configs.Arg{{Value: n, Op: configs.EqualTo}},
		}}}
		mustSave(t, dir, filter)
		if _, hit := again(t, dir, filter); !hit {
			t.Errorf("filter %d is not there after it was saved", n)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != most {
		t.Errorf("%d files are kept, %d wanted (%v)", len(entries), most, err)
	}
}

// What a bundle asks for does not fill the run directory.
func TestHugeFiltersAreNotKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "filters")
	if size := maxRules * (20 + 6*24); size > maxSize-1<<18 { // as memo.c writes them down
		t.Errorf("calls of %d bytes do not fit", size)
	}
	call := &configs.Syscall{Name: "getpid", Action: configs.Errno}
	filter := &configs.Seccomp{DefaultAction: configs.Allow, Syscalls: slices.Repeat([]*configs.Syscall{call}, maxRules+1)}
	mustSave(t, dir, filter)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("kept: %v", err)
	}
}

// What is damaged, or not its owner's alone, is not used; nothing is loaded for it but libseccomp's own.
func TestFilesOfOthers(t *testing.T) {
	filter := randomFilter(rand.New(rand.NewPCG(5, 6)))
	want := mustCompile(t, filter)
	cut := func(at func(int) int64) func(string) error {
		return func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, at(int(info.Size())))
		}
	}
	for what, do := range map[string]func(path string) error{
		"a file others may write":      func(path string) error { return os.Chmod(path, 0o622) },
		"a directory others may write": func(path string) error { return os.Chmod(filepath.Dir(path), 0o777) },
		"another's file":               func(path string) error { return os.Chown(path, 4242, 4242) },
		"another's directory":          func(path string) error { return os.Chown(filepath.Dir(path), 4242, 4242) },
		"a symlink": func(path string) error {
			away := filepath.Join(filepath.Dir(filepath.Dir(path)), "away")
			return both(os.Rename(path, away), os.Symlink(away, path))
		},
		"a FIFO":     func(path string) error { return both(os.Remove(path), unix.Mkfifo(path, 0o600)) },
		"half of it": cut(func(size int) int64 { return int64(size / 2) }),
		"one less":   cut(func(size int) int64 { return int64(size - 1) }),
		"a word":     cut(func(int) int64 { return 5 }),
		"nothing":    cut(func(int) int64 { return 0 }),
		"too much":   cut(func(int) int64 { return maxSize + 1 }),
	} {
		dir := filepath.Join(t.TempDir(), "filters")
		mustSave(t, dir, filter)
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Fatal(entries, err)
		}
		if _, hit := again(t, dir, filter); !hit {
			t.Fatal("not there before it was changed")
		}
		if err := do(filepath.Join(dir, entries[0].Name())); err != nil {
			t.Fatal(what, err)
		}
		if got, hit := again(t, dir, filter); hit || !bytes.Equal(got, want) {
			t.Errorf("%s: hit %v, %d bytes of program, %d wanted", what, hit, len(got), len(want))
		}
	}
}

func both(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Every function of libseccomp that the bindings call is one that memo.c stands before, or one that
// neither looks at a filter's rules nor changes them.
func TestEveryFunctionIsKnown(t *testing.T) {
	source, err := os.ReadFile("memo.c")
	if err != nil {
		t.Fatal(err)
	}
	harmless := []string{
		"seccomp_arch_exist", "seccomp_arch_native", "seccomp_attr_get", "seccomp_syscall_resolve_name",
		"seccomp_syscall_resolve_name_arch", "seccomp_syscall_resolve_num_arch", "seccomp_version",
		"seccomp_api_get", "seccomp_api_set",
		// of notifications, which have no filter
		"seccomp_notify_alloc", "seccomp_notify_free", "seccomp_notify_receive", "seccomp_notify_respond", "seccomp_notify_id_valid",
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/seccomp/libseccomp-golang").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	called := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range strings.FieldsFunc(string(text), func(c rune) bool { return c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'z') }) {
			if name, ok := strings.CutPrefix(word, "C."); ok && strings.HasPrefix(name, "seccomp_") {
				called[name] = true
			}
		}
	}
	if len(called) < 15 {
		t.Errorf("only %d functions found: %v", len(called), called)
	}
	// These came with libseccomp 2.6; libcontainer does without.
	loader, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/opencontainers/runc").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"seccomp_linux.go", "patchbpf/enosys_linux.go"} {
		text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(loader)), "libcontainer/seccomp", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"ExportBPFMem", "Precompute", "Transaction"} {
			if strings.Contains(string(text), name) {
				t.Errorf("libcontainer's %s uses %s, which memo.c does not know", file, name)
			}
		}
	}
	for name := range called {
		if !slices.Contains(harmless, name) && !strings.Contains(string(source), fmt.Sprintf(" __wrap_%s(", name)) {
			t.Errorf("the bindings call %s, which memo.c does not know", name)
		}
	}
}
