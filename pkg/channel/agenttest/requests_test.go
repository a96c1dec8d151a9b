package agenttest

import (
	"strings"
	"testing"
	"time"

	"github.com/psi-runtime/psi/pkg/channel"
)

func TestReady(t *testing.T) {
	g := start(t, nil)
	if g.ready.PID != g.cmd.Process.Pid || !strings.HasPrefix(g.ready.Python, "3.") {
		t.Errorf("READY says %+v", g.ready)
	}
}

func TestRequestsRunInOrder(t *testing.T) {
	g := start(t, nil)
	first := g.exec("x = 1\nfrom math import sqrt; post(sqrt(2))")
	second := g.exec("x += 1; post((x, {1: [x]}))")
	third := g.call("pow", 2, 10)
	fourth := g.exec("def double(n, *, plus=0): return 2 * n + plus")
	fifth := g.call("double", 21)
	g.posted(1.4142135623730951)
	g.done(first)
	g.posted(channel.Tuple{int64(2), channel.Dict{Class: "dict", Pairs: []channel.Pair{{Key: int64(1), Value: []any{int64(2)}}}}})
	g.done(second)
	g.result(third, int64(1024))
	g.done(fourth)
	g.result(fifth, int64(42))
	g.result(g.call("math.sqrt", 2), 1.4142135623730951)
	g.result(g.call("os.path.join", "a", "b"), "a/b")
	g.result(g.call("xml.etree.ElementTree.iselement", 1), false)
}

func TestPostsReachTheGuest(t *testing.T) {
	g := start(t, nil)
	g.post("early")
	id := g.exec("post(recv()); post(recv()); post([recv() for _ in range(3)])")
	large := strings.Repeat("é", 1<<20)
	g.posted("early")
	g.post(large)
	g.posted(large)
	for i := range 3 {
		g.post(i)
	}
	g.posted([]any{int64(0), int64(1), int64(2)})
	g.done(id)
}

func TestGuestRecvTimesOut(t *testing.T) {
	g := start(t, nil)
	begin := time.Now()
	id := g.exec("recv(timeout=0.2)")
	g.failed(id, "TimeoutError")
	if took := time.Since(begin); took < 200*time.Millisecond {
		t.Errorf("after %v", took)
	}
	g.failed(g.exec("recv(0)"), "TimeoutError")
	id = g.exec("post(recv(timeout=10))")
	g.post("in time")
	g.posted("in time")
	g.done(id)
}

func TestExceptionsCrossAsData(t *testing.T) {
	g := start(t, nil)
	found := g.failed(g.exec("def f():\n    raise KeyError('k', (1,))\nf()"), "KeyError")
	if found.Module != "builtins" || len(found.Args) != 2 || !strings.Contains(found.Traceback, "raise KeyError('k', (1,))") {
		t.Errorf("%+v", found)
	}
	if strings.Contains(found.Traceback, "session.py") {
		t.Errorf("the agent's frames are in it:\n%s", found.Traceback)
	}
	g.failed(g.exec("x = = 1"), "SyntaxError")
	g.failed(g.call("no_such_name"), "NameError")
	g.failed(g.call("math.no_such_name"), "ModuleNotFoundError")
	g.failed(g.exec("import sys; sys.exit(3)"), "SystemExit")
	g.failed(g.exec("raise GeneratorExit"), "GeneratorExit")
	g.failed(g.exec("class E(Exception):\n  def __str__(self): raise ValueError\nraise E"), "E")
	g.failed(g.exec("class Evil(type):\n  @property\n  def __name__(c): raise ValueError\nclass E(Exception, metaclass=Evil): pass\nraise E"), "E")
	g.failed(g.exec("raise ValueError('x' * 10**7)"), "ValueError")
	g.failed(g.exec("raise ValueError('\\ud800\\U0001f600' * 10**5)"), "ValueError")
	g.failed(g.exec("def f(): f()\nf()"), "RecursionError")
	g.failed(g.exec("import sys; sys.setrecursionlimit(5000)\nx=[]\nfor i in range(100000): x=[x]\npost(x)"), "CodecError")
	g.alive()
}

