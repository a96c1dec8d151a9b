package bridge

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/psi-runtime/psi/internal/control"
	"github.com/psi-runtime/psi/pkg/bundle"
	"github.com/psi-runtime/psi/pkg/policy"
)

// guestUser is whom the guest's processes are on the host when the engine makes no user
// namespace: nobody that owns a file.
const guestUser = "65532:65532"

// policyFlags are the flags of `podman run` that hold a policy, and the annotation by which
// psi-runtime holds it too. splits says that podman splits the annotation at commas.
func policyFlags(c command, p policy.Policy, splits bool) ([]string, error) {
	if err := expressible(c, p); err != nil {
		return nil, err
	}
	l := p.Limits()
	environment, err := bundle.Environment(p)
	if err != nil {
		return nil, err
	}
	mem, open := strconv.FormatInt(l.Mem, 10), strconv.FormatInt(l.OpenFiles, 10)
	own := []string{
		"--memory=" + mem, "--memory-swap=" + mem, // a limit that can be passed by swapping is none
		"--cpus=" + strconv.FormatFloat(l.CPU, 'f', -1, 64),
		"--pids-limit=" + strconv.FormatInt(l.PIDs, 10),
		"--cap-drop=all", "--security-opt=no-new-privileges",
		"--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:" + tmpOptions(l.Tmp),
	}
	for _, flag := range own {
		name, _, _ := strings.Cut(flag, "=")
		if slices.Contains([]string{"--cap-drop", "--security-opt", "--tmpfs"}, name) {
			continue // these add up
		}
		if c.gives(name) || name == "--memory" && c.gives("-m") {
			return nil, fmt.Errorf("%w: %s is in the engine's command and follows from the policy: leave one of them out", control.ErrPolicy, name)
		}
	}
	if slices.ContainsFunc(c.words, func(w string) bool { return strings.Contains(w, "nofile=") }) {
		return nil, fmt.Errorf("%w: a limit of nofile is in the engine's command and follows from the policy's open_files: leave one of them out", control.ErrPolicy)
	}
	own = append(own, "--ulimit=nofile="+open+":"+open, "--ulimit=core=0:0")
	if !c.gives("--user", "-u", "--userns", "--uidmap") {
		own = append(own, "--user="+guestUser, "--passwd=false") // no files of the engine's for a user that no image knows
	}
	if !c.gives("--network", "--net") {
		own = append(own, "--network=none")
	}
	for _, variable := range environment {
		own = append(own, "--env="+variable)
	}
	annotation := bundle.PolicyKey + "=" + string(p.Canonical())
	if splits {
		annotation = `"` + strings.ReplaceAll(annotation, `"`, `""`) + `"`
	}
	return append(own, "--annotation="+annotation), nil
}

// tmpOptions are the mount options of the guest's /tmp. The size 0 would mean no limit.
func tmpOptions(size int64) string {
	if size == 0 {
		return "ro,noexec,nosuid,nodev,size=65536,mode=1777"
	}
	return "rw,noexec,nosuid,nodev,size=" + strconv.FormatInt(size, 10) + ",mode=1777"
}

// expressible refuses a policy with a rule that nothing would come of: an engine makes the
// mounts and the network, an annotation only filters them. What is not in the list of what
// can be held is refused, whatever the policy language learns later.
func expressible(c command, p policy.Policy) error {
	held := []string{
		"allow_degraded", "cpu", "cpu_ms", "imports", "mem", "message", "open_files", "output", "pids",
		"read_only", "seccomp", "tmp", "wall_ms",
	}
	wayOut := "spawn it without engine="
	if c.gives("-v", "--volume", "--mount") {
		held = append(held, "fs") // psi-runtime allows the mounts that a rule allows
	} else {
		wayOut += ", or give the engine's command the mount (-v /srv/data:/srv/data:ro)"
	}
	if c.gives("--network", "--net") && !c.gives("none", "--network=none", "--net=none") {
		held = append(held, "tcp") // the network's destinations
	} else {
		held = append(held, "net_bytes", "net_conns") // of no connection
		wayOut += ", or a --network"
	}
	var document map[string]any
	if err := json.Unmarshal(p.Canonical(), &document); err != nil {
		return fmt.Errorf("reading the policy back: %w", err)
	}
	for key, value := range document {
		if slices.Contains(held, key) || empty(value) {
			continue
		}
		text, _ := json.Marshal(value)
		return fmt.Errorf("%w: %s: %.200s: a policy cannot give this to an engine's container, which has the mounts and the network that its engine makes: %s",
			control.ErrPolicy, key, text, wayOut)
	}
	return nil
}

// empty says whether a key of a policy document allows nothing.
func empty(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case float64:
		return v == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}
