package agenttest

import (
	"fmt"
	"testing"

	"github.com/psi-runtime/psi/pkg/channel"
)

// A signal that comes when the guest is about to sleep until the host says something wakes
// it: each of many comes at another moment around that one.
func TestSignalBeforeSleep(t *testing.T) {
	const rounds = 2000
	for name, receive := range map[string]string{"socket": "recv()", "socket, with a timeout": "recv(60)", "pipes": "recv()"} {
		t.Run(name, func(t *testing.T) {
			var g *guest
			if name == "pipes" {
				g, _ = startOnPipes(t)
			} else {
				g = start(t, nil)
			}
			g.exec(fmt.Sprintf(`
import random, signal
signal.signal(signal.SIGALRM, lambda *_: post("rung"))
for _ in range(%d):
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 2e-4))
    %s`, rounds, receive))
			for range rounds {
				g.posted("rung")
				g.post(0)
			}
		})
	}
}

// Guest code has its own pipe for signals while it wants one, as asyncio does, and a child the one that guest code set.
func TestWakeupFD(t *testing.T) {
	g := start(t, nil)
	g.exec(`
import asyncio, os, signal
async def main():
    rung = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, rung.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(rung.wait(), 10)
asyncio.run(main())
post(signal.set_wakeup_fd(-1))
r, w = os.pipe()
os.set_blocking(w, False)
before = signal.set_wakeup_fd(w)
signal.signal(signal.SIGUSR1, lambda *_: None)
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGUSR1)
    os._exit(0)
os.waitpid(pid, 0)
post([before, os.read(r, 1), signal.set_wakeup_fd(-1) == w])
signal.set_wakeup_fd(w)
os.close(w) # and it is still the one
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
post(os.WTERMSIG(os.waitpid(pid, 0)[1]))`)
	g.posted(int64(-1))
	g.posted([]any{int64(-1), []byte{10}, true})
	f, err := g.read()
	for err == nil && f.Type != channel.GuestPost { // CPython complains that it is closed
		f, err = g.read()
	}
	if err != nil {
		t.Fatal(err)
	}
	g.isValue(f, int64(15))
}
