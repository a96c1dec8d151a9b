package agenttest

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/psi-runtime/psi/pkg/channel"
)

func TestSIGTERM(t *testing.T) {
	for name, source := range map[string]string{
		"idle": "", "loop": "while True: pass", "sleep": "import time; time.sleep(60)", "recv": "recv()",
		"recv with timeout": "recv(60)", "lock": "import threading; threading.Lock().acquire(); l = threading.Lock(); l.acquire(); l.acquire()",
		"thread":             "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()\nwhile True: pass",
		"posts nobody reads": "while True: post('x' * 1000)", "large posts nobody reads": "while True: post('x' * 10**7)",
		"output nobody reads": "while True: print('x' * 1000)",
	} {
		best := patience // of three: other programs run on this machine too
		for range 3 {
			best = min(best, timeToEnd(t, source, strings.Contains(name, "nobody reads")))
		}
		if best > 50*time.Millisecond {
			t.Errorf("%s: ended after %v", name, best)
		}
	}
}

// timeToEnd is how long a guest busy with source takes to end after SIGTERM.
func timeToEnd(t *testing.T, source string, stuck bool) time.Duration {
	t.Helper()
	g := start(t, nil)
	if source != "" {
		g.busy(source)
	}
	begin := time.Now()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if stuck { // it may wait to say its last words; a second signal ends that, if the first has arrived
		again := time.NewTicker(10 * time.Millisecond)
		defer again.Stop()
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			for {
				select {
				case <-ended:
					return
				case <-again.C:
					_ = g.cmd.Process.Signal(syscall.SIGTERM)
				}
			}
		}()
	}
	g.exits(0)
	return time.Since(begin)
}

func TestSIGTERMRunsExitFunctions(t *testing.T) {
	g := start(t, nil)
	g.busy("import atexit, time\natexit.register(post, 'exit function')\ntry: time.sleep(60)\nfinally: post('finally')")
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	g.posted("finally")
	g.posted("exit function")
	g.closed()
	g.exits(0)
}

func TestEOFEnds(t *testing.T) {
	for _, source := range []string{"", "recv()", "recv(60)", "while True: pass", "import time; time.sleep(60)"} {
		g := start(t, nil)
		if source != "" {
			g.busy(source)
		}
		g.conn.Close()
		g.exits(0)
	}
}

func TestGuestEndsItself(t *testing.T) {
	for source, code := range map[string]int{
		"import os; os._exit(7)":                                                         7,
		"import os; os.closerange(3, 1000); post(1)":                                     74,
		"import os; os.closerange(0, 256); print('x')":                                   74,
		"import os; os.closerange(0, 256)":                                               74,
		"import os, signal; os.kill(os.getpid(), 9)":                                     -1,
		"import _thread, os; _thread.start_new_thread(os._exit, (5,))\nwhile True: pass": 5,
	} {
		g := start(t, nil)
		g.exec(source)
		g.closed()
		g.exits(code)
	}
}

func TestDuplicatedDescriptors(t *testing.T) {
	g := start(t, nil)
	id := g.exec(`
import os
null = os.open("/dev/null", os.O_RDWR)
for fd in range(0, 190):
    os.dup2(null, fd)
print("still here")
post("and here")`)
	g.output(channel.Stdout, "still here\n")
	g.posted("and here")
	g.done(id)

	g = start(t, nil)
	g.exec("import os\nnull = os.open('/dev/null', os.O_RDWR)\nfor fd in range(256):\n  os.dup2(null, fd)\npost(1)\nrecv()")
	g.closed() // the channel itself is gone
}

func TestGarbageOnTheChannel(t *testing.T) {
	for _, garbage := range []string{"b'garbage, and no frame at all'", `b'\0' * 100`, `b'\xff' * 100`, `b'\0\0\0\5\x14\0\0\0\0\0\0\0S'`} {
		g := start(t, nil)
		g.exec("import os\nfor fd in range(3, 256):\n  try: os.write(fd, " + garbage + "); break\n  except OSError: pass\nwhile True: print('x')")
		for {
			f, err := g.read()
			if errors.Is(err, channel.ErrProtocol) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", garbage, err)
			}
			if f.Type == channel.Done {
				t.Fatalf("%s: not noticed", garbage)
			}
		}
	}
}

