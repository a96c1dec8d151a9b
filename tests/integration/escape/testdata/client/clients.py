"""What hostile guests can do to a client over time, and to each other.

Floods of values, output and answers while nobody receives; a guest that does not read, does not end, does not let go;
processes that outlive their guest; a link that one guest leaves where the next one's policy points. Each attack prints
`held` or `ESCAPED`. With --control what looks for the damage is shown some, and must see it.
"""

import os
import sys
import tempfile
import threading
import time
import traceback

import pyisolate as psi
from channel import PRELUDE, processes, size

SLOW = float(os.environ.get("PSI_ESCAPE_PATIENCE", "1"))
BOUND = 3 * SLOW  # of what has to end in time: other work runs beside
ATTACKS = []


class Escaped(Exception):
    """The attack worked."""


def attack(function):
    ATTACKS.append(function)
    return function


def spawn(code, name="hostile", **policy):
    sandbox = psi.spawn(name, policy={"message": "1MiB", "output": "1MiB", **policy})
    sandbox.exec(PRELUDE + code)
    return sandbox


def bounded(start, limit=64):
    if size() - start > limit:
        raise Escaped(f"the client grew by {size() - start:.0f} MiB")


def within(start, seconds):
    if time.monotonic() - start > seconds * BOUND:
        raise Escaped(f"it took {time.monotonic() - start:.1f} s")


def gone(sandbox):
    """No process of the guest is left, within five seconds."""
    end = time.monotonic() + 5 * BOUND
    while processes(sandbox.id):
        if time.monotonic() > end:
            raise Escaped(f"processes {processes(sandbox.id)} are left")
        time.sleep(0.05)


@attack
def flood_of_values_that_nobody_receives():
    before = size()
    sandbox = spawn("data = frame(POST, b'S' + b'x' * 1000000)\nwhile True: raw(data)")
    for _ in range(10):
        try:
            sandbox.stats
            sandbox.stdout  # reads what has come
        except psi.SandboxError:
            break
        time.sleep(0.1)
    bounded(before)
    sandbox.close()
    gone(sandbox)


@attack
def flood_of_small_values_during_a_call():
    before, start = size(), time.monotonic()
    sandbox = psi.spawn("hostile", policy={"message": "1MiB"})
    sandbox.exec(PRELUDE + "def flood():\n  data = frame(POST, b'J1') * 1000\n  while True: raw(data)\nthreading.Thread(target=flood, daemon=True).start()")
    waiter = threading.Thread(target=lambda: quiet(lambda: sandbox.call("time.sleep", 600)), daemon=True)
    waiter.start()
    time.sleep(3)
    bounded(before)
    sandbox.close()
    waiter.join(10 * BOUND)
    if waiter.is_alive():
        raise Escaped("close did not end the call that waited")
    within(start, 15)
    gone(sandbox)


def quiet(do):
    try:
        do()
    except psi.SandboxError:
        pass


@attack
def flood_of_output():
    before, start = size(), time.monotonic()
    for code in ("data = frame(STDOUT, b'x' * 60000)\nwhile True: raw(data)", "while True: os.write(1, b'x' * 60000)", "while True: print('x' * 60000, flush=True)"):
        sandbox = spawn(code)
        quiet(lambda: sandbox.recv(timeout=2))
        bounded(before)
        sandbox.close()
        gone(sandbox)
    within(start, 30)


@attack
def flood_of_empty_frames():
    before, start = size(), time.monotonic()
    sandbox = spawn("data = frame(STDERR) * 5000\nwhile True: raw(data)")
    try:
        sandbox.recv(timeout=2)
    except psi.TimeoutError:
        pass
    within(start, 8)
    bounded(before)
    sandbox.close()
    gone(sandbox)


