"""What a hostile guest can do to the client that holds its channel.

A program of the host: it starts guests with the Python client and has each attack it. An attack is held if the client
comes to a defined end in time (an error of its own or a timeout), did not grow, keeps no descriptor, and was
told nothing that is not so; and if no process of the guest is left once it is closed.

With --control the same attacks hit a client that believes what it reads, as a first version of one would:
sizes are allocated, frames are waited for, values are unpickled or parsed without limits.
"""

import ctypes
import json
import os
import pickle
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from glob import glob

CONTROL = "--control" in sys.argv
SLOW = float(os.environ.get("PSI_ESCAPE_PATIENCE", "1"))
BOUND = 3 * SLOW  # of what has to end in time: other work runs beside

PRELUDE = r'''
import os, struct, socket, sys, time, threading, signal
def _channel():
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            if os.readlink("/proc/self/fd/" + name).startswith("socket:"):
                return int(name)
        except OSError:
            pass
ch = _channel()
def frame(kind, payload=b"", id=0, flags=0, size=None, zero=0):
    return struct.pack("!IBBHI", len(payload) if size is None else size, kind, flags, zero, id) + payload
def raw(data):
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(ch, view):]
        except BlockingIOError:
            time.sleep(0.001)
def memfd(size=1 << 18, seals=15, written=None):
    import fcntl
    fd = os.memfd_create("x", 3)
    os.write(fd, (b"[" + b" " * (size - 2) + b"]")[:written])
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, 1033, seals)
    return fd
def beside(*fds, size=1 << 18, kind=20, **more):
    give(frame(kind, struct.pack("!Q", size) + b"J", flags=2, **more), *fds)
def give(data, *fds):
    with socket.socket(fileno=os.dup(ch)) as s:
        s.setblocking(True)
        s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else [])
def hold(): time.sleep(600)
READY, DONE, RESULT, ERROR, POST, STDOUT, STDERR, NOTICE = range(16, 24)
'''

HONEST = "no attack: a value"
ERROR_JSON = '{"type":"%s","module":"%s","qualname":"%s","message":"forged","traceback":"forged"}'


class Outcome:
    """What became of the client: the items it received, how it ended, and what it cost."""

    def __init__(self):
        self.items, self.error, self.seconds, self.grown, self.fds = [], None, 0.0, 0.0, 0


def forged(outcome):
    """Whether the client believed something that the guest has no right to say."""
    import pyisolate as psi

    if any(item == "forged" or not isinstance(item, (str, int, type(None))) for item in outcome.items):
        return f"it accepted {outcome.items[:3]!r}"
    if isinstance(outcome.error, (psi.MemoryExceeded, psi.CPUExceeded, psi.PolicyError, SystemExit, KeyboardInterrupt)):
        return f"it raised {type(outcome.error).__name__}"
    return None


def judge(outcome, seconds, grown=48):
    """The rule for every attack."""
    import pyisolate as psi

    lie = forged(outcome)
    if lie:
        return "ESCAPED", lie
    if outcome.error is None or not isinstance(outcome.error, psi.SandboxError):
        return "ESCAPED", f"it ended with {outcome.error!r} after {outcome.items[:3]!r}"
    if outcome.seconds > seconds * BOUND:
        return "ESCAPED", f"it took {outcome.seconds:.1f} s"
    if outcome.grown > grown:
        return "ESCAPED", f"it grew by {outcome.grown:.0f} MiB"
    if outcome.fds:
        return "ESCAPED", f"it keeps {outcome.fds} descriptors"
    return "held", f"{type(outcome.error).__name__}: {str(outcome.error)[:100]}"


def size():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / (1 << 20)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def drain(receive, most=3000, timeout=2.0):
    """Receives until there is an end."""
    outcome, before = Outcome(), size()
    start = time.monotonic()
    try:
        while len(outcome.items) < most:
            outcome.items.append(receive(timeout * SLOW))
    except BaseException as error:
        outcome.error = error
    outcome.seconds, outcome.grown = time.monotonic() - start, size() - before
    return outcome


