package supervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/pkg/channel"
)

// testGuest is the client's side of one guest.
type testGuest struct {
	id      string
	reply   map[string]any
	channel *os.File
	in      *channel.Reader
	out     *channel.Writer
}

// spawn makes a guest and waits until its agent is ready.
func (c *testClient) spawn(t testing.TB, name string, policy map[string]any) *testGuest {
	t.Helper()
	a := c.must(t, map[string]any{"op": "spawn", "name": name, "policy": policy})
	g, err := newTestGuest(a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.close(t) })
	return g
}

func newTestGuest(a answer) (*testGuest, error) {
	g := &testGuest{
		channel: a.file, in: channel.NewReader(a.file, channel.FromGuest, 64<<20), out: channel.NewWriter(a.file),
	}
	if err := json.Unmarshal(a.OK, &g.reply); err != nil {
		return nil, err
	}
	g.id = g.reply["guest"].(string)
	if g.reply["ready"] != nil {
		return g, nil
	}
	first, err := g.in.Read()
	if err == nil && first.Type != channel.Ready {
		err = fmt.Errorf("the first frame has type %d", first.Type)
	}
	return g, err
}

// close checks that nothing of the guest is left, once its supervisor had the time.
func (g *testGuest) close(t testing.TB) {
	t.Helper()
	_ = g.channel.Close()
	var left []string
	for range 400 {
		if left = cgroupsOf(g.id); len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("left of guest %s: %v", g.id, left)
}

// cgroupsOf lists the cgroup directories of a guest in every hierarchy.
func cgroupsOf(id string) []string {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/psi/", "/sys/fs/cgroup/*/psi/", "/sys/fs/cgroup/*/*/psi/", "/sys/fs/cgroup/*/*/*/psi/"} {
		dirs, _ := filepath.Glob(pattern + id + "*") // the name may carry more than the id
		found = append(found, dirs...)
	}
	return found
}

// pidsOf lists the processes of a guest as this process's pid namespace numbers them.
func pidsOf(id string) []string {
	var pids []string
	for _, dir := range cgroupsOf(id) {
		data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		pids = append(pids, strings.Fields(string(data))...)
	}
	return pids
}

// start sends source to run without waiting for it.
func (g *testGuest) start(source string) error {
	return g.out.Write(channel.Frame{Type: channel.Exec, ID: 1, Payload: []byte(source)})
}

// exec runs source and returns what it posted, as Go prints it.
func (g *testGuest) exec(source string) (posted []string, err error) {
	if err := g.start(source); err != nil {
		return nil, err
	}
	for {
		frame, err := g.in.Read()
		switch {
		case err != nil:
			return posted, err
		case frame.Type == channel.Done:
			return posted, nil
		case frame.Type == channel.Error:
			return posted, fmt.Errorf("guest: %s", frame.Payload)
		case frame.Type == channel.GuestPost:
			value, err := channel.Decode(frame.Payload, channel.DecodeOptions{})
			if err != nil {
				return posted, err
			}
			posted = append(posted, fmt.Sprint(value))
		}
	}
}

func (g *testGuest) run(t testing.TB, source string) string {
	t.Helper()
	posted, err := g.exec(source)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return strings.Join(posted, " ")
}

// occupy leaves the guest inside a long call of C code: from then on it runs no
// Python, sees no signal and no end of its channel.
func (c *testClient) occupy(t testing.TB, g *testGuest) {
	t.Helper()
	used := func() float64 {
		var stats struct {
			CPU float64 `json:"cpu_ms"`
		}
		if err := json.Unmarshal(c.must(t, map[string]any{"op": "stats", "guest": g.id}).OK, &stats); err != nil {
			t.Fatal(err)
		}
		return stats.CPU
	}
	before := used()
	if err := g.start("sum(range(10**12))"); err != nil {
		t.Fatal(err)
	}
	// Far more than it takes to get there.
	for used() < before+float64(scaled(50)) {
		time.Sleep(10 * time.Millisecond)
	}
}