@attack
def a_guest_that_does_not_read():
    before, start = size(), time.monotonic()
    sandbox = spawn("signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})\npost(1)\nhold()")
    if sandbox.recv(timeout=10 * SLOW) != 1:  # from here on nobody reads the channel
        raise Escaped("it did not begin")
    try:
        for _ in range(200):
            sandbox.post("x" * 1000000)
        raise Escaped("200 MB were taken for a guest that does not read")
    except psi.SandboxError as error:
        if isinstance(error, psi.TimeoutError):
            raise Escaped("post waited")
    bounded(before, 160)
    within(start, 10)
    sandbox.close()
    gone(sandbox)


@attack
def a_guest_that_ignores_sigterm_and_forks():
    sandbox = spawn("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nfor _ in range(20):\n  if os.fork() == 0:\n    os.setsid(); hold()\nhold()")
    time.sleep(0.3)
    start = time.monotonic()
    sandbox.close(timeout=0.2)
    within(start, 3)
    gone(sandbox)


@attack
def a_fork_bomb_that_is_closed():
    sandbox = spawn("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n  try:\n    os.fork()\n  except OSError: pass")
    time.sleep(0.5)
    start = time.monotonic()
    sandbox.close(timeout=0.2)
    within(start, 6)
    gone(sandbox)


@attack
def pid_1_ends_and_leaves_others():
    sandbox = spawn("for _ in range(10):\n  if os.fork() == 0:\n    os.setsid()\n    while True: time.sleep(0.1)\nos._exit(0)")
    try:
        sandbox.recv(timeout=5)
        raise Escaped("a value came")
    except psi.TimeoutError:
        raise Escaped("the guest still seems to run")
    except psi.SandboxError as error:
        if error.cause != "exit":
            raise Escaped(f"cause {error.cause}")
    gone(sandbox)


@attack
def exit_codes_that_look_like_limits():
    for code in ("os._exit(137)", "os._exit(255)", "os.kill(os.getpid(), 9)", "signal.signal(signal.SIGXCPU, signal.SIG_DFL); os.kill(1, signal.SIGXCPU); os._exit(152)",
                 "raise MemoryError('forged')", "sys.exit('MemoryExceeded')"):
        sandbox = spawn(code)
        try:
            sandbox.recv(timeout=3)
        except (psi.MemoryExceeded, psi.CPUExceeded) as error:
            raise Escaped(f"{code}: {type(error).__name__}")
        except psi.SandboxError:
            pass
        sandbox.close()
        gone(sandbox)


@attack
def descriptors_in_the_client():
    count = lambda: len(os.listdir("/proc/self/fd"))
    sandbox = spawn("s = socket.socket(fileno=os.dup(ch))\nfds = [os.open('/dev/null', 0) for _ in range(50)]\n"
                    "for _ in range(40):\n  try: s.sendmsg([frame(STDOUT, b'x')], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('50i', *fds))])\n  except OSError: time.sleep(0.01)\nhold()")
    before = count()
    try:
        sandbox.recv(timeout=2)
    except psi.SandboxError:
        pass
    if count() > before:
        raise Escaped(f"{count() - before} descriptors came")
    sandbox.close()


@attack
def text_for_the_terminal():
    sandbox = psi.spawn("hostile", policy={"message": "1MiB"})
    sandbox.exec("raise ValueError('\\x1b]0;owned\\x07\\x1b[2J\\u202e')")
    try:
        sandbox.recv(timeout=5)
    except psi.SandboxError as error:
        shown = str(error) + repr(error) + "".join(traceback.format_exception(type(error), error, None))
        if any(each in shown for each in "\x1b\x07\u202e"):
            raise Escaped(f"control characters reach the terminal: {str(error)!r}")
    finally:
        sandbox.close()