ATTACKS = [
    # name, what the guest does, seconds it may take
    (HONEST, "raw(frame(POST, b'Sfine')); hold()", 6),
    ("random bytes", "raw(os.urandom(1 << 18)); hold()", 6),
    ("zeros", "raw(bytes(1 << 18)); hold()", 6),
    ("half a header", "raw(b'\\0\\0\\0'); hold()", 6),
    ("half a frame", "raw(frame(POST, b'x' * 10, size=1 << 19)); hold()", 6),
    ("a frame byte by byte", "[(raw(bytes([b])), time.sleep(0.05)) for b in frame(POST, b'Sx' * 30)]; hold()", 8),
    ("a frame of 4 GiB", "raw(frame(POST, b'x' * 70000, size=0xFFFFFFFF)); hold()", 6),
    ("a frame one byte too large", "raw(frame(POST, b'x', size=(1 << 20) + (64 << 10) + 1)); hold()", 6),
    ("output of 1 MiB in one frame", "raw(frame(STDOUT, b'x' * (1 << 20))); hold()", 6),
    ("a request of the host's own types", "raw(frame(1, b'post(1)', id=1)); hold()", 6),
    ("an unknown type", "raw(frame(255)); hold()", 6),
    ("reserved bits", "raw(frame(POST, b'Sforged', zero=1)); hold()", 6),
    ("unknown flags", "raw(frame(POST, b'Sforged', flags=0x80)); hold()", 6),
    ("a result that nobody asked for", "raw(frame(RESULT, b'Sforged', id=77)); raw(frame(POST, b'Sforged')); hold()", 6),
    ("the end of an exec that was never sent", "raw(frame(DONE, id=4242)); raw(frame(POST, b'Sforged')); hold()", 6),
    ("two ends of one exec", "raw(frame(DONE, id=1) * 2); raw(frame(POST, b'Sforged')); hold()", 6),
    ("an error of a call that was never made", "raw(frame(ERROR, b'{}', id=9)); raw(frame(POST, b'Sforged')); hold()", 6),
    ("an end with a payload", "raw(frame(DONE, b'x', id=1)); raw(frame(POST, b'Sforged')); hold()", 6),
    ("a notice that is not JSON", "raw(frame(NOTICE, b'[' * 60000)); raw(frame(POST, b'Sforged')); hold()", 6),
    ("ready, again and other", "raw(frame(READY, b'{\"python\":\"9\",\"pid\":1,\"protocol\":99}')); hold()", 6),
    ("an exception that is ours: MemoryExceeded", f"raw(frame(ERROR, {ERROR_JSON % ('MemoryExceeded', 'pyisolate.errors', 'MemoryExceeded')!r}.encode(), id=1, flags=1)); hold()", 6),
    ("an exception that ends programs: SystemExit", f"raw(frame(ERROR, {ERROR_JSON % ('SystemExit', 'builtins', 'SystemExit')!r}.encode(), id=1, flags=1)); hold()", 6),
    ("an exception that is no exception", f"raw(frame(ERROR, {ERROR_JSON % ('eval', 'builtins', 'eval')!r}.encode(), id=1, flags=1)); hold()", 6),
    ("an exception that is not a report", "raw(frame(ERROR, b'[1,2]', id=1, flags=1)); hold()", 6),
    ("a value nested 100,000 times", "raw(frame(POST, b'J' + b'[' * 100000 + b']' * 100000)); hold()", 8),
    ("a value nested 100,000 times, unended", "raw(frame(POST, b'J' + b'[' * 100000)); hold()", 8),
    ("a number of a million digits", "raw(frame(POST, b'J' + b'9' * 1000000)); hold()", 8),
    ("a power of ten", "raw(frame(POST, b'J{\"$\":[\"Decimal\",0,\"1\",999999999]}')); hold()", 8),
    ("a range made a list", "raw(frame(POST, b'J{\"$\":[\"list\",{\"$\":[\"range\",0,1000000000000,1]}]}')); hold()", 8),
    ("keys that collide", "raw(frame(POST, b'J{\"$\":[\"dict\",[' + b','.join(b'[{\"$\":[\"int\",\"%x\"]},0]' % (n * ((1 << 61) - 1)) for n in range(20000)) + b']]}')); hold()", 10),
    ("an array larger than its bytes", "raw(frame(POST, b'B' + struct.pack('!I', 55) + b'[[1],{\"$\":[\"ndarray\",\"<f8\",[99999,99999],\"C\",0]}]     ' + b'x')); hold()", 8),
    ("a class", "raw(frame(POST, b'J{\"$\":[\"class\",\"os.system\",[\"touch /tmp/psi-escaped\"]]}')); hold()", 8),
    ("a pickle", "import pickle; raw(frame(POST, pickle.dumps([print, os.getcwd])));  hold()", 8),
    ("text that is not text", "raw(frame(POST, b'S\\xff\\xfe\\xed\\xa0\\x80')); hold()", 8),
    ("descriptors", "s = socket.socket(fileno=os.dup(ch)); [s.sendmsg([frame(STDOUT, b'x')], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('100i', *[0] * 100))]) for _ in range(20)]; hold()", 6),
    ("a file in memory without seals", "beside(memfd(seals=0)); hold()", 6),
    ("a file in memory that only new writers cannot change", "beside(memfd(seals=16 | 1 | 2 | 4)); hold()", 6),
    ("a file in memory that can be shrunk", "beside(memfd(seals=1 | 4 | 8)); hold()", 6),
    ("a file in memory that is written to while it is read", "import mmap; fd = os.memfd_create('x', 3); os.write(fd, b'[' + b' ' * 262142 + b']'); m = mmap.mmap(fd, 1 << 18); beside(fd); [m.__setitem__(i % 262144, 120) for i in range(10**9)]", 8),
    ("a file in memory of another size", "beside(memfd(), size=1 << 19); hold()", 6),
    ("a file in memory of 16 EiB", "beside(memfd(), size=(1 << 64) - 1); hold()", 6),
    ("a file in memory full of holes", "beside(memfd(1 << 20, written=9), size=1 << 20); hold()", 6),
    ("a pipe for a file in memory", "beside(os.pipe()[0]); hold()", 6),
    ("a directory for a file in memory", "beside(os.open('/', os.O_RDONLY)); hold()", 6),
    ("the channel for a file in memory", "beside(ch); hold()", 6),
    ("a file in memory that is not sent", "beside(); hold()", 6),
    ("a file in memory that no frame asks for", "give(frame(STDOUT, b'x'), memfd()); hold()", 6),
    ("many files in memory for one frame", "beside(*[memfd()] * 200); hold()", 6),
    ("a file in memory for output", "beside(memfd(), kind=STDOUT); hold()", 6),
    ("files in memory before their frames", "f = frame(POST, b'Sxxxx'); [give(f[i : i + 1], memfd()) for i in range(10)]; hold()", 6),
    ("bytes out of band", "s = socket.socket(fileno=os.dup(ch)); [s.send(frame(POST, b'Sfine'), socket.MSG_OOB) for _ in range(8)]; hold()", 6),
    ("the channel shut for writing", "socket.socket(fileno=os.dup(ch)).shutdown(socket.SHUT_WR); hold()", 8),
    ("the channel closed, life goes on", "os.close(ch); hold()", 8),
    ("a code of being killed for memory", "os._exit(137)", 8),
    ("a child that lives on after pid 1", "os.fork() and os._exit(0); os.setsid(); hold()", 8),
    ("half a frame, and the end", "raw(frame(POST, b'x' * 100, size=5000)); os._exit(0)", 8),
]


