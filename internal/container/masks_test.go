package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inMounts runs a test on a thread with mounts of its own.
func inMounts(t *testing.T, do func() error) {
	t.Helper()
	if _, err := hostProc(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// maskedVolume makes a volume in which a file and a directory are masked, that with a mask
// inside: as libcontainer does.
func maskedVolume(dir string) (m *Masks, volume string, err error) {
	source, volume := dir+"/source", dir+"/volume"
	for _, name := range []string{"door", "plain", "sub/x", "dir/y"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(source, name)), 0o755); err != nil {
			return nil, "", err
		}
		if err := os.WriteFile(filepath.Join(source, name), []byte(name), 0o644); err != nil {
			return nil, "", err
		}
	}
	err = errors.Join(os.Symlink("plain", source+"/link"), os.Symlink("plain", source+"/other"), os.Mkdir(volume, 0o755), unix.Mount(source, volume, "", unix.MS_BIND, ""))
	masked := []string{volume + "/sub/x", volume + "/door"}
	for _, name := range masked {
		err = errors.Join(err, unix.Mount(os.DevNull, name, "", unix.MS_BIND, ""))
	}
	err = errors.Join(err, unix.Mount("tmpfs", volume+"/sub", "tmpfs", unix.MS_RDONLY, ""))
	all, err2 := listMounts()
	if err := errors.Join(err, err2); err != nil {
		return nil, "", err
	}
	m = &Masks{volumes: map[string]mountInfo{}, placed: map[string]mask{}, linked: map[string]bool{volume + "/link": true}}
	for _, info := range all {
		switch {
		case info.place == volume:
			m.volumes[volume] = info
		case slices.Contains(masked, info.place):
			m.placed[info.place] = mask{info, true}
		case info.place == volume+"/sub":
			m.placed[info.place] = mask{info, false}
		}
	}
	return m, volume, nil
}

// sight is what is seen of a volume, and what is mounted there.
func sight(volume string) string {
	var out []string
	for _, name := range []string{"door", "plain", "sub/x", "dir/y"} {
		text, err := os.ReadFile(filepath.Join(volume, name))
		if err != nil {
			text = []byte("-")
		}
		out = append(out, name+"="+string(text))
	}
	var system unix.Statfs_t
	err := unix.Statfs(volume, &system)
	all, err2 := listMounts()
	var places []string
	for _, info := range all {
		if strings.HasPrefix(info.place, volume) {
			places = append(places, info.place[len(volume):])
		}
	}
	slices.Sort(places)
	return fmt.Sprint(out, places, system.Flags&unix.ST_RDONLY != 0, errors.Join(err, err2))
}

// dense fills the gaps between the descriptors that are open, and returns the next one.
func dense() (next int, release func(), err error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, nil, err
	}
	highest := 0
	for _, e := range entries {
		n, _ := strconv.Atoi(e.Name())
		highest = max(highest, n)
	}
	var fillers []*os.File
	release = func() { closeTrees(fillers) }
	for next <= highest {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return 0, release, err
		}
		fillers = append(fillers, f)
		next = int(f.Fd())
	}
	return next + 1, release, nil
}

// Each descriptor that a change needs is missing once. Nothing has changed then, nor once all
// that was done is taken back.
func TestRemaskWithoutDescriptors(t *testing.T) {
	dir := t.TempDir()
	inMounts(t, func() error {
		m, volume, err := maskedVolume(dir)
		if err != nil {
			return err
		}
		next, release, err := dense()
		if err != nil {
			return err
		}
		defer release()
		for _, tc := range []struct {
			masks []MaskedPath
			want  string
		}{
			{nil, "[door= plain=plain sub/x= dir/y=dir/y] [ /door /sub/x] true <nil>"},
			{
				[]MaskedPath{{volume + "/plain", volume, true}, {volume + "/dir", volume, true}, {volume + "/none", volume, false}, {volume + "/link", volume, false}},
				"[door= plain= sub/x= dir/y=-] [ /dir /door /plain /sub/x] true <nil>",
			},
		} {
			change := Remask{ReadOnly: map[string]bool{volume: true}, Unmask: []string{volume + "/sub"}, Masks: tc.masks}
			if err := starved(t, m, volume, change, next, tc.want); err != nil {
				return err
			}
		}
		return nil
	})
}

// starved makes a change with one descriptor more each time, until it is made, and takes it back.
func starved(t *testing.T, m *Masks, volume string, change Remask, next int, want string) error {
	before, steps := sight(volume), 0
	var old unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		return err
	}
	for more := range 60 {
		r := &remasking{Applied: &Applied{}, m: m, change: change}
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next + more), Max: old.Max}, nil); err != nil {
			return err
		}
		err := r.look()
		if err == nil {
			err = r.prepare()
		}
		if err == nil {
			steps++
			err = r.applyAll()
		}
		r.release()
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil); err != nil {
			return err
		}
		if err == nil {
			if got := sight(volume); got != want {
				t.Errorf("it sees %s, not %s", got, want)
			}
			err := r.undo.run()
			r.Keep()
			if got := sight(volume); got != before {
				t.Errorf("taken back, it sees %s, not %s", got, before)
			}
			t.Logf("failed %d times in the middle", steps-1)
			return err
		}
		r.Keep()
		if !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrTorn) {
			t.Errorf("%d more descriptors: %v", more, err)
		}
		if got := sight(volume); got != before {
			return fmt.Errorf("%d more descriptors: it sees %s, not %s", more, got, before)
		}
	}
	return errors.New("it needs more than 60 descriptors")
}

// What is refused is refused before anything has changed.
func TestRemaskRefuses(t *testing.T) {
	dir := t.TempDir()
	inMounts(t, func() error {
		m, volume, err := maskedVolume(dir)
		if err != nil {
			return err
		}
		before := sight(volume)
		for want, change := range map[string]Remask{
			"stays masked":          {Unmask: []string{volume + "/link"}},
			"is a link":             {Masks: []MaskedPath{{volume + "/other", volume, false}}},
			"there is no ":          {Masks: []MaskedPath{{volume + "/none", volume, true}}},
			"was a link, or behind": {ReadOnly: map[string]bool{dir: true}},
			"there is no " + volume + "/plain/x that": {Masks: []MaskedPath{{volume + "/plain/x", volume, true}}},
		} {
			r := &remasking{Applied: &Applied{}, m: m, change: change}
			if err := r.look(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v", want, err)
			}
			r.Keep()
		}
		if got := sight(volume); got != before {
			t.Errorf("it sees %s, not %s", got, before)
		}
		return nil
	})
}

func TestParseMount(t *testing.T) {
	for line, want := range map[string]mountInfo{
		"36 35 98:0 / /a\\040b\\134\\012c rw,noatime master:1 - ext3 /dev/root rw\n": {36, 35, "98:0 /", "/a b\\\nc", false},
		"7 1 0:5 /null /x\v\u0085y rw shared:3 - devtmpfs udev rw\n":                 {7, 1, "0:5 /null", "/x\v\u0085y", true},
		"8 1 0:5 / /shared:1 rw - tmpfs shared:1 rw\n":                               {8, 1, "0:5 /", "/shared:1", false},
	} {
		if got, err := parseMount(line); err != nil || got != want {
			t.Errorf("%q: %+v, %v", line, got, err)
		}
	}
	for _, line := range []string{"", "1 2 3\n", "x 1 0:5 / / rw - tmpfs tmpfs rw\n"} {
		if got, err := parseMount(line); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}
