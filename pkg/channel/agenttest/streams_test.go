package agenttest

import (
	"bytes"
	"strconv"
	"strings"
	"testing"

	"github.com/psi-runtime/psi/pkg/channel"
)

func TestOutputBecomesFrames(t *testing.T) {
	g := start(t, nil)
	id := g.exec("import sys\nprint('out', 'é')\nprint('err', file=sys.stderr)\nprint('no newline', end='', flush=True)\nsys.stdout.buffer.write(b'\\xff')")
	for _, want := range []struct {
		typ  channel.Type
		text string
	}{{channel.Stdout, "out é\n"}, {channel.Stderr, "err\n"}, {channel.Stdout, "no newline"}, {channel.Stdout, "\xff"}} {
		f := g.frame(want.typ)
		if f.ID != id || string(f.Payload) != want.text {
			t.Fatalf("got %d %q, want %q", f.ID, f.Payload, want.text)
		}
	}
	g.done(id)
	id = g.exec("print('x' * 200_000)")
	g.output(channel.Stdout, strings.Repeat("x", 200_000)+"\n")
	g.done(id)
	id = g.exec("import sys; post(sys.stdin.read()); sys.stdout.close()\ntry: print(1)\nexcept ValueError: post('closed')")
	g.posted("")
	g.posted("closed")
	g.done(id)
	g.alive()
}

func TestOutputOfCCodeAndChildren(t *testing.T) {
	g := start(t, nil)
	id := g.exec("import os; os.write(1, b'fd 1'); os.write(2, b'fd 2')")
	g.output(channel.Stdout, "fd 1")
	g.output(channel.Stderr, "fd 2")
	g.done(id)
	id = g.exec("import subprocess; subprocess.run(['sh', '-c', 'yes | head -c 300000'])")
	g.output(channel.Stdout, strings.Repeat("y\n", 150_000))
	g.done(id)
	id = g.exec("import os\npid = os.fork()\nif pid == 0:\n  print('child'); os._exit(3)\npost(os.waitpid(pid, 0)[1] >> 8)")
	g.output(channel.Stdout, "child\n")
	g.posted(int64(3))
	g.done(id)
}

// A child that never stops writing neither blocks the guest nor loses order.
func TestEndlessOutput(t *testing.T) {
	g := start(t, config{"output": 50_000_000})
	id := g.exec("import subprocess, time\nchild = subprocess.Popen(['sh', '-c', 'i=0; while :; do echo $i; i=$((i+1)); done'])\ntime.sleep(1)\nchild.kill(); child.wait()")
	var out strings.Builder
	for {
		f, err := g.read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == channel.Done && f.ID == id {
			break
		}
		out.Write(f.Payload)
	}
	lines := strings.Split(out.String(), "\n")
	for i, line := range lines[:len(lines)-1] {
		if line != strconv.Itoa(i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	if len(lines) < 1000 {
		t.Errorf("%d lines", len(lines))
	}
	g.alive()
}

func TestOutputLimit(t *testing.T) {
	g := start(t, config{"output": 1000})
	id := g.exec("import sys\nsys.stderr.write('e' * 400)\nfor _ in range(100000): print('x' * 99)\npost('on')")
	var out bytes.Buffer
	notices := 0
	for {
		f, err := g.read()
		if err != nil {
			t.Fatal(err)
		}
		switch f.Type {
		case channel.Stdout, channel.Stderr:
			out.Write(f.Payload)
			continue
		case channel.Notice:
			notice, err := channel.ParseNotice(f.Payload)
			if err != nil || notice["output"] != "cut" || notice["limit"] != 1000.0 {
				t.Errorf("notice %v, %v", notice, err)
			}
			notices++
			continue
		}
		g.isValue(f, "on")
		break
	}
	g.done(id)
	if out.Len() != 1000 || notices != 1 {
		t.Errorf("%d bytes of output and %d notices", out.Len(), notices)
	}
	g.exec("import os; os.write(1, b'z' * 100)")
	g.frame(channel.Done)
}

func TestThreads(t *testing.T) {
	g := start(t, nil)
	id := g.exec(`
import threading
def work(k):
    for i in range(200):
        post((k, i, "x" * (i * 700)))
        print(k)
threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
for t in threads: t.start()
for t in threads: t.join()`)
	next := map[int64]int64{}
	for posts := 0; ; {
		f, err := g.read()
		if err != nil {
			t.Fatalf("after %d posts: %v", posts, err)
		}
		if f.Type == channel.Done && f.ID == id {
			if posts != 1600 {
				t.Errorf("%d posts", posts)
			}
			break
		}
		if f.Type != channel.GuestPost {
			continue
		}
		posts++
		value, err := channel.Decode(f.Payload, channel.DecodeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		post := value.(channel.Tuple)
		k, i := post[0].(int64), post[1].(int64)
		if next[k] != i || len(post[2].(string)) != int(i)*700 {
			t.Fatalf("thread %d: post %d, want %d", k, i, next[k])
		}
		next[k]++
	}
	g.alive()
}

func TestThreadsReceive(t *testing.T) {
	g := start(t, nil)
	id := g.exec(`
import threading
def work():
    while True:
        n = recv()
        if n is None: return
        post(n + 1)
threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()`)
	g.done(id) // they go on while the main thread waits for requests
	sum := int64(0)
	for i := range 500 {
		g.post(i)
	}
	for range 500 {
		f := g.frame(channel.GuestPost)
		value, err := channel.Decode(f.Payload, channel.DecodeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		sum += value.(int64)
	}
	if sum != 500*501/2 {
		t.Errorf("sum %d", sum)
	}
	g.alive() // a request gets through while four threads wait in recv
	busy := g.busy("while True: pass")
	g.send(channel.Interrupt, busy, nil) // read by one of them
	g.failed(busy, "KeyboardInterrupt")
	for range 4 {
		g.post(nil)
	}
	g.done(g.exec("for t in threads: t.join()"))
}