class Real:
    """A guest of psi, and the client under test."""

    def __init__(self, code):
        import pyisolate as psi

        self.fds = descriptors()
        self.sandbox = psi.spawn("hostile", policy={"message": "1MiB", "output": "1MiB"})
        self.sandbox.exec(PRELUDE + code)

    def receive(self, timeout):
        return self.sandbox.recv(timeout=timeout)

    def close(self):
        """Ends the guest; what is left of it on the host."""
        start = time.monotonic()
        self.sandbox.close(0.2)
        if time.monotonic() - start > 6 * BOUND:
            return f"closing took {time.monotonic() - start:.1f} s"
        left = processes(self.sandbox.id)
        return f"processes {left} are left" if left else None


def processes(id):
    """The processes of a guest, by its cgroups."""
    found = set()
    for depth in range(6):
        for group in glob("/sys/fs/cgroup/" + "*/" * depth + id + "*"):
            try:
                with open(group + "/cgroup.procs") as file:
                    found.update(file.read().split())
            except OSError:
                pass  # it has been removed
    return sorted(found)


class Naive:
    """The same guest code in a plain process, and a client that believes it."""

    def __init__(self, code):
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen([sys.executable, "-I", "-c", PRELUDE + code], pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        self.socket = ours

    def take(self, count):
        data = bytearray(count)  # what was announced
        done = 0
        while done < count:
            piece, rights, _, _ = self.socket.recvmsg(count - done, socket.CMSG_SPACE(1024))
            if not piece:
                raise EOFError("the guest is gone")
            data[done : done + len(piece)] = piece
            done += len(piece)
            if rights:
                raise RuntimeError(f"{len(rights)} descriptors taken")
        return data

    def receive(self, timeout):
        length, kind, flags, zero, id = struct.unpack("!IBBHI", self.take(12))
        payload = self.take(length)
        if kind == 23 or kind == 16:
            return json.loads(payload)
        if payload[:1] == b"S":
            return payload[1:].decode()
        if payload[:1] == b"J":
            sys.setrecursionlimit(10**6)
            sys.set_int_max_str_digits(0) if hasattr(sys, "set_int_max_str_digits") else None
            return json.loads(payload[1:])
        return pickle.loads(payload) if payload[:1] == b"\x80" else (kind, id)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.socket.close()
        while True:  # what it left, which is ours now: see subreaper
            left = open("/proc/thread-self/children").read().split()
            if not left:
                return None
            os.kill(int(left[0]), signal.SIGKILL)
            os.waitpid(int(left[0]), 0)


def attack(code, seconds):
    guest = Real(code)
    outcome = drain(guest.receive)
    left = guest.close()
    outcome.fds = max(0, descriptors() - guest.fds)
    kind, text = ("ESCAPED", left) if left else judge(outcome, seconds)
    return kind, text


def naive(code, seconds):
    """In a child, because it may hang, crash or grow: any of these, or a value that was believed, is the escape."""
    guest = Naive(code)
    pid = os.fork()
    if pid == 0:
        code = 1  # it broke down
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(int(2 * SLOW))
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        try:
            code = 0 if guest.receive(2) == "fine" else 2  # it believed what it was told
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    guest.close()
    if status == 0:
        return "held", "it got the value [holds everywhere: nothing to hold]"
    return "ESCAPED", {256: "it broke down", 512: "it believed what came", 14: "it waits forever"}.get(status, f"it was killed by signal {status & 127}")


def main():
    attacks = ATTACKS
    if CONTROL:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    else:
        Real("").close()  # the first one starts the supervisor
    for name, code, seconds in attacks:
        try:
            kind, text = (naive if CONTROL else attack)(code, seconds)
        except BaseException:
            kind, text = "broken", traceback.format_exc()
        print(f"{kind}: {name}: {text}".replace("\n", " | ")[:1500], flush=True)
    print(f"done: {len(attacks)} attempts", flush=True)


if __name__ == "__main__":
    main()
