package bundle_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/pkg/bundle"
)

// Every call that Linux had when this was written is decided, so that none is
// forgotten: allowed, forbidden, or one of those that answer ENOSYS on purpose.
func TestSeccompDecidesEveryCall(t *testing.T) {
	missing := strings.Fields(`
		clone3 openat2
		mbind set_mempolicy get_mempolicy migrate_pages move_pages set_mempolicy_home_node
		pkey_mprotect pkey_alloc pkey_free map_shadow_stack
		landlock_create_ruleset landlock_add_rule landlock_restrict_self
		lsm_get_self_attr lsm_set_self_attr lsm_list_modules
		statmount listmount listns cachestat memfd_secret process_mrelease mseal
		futex_wake futex_wait futex_requeue rseq_slice_yield
		setxattrat getxattrat listxattrat removexattrat file_getattr file_setattr
		uretprobe uprobe remap_file_pages epoll_ctl_old epoll_wait_old set_thread_area get_thread_area
		getpmsg putpmsg afs_syscall tuxcall security vserver`)
	decided := map[string]bool{}
	for _, name := range missing {
		decided[name] = true
	}
	for _, rule := range bundle.Seccomp().Syscalls {
		for _, name := range rule.Names {
			if slices.Contains(missing, name) {
				t.Errorf("%s has a rule, and should be missing", name)
			}
			decided[name] = true
		}
	}
	numbers := systemCalls(t)
	if len(numbers) < 350 {
		t.Fatalf("found only %d system calls", len(numbers))
	}
	for name := range numbers {
		if !decided[name] {
			t.Errorf("nobody decided about %s (%d)", name, numbers[name])
		}
	}
}

// systemCalls returns the numbers of x86-64, from the source of x/sys.
func systemCalls(t *testing.T) map[string]int {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatalf("finding x/sys: %v", err)
	}
	name := filepath.Join(strings.TrimSpace(string(out)), "unix", "zsysnum_linux_amd64.go")
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]int{}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			if number, err := strconv.Atoi(v.Values[0].(*ast.BasicLit).Value); err == nil {
				numbers[strings.ToLower(strings.TrimPrefix(v.Names[0].Name, "SYS_"))] = number
			}
		}
		return true
	})
	return numbers
}
