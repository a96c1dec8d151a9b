package container

import (
	"os/exec"
	"strings"
	"testing"
)

// The process that becomes a hook reads what libcontainer says, and nothing else.
func TestHookProcess(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for state, want := range map[string]string{
		`{"id":"x","status":"creating","pid":7}`:                    `{"id":"x","status":"created" ,"pid":7}`,
		`{"status":"stopped"}`:                                      `{"status":"created"}`,
		`{"status":"creating","annotations":{"status":"creating"}}`: `{"status":"created" ,"annotations":{"status":"creating"}}`,
		`{"bundle":"/\"status\":\"b\"","status":"creating"}`:        `{"bundle":"/\"status\":\"b\"","status":"created" }`,
		`{"status":"creating","annotations":{"a":"` + long + `"}}`:  `{"status":"created" ,"annotations":{"a":"` + long + `"}}`,
		`{"status":"paused"}`:                                       "", `{"status":"creating`: "", `{"status":"`: "", `{}`: "", ``: "",
	} {
		cmd := exec.Command("/proc/self/exe", hookWord, "/bin/cat", "cat")
		cmd.Stdin = strings.NewReader(state)
		got, err := cmd.Output()
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%.100q: got %.100q, %v", state, got, err)
		}
	}
	for _, args := range [][]string{{hookWord}, {hookWord, "/bin/true"}, {hookWord, "/no/such", "such"}} {
		cmd := exec.Command("/proc/self/exe", args...)
		cmd.Stdin = strings.NewReader(`{"status":"creating"}`)
		if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 127 {
			t.Errorf("%q: %v", args, err)
		}
	}
}