func TestDeepRecursionAtPost(t *testing.T) {
	g := start(t, nil)
	// Whatever call fails, deep down, frames stay whole.
	id := g.exec(`
def f(n):
    try:
        post(n)
        f(n + 1)
    except RecursionError:
        try:
            post("deep")
        except RecursionError:
            raise
f(0)`)
	posts := 0
	for {
		f, err := g.read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == channel.GuestPost {
			posts++
		} else if f.ID == id {
			break
		}
	}
	if posts < 500 {
		t.Errorf("%d posts", posts)
	}
	g.alive()
}

func TestUnencodableValues(t *testing.T) {
	g := start(t, config{"message": 1000})
	for source, kind := range map[string]string{
		"post(object())": "TypeError", "post(lambda: 1)": "TypeError", "post([open('/dev/null')])": "TypeError",
		"post({object(): 1})": "TypeError", "l = []; l.append(l); post(l)": "CodecError", "post('x' * 10**6)": "CodecError",
		"post(b'x' * 10**6)": "CodecError", "post(2 ** (1 << 22))": "CodecError", "post(type)": "TypeError",
	} {
		found := g.failed(g.exec(source), kind)
		if !strings.Contains(found.Message, "cannot") && !strings.Contains(found.Message, "limit") {
			t.Errorf("%s: %s", source, found.Message)
		}
	}
	g.failed(g.call("object"), "TypeError")
	g.alive()
}

func TestInterrupt(t *testing.T) {
	g := start(t, nil)
	for _, source := range []string{
		"while True: pass", "import time; time.sleep(60)", "recv()", "recv(timeout=60)", "import threading; threading.Event().wait()",
		"import asyncio; asyncio.run(asyncio.sleep(60))", "import queue; queue.Queue().get()", "while True: post",
	} {
		id := g.busy(source)
		begin := time.Now()
		g.send(channel.Interrupt, id, nil)
		g.failed(id, "KeyboardInterrupt")
		if took := time.Since(begin); took > time.Second {
			t.Errorf("%s: ended after %v", source, took)
		}
	}
	g.send(channel.Interrupt, 1, nil) // long over
	g.send(channel.Interrupt, 4_000_000_000, nil)
	g.alive()
}

// Who has read often enough gets a thread that looks out for interrupts; before that the kernel does.
func TestThreadOnlyWhenItPays(t *testing.T) {
	g := start(t, nil)
	threads := func() uint32 { return g.exec("import os; post(len(os.listdir('/proc/self/task')))") }
	for _, expected := range []int64{1, 2} {
		id := threads()
		g.posted(expected)
		g.done(id)
		busy := g.busy("while True: pass")
		g.send(channel.Interrupt, busy, nil)
		g.failed(busy, "KeyboardInterrupt")
		for range 40 {
			g.result(g.call("abs", -5), int64(5))
		}
	}
}

func TestInterruptCanBeCaught(t *testing.T) {
	g := start(t, nil)
	id := g.busy("import time\ntry:\n  while True: time.sleep(0.01)\nexcept KeyboardInterrupt: post('caught')")
	g.send(channel.Interrupt, id, nil)
	g.posted("caught")
	g.done(id)
}

func TestCancelOfQueuedRequest(t *testing.T) {
	g := start(t, nil)
	running := g.busy("import time; time.sleep(0.3)")
	queued := g.exec("post('never')")
	call := g.call("abs", -5)
	interrupted := g.exec("post('never')")
	g.send(channel.Cancel, queued, nil)
	g.send(channel.Interrupt, interrupted, nil)
	if f := g.failed(queued, "CancelledError"); f.Traceback != "" {
		t.Errorf("traceback %q", f.Traceback)
	}
	g.failed(interrupted, "CancelledError")
	g.send(channel.Cancel, running, nil) // too late: ignored
	g.done(running)
	g.result(call, int64(5))
	g.send(channel.Cancel, call, nil)
	g.alive()
}

func TestInterruptsAtEveryMoment(t *testing.T) {
	g := start(t, nil)
	for i := range 300 {
		id := g.exec("for i in range(30): post(i)\nprint('x' * 100)")
		time.Sleep(time.Duration(i%60) * 20 * time.Microsecond)
		g.send(channel.Interrupt, id, nil)
		for {
			f, err := g.read()
			if err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			if f.Type == channel.Done || f.Type == channel.Error {
				if f.ID != id {
					t.Fatalf("answer to %d, want %d", f.ID, id)
				}
				break
			}
		}
	}
	g.alive()
}