@attack
def one_guest_cannot_reach_another():
    one, other = spawn("hold()", "one"), spawn("recv()", "other")
    probe = psi.spawn("probe")
    probe.exec("import os\npost([name for name in os.listdir('/proc') if name.isdigit() and name != '1'])\npost(open('/proc/self/uid_map').read().split()[1])")
    seen, uid = probe.recv(timeout=10), probe.recv(timeout=10)
    other_uid = [line.split()[1] for line in open("/proc/self/uid_map")]
    for each in (one, other, probe):
        each.close()
    if seen:
        raise Escaped(f"processes {seen}")
    if uid in other_uid:
        raise Escaped("the guest runs as a user of the client")


def linked(base):
    """A directory that guests may write, with a link in it that the host made (as `latest` and `current` are)."""
    os.chmod(base, 0o755)
    os.makedirs(base + "/work/real")
    os.makedirs(base + "/outside")
    os.symlink("../outside", base + "/work/latest")
    for name, text in (("work/real/secret", "harmless"), ("outside/secret", "the secret of the host")):
        with open(f"{base}/{name}", "w") as file:
            file.write(text)


def next_guest(base, rule, number=0):
    """What a guest finds whose policy names a path that another one could change."""
    try:
        with psi.spawn(f"next{number}", policy={"fs": [rule]}) as sandbox:
            sandbox.exec(f"post(open({base!r} + '/work/real/secret').read())")
            got = sandbox.recv(timeout=10)
    except psi.SandboxError:
        return
    if got != "harmless":
        raise Escaped(f"the next guest sees what its policy does not name: {got!r}")


def left_for_the_next_guest(how):
    with tempfile.TemporaryDirectory(prefix="psi-escape-") as base:
        linked(base)
        with psi.spawn("first", policy={"fs": [{"write": base + "/work"}]}) as first:
            first.exec(f"import os\nos.chdir({base!r} + '/work')\nos.rename('real', 'kept')\n{how}\npost('done')")
            quiet(lambda: first.recv(timeout=10))
        for rule in (base + "/work/real", base + "/work/real/*", base + "/work/real/secret", {"write": base + "/work/real"}):
            next_guest(base, rule)


@attack
def a_link_that_a_guest_makes_for_the_next_one():
    left_for_the_next_guest("os.symlink('../outside', 'real')")


@attack
def a_link_that_a_guest_moves_for_the_next_one():
    left_for_the_next_guest("os.rename('latest', 'real')")


@attack
def a_link_moved_to_and_fro_while_guests_start():
    with tempfile.TemporaryDirectory(prefix="psi-escape-") as base:
        linked(base)
        with psi.spawn("swapper", policy={"fs": [{"write": base + "/work"}]}) as swapper:
            swapper.exec(f"import os\nos.chdir({base!r} + '/work')\npost('begins')\nwhile True:\n"
                         "  os.rename('real', 'kept'); os.rename('latest', 'real'); os.rename('real', 'latest'); os.rename('kept', 'real')")
            swapper.recv(timeout=10)
            for number in range(12):
                next_guest(base, base + "/work/real/*", number)
            if not swapper.alive:
                raise AssertionError("the swapper has ended")


def damage():
    """What the attacks look for, done on purpose: each of the checks must see it."""

    def memory():
        before = size()
        kept = [b"x" * (1 << 20) for _ in range(100)]
        bounded(before)
        kept.clear()

    def hang():
        start = time.monotonic()
        time.sleep(0.2)
        within(start, 0.1 / BOUND)

    def survivor():
        sandbox = spawn("hold()")
        try:
            gone(sandbox)  # it is not
        finally:
            sandbox.close()

    return [memory, hang, survivor]


def main():
    with psi.spawn("warm"):
        pass
    attacks = damage() if "--control" in sys.argv else ATTACKS
    for each in attacks:
        try:
            each()
            kind, text = "held", "as documented"
        except Escaped as escaped:
            kind, text = "ESCAPED", str(escaped)
        except BaseException:
            kind, text = "broken", traceback.format_exc()
        print(f"{kind}: {each.__name__.replace('_', ' ')}: {text}".replace("\n", " | ")[:1500], flush=True)
    print(f"done: {len(attacks)} attempts", flush=True)


main()