func TestForkedChildrenCannotCorrupt(t *testing.T) {
	g := start(t, nil)
	id := g.exec(`
import os
def child():
    for attempt in (lambda: post('from a child'), lambda: recv(0), lambda: recv()):
        try: attempt()
        except RuntimeError: print('refused', flush=True)
for i in range(5):
    if os.fork() == 0:
        child()
        break       # and on into the agent's own code
else:
    for i in range(5): os.wait()
    post('parent')`)
	g.output(channel.Stdout, strings.Repeat("refused\n", 15))
	g.posted("parent")
	g.done(id)
	id = g.exec("import os\nif os.fork() == 0: raise ValueError('in the child')\npost(os.wait()[1] >> 8)")
	text := ""
	for !strings.Contains(text, "ValueError: in the child\n") {
		text += string(g.frame(channel.Stderr).Payload)
	}
	g.posted(int64(1))
	g.done(id)
	id = g.exec("import multiprocessing as mp\nwith mp.get_context('fork').Pool(3) as pool: post(pool.map(abs, [-1, -2, -3]))")
	g.posted([]any{int64(1), int64(2), int64(3)})
	g.done(id)
	g.alive()
}

func TestSignalHandlersOfTheGuest(t *testing.T) {
	g := start(t, nil)
	g.exec(`
import signal, time
class Tick(Exception): pass
armed = False
def tick(signum, frame):
    global armed
    if armed:
        armed = False
        raise Tick("tock")
before = signal.signal(signal.SIGALRM, tick)
assert before == signal.SIG_DFL and signal.getsignal(signal.SIGALRM) is tick
ticks = 0
end = time.monotonic() + 1
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        armed = True
        while True:
            post("x" * 20000)
            print("line")
    except Tick:
        ticks += 1
signal.setitimer(signal.ITIMER_REAL, 0)
post(ticks > 50)`)
	for {
		f, err := g.read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == channel.GuestPost && string(f.Payload) == "Jtrue" {
			break
		}
		if f.Type == channel.Error {
			t.Fatalf("%s", f.Payload)
		}
	}
	for { // what an interrupted print left in its buffer
		f, err := g.read()
		if err != nil || (f.Type != channel.Stdout && f.Type != channel.Done) {
			t.Fatalf("type %d, %v", f.Type, err)
		}
		if f.Type == channel.Done {
			break
		}
	}
	id := g.busy("armed = True; signal.setitimer(signal.ITIMER_REAL, 0.1)\nrecv()")
	g.failed(id, "Tick")
	// Between two requests the handler's exception goes to stderr.
	g.done(g.exec("armed = True; signal.setitimer(signal.ITIMER_REAL, 0.05)"))
	text := ""
	for !strings.Contains(text, "Tick: tock\n") {
		text += string(g.frame(channel.Stderr).Payload)
	}
	g.alive()
}

func TestDestructorsThatPost(t *testing.T) {
	g := start(t, nil)
	id := g.exec(`
import gc
class D:
    def __init__(self): self.me = self
    def __del__(self): print("d")
gc.set_threshold(1)
for i in range(300):
    D()
    post([[i] for i in range(3)])
gc.set_threshold(700)
gc.collect()`)
	posts, lines := 0, 0
	for {
		f, err := g.read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == channel.Done && f.ID == id {
			break
		}
		if f.Type == channel.GuestPost {
			posts++
		}
		lines += strings.Count(string(f.Payload), "d\n")
	}
	if posts != 300 || lines != 300 {
		t.Errorf("%d posts and %d lines", posts, lines)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	g := start(t, nil)
	// The agent is no process 1 here; as a subreaper it inherits orphans as well.
	id := g.exec(`
import ctypes, os, subprocess, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
mine = subprocess.Popen(["sh", "-c", "exit 9"])
for i in range(3): subprocess.run(["sh", "-c", "sleep 0.05 & exit 0"])
time.sleep(0.3)
post(mine.pid)`)
	f := g.frame(channel.GuestPost)
	mine, err := channel.Decode(f.Payload, channel.DecodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	g.done(id)
	begin := time.Now()
	for {
		zombies := zombiesOf(t, g.cmd.Process.Pid)
		if len(zombies) == 1 && zombies[0] == int(mine.(int64)) {
			break
		}
		if time.Since(begin) > patience {
			t.Fatalf("still dead: %v", zombies)
		}
		time.Sleep(50 * time.Millisecond)
	}
	id = g.exec("post(mine.wait()); post(os.system('exit 4') >> 8)")
	g.posted(int64(9)) // the guest's own child was left to the guest
	g.posted(int64(4))
	g.done(id)
}

func zombiesOf(t *testing.T, parent int) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if fields[0] == "Z" && fields[1] == strconv.Itoa(parent) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			found = append(found, pid)
		}
	}
	return found
}
