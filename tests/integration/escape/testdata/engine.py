"""A container of an engine under a policy tries to leave it. Each line of output is an attempt and
what came of it: "open" is an escape, anything else says how it was stopped."""

import ctypes
import errno
import os
import resource
import socket
import stat
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
CALLS = {"unshare": 272, "setns": 308, "mount": 165, "bpf": 321, "clone": 56, "clone3": 435, "open_by_handle_at": 304, "keyctl": 250,
         "open_tree": 428, "fsopen": 430, "pivot_root": 155, "perf_event_open": 298, "move_mount": 429, "mount_setattr": 442, "umount2": 166}


def call(name, *args):
    if libc.syscall(CALLS[name], *args) < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def attempt(name, action):
    try:
        result = action()
    except OSError as e:
        print(name, errno.errorcode.get(e.errno, e.errno) if e.errno else repr(e), flush=True)
    except Exception as e:
        print(name, type(e).__name__, e, flush=True)
    else:
        print(name, "open" if result is None else result, flush=True)


def connect(family, address, kind=socket.SOCK_STREAM):
    def action():
        with socket.socket(family, kind) as s:
            s.settimeout(2)
            s.connect(address)
    return action


def fast_open():
    with socket.socket() as s:
        s.sendto(b"x", 0x20000000, ("127.0.0.2", 9))  # MSG_FASTOPEN


def bind(family, address):
    def action():
        with socket.socket(family) as s:
            s.bind(address)
    return action


def sock(family, kind, protocol=0):
    def action():
        socket.socket(family, kind, protocol).close()
    return action


def write(path, text):
    def action():
        with open(path, "w") as f:
            f.write(text)
    return action


def raise_limit():
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 16, 1 << 16))
    except ValueError as e:  # what CPython makes of EPERM
        raise OSError(errno.EPERM, str(e))


def processes():
    children = []
    try:
        for _ in range(100):
            pid = os.fork()
            if pid == 0:
                import time
                time.sleep(100)
                os._exit(0)
            children.append(pid)
    finally:
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def leave_cgroup():
    for root, _, files in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in files:
            with open(os.path.join(root, "cgroup.procs"), "w") as f:
                f.write("1")
            return
    raise OSError(errno.ENOENT, "no cgroup files")


def setuid_gains():
    with open("/proc/self/status") as f:
        status = f.read()
    return None if "NoNewPrivs:\t1" not in status else "no_new_privs"


def capabilities():
    with open("/proc/self/status") as f:
        mask = int(f.read().split("CapBnd:")[1].split()[0], 16)
    bad = [n for n in (12, 13, 16, 17, 19, 21, 24, 27, 36, 38, 39, 40) if mask >> n & 1]
    return None if bad else "none that matters"


def descriptors():
    held = [os.readlink("/proc/self/fd/" + n) for n in os.listdir("/proc/self/fd") if int(n) > 2 and os.path.exists("/proc/self/fd/" + n)]
    return held or "none"


def volume_fifo():
    fd = os.open("/srv/volume/public/fifo", os.O_RDWR | os.O_NONBLOCK)
    try:
        return None if stat.S_ISFIFO(os.fstat(fd).st_mode) else "masked"
    finally:
        os.close(fd)


PINS = ctypes.create_string_buffer(b"/sys/fs/bpf/psi")  # where the host's programs are

ATTEMPTS = {
    "allowed": connect(socket.AF_INET, ("127.0.0.2", 9200)),
    "other-port": connect(socket.AF_INET, ("127.0.0.2", 9201)),
    "other-address": connect(socket.AF_INET, ("127.0.0.1", 9200)),
    "outside": connect(socket.AF_INET, ("192.0.2.1", 80)),
    "v6": connect(socket.AF_INET6, ("::1", 9200)),
    "mapped": connect(socket.AF_INET6, ("::ffff:127.0.0.1", 9200)),
    "udp": sock(socket.AF_INET, socket.SOCK_DGRAM),
    "raw": sock(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet": sock(17, socket.SOCK_RAW, 0x0300),
    "vsock": sock(40, socket.SOCK_STREAM),
    "tipc": sock(30, socket.SOCK_STREAM),
    "alg": sock(38, socket.SOCK_SEQPACKET),
    "fast-open": fast_open,
    "bind": bind(socket.AF_INET, ("127.0.0.1", 8080)),
    "bind6": bind(socket.AF_INET6, ("::1", 8080)),
    "new-user": lambda: call("unshare", 0x10000000),
    "new-net": lambda: call("unshare", 0x40000000),
    "clone-user": lambda: call("clone", 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": lambda: call("clone3", 0, 0),
    "setns": lambda: call("setns", -1, 0),
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, 0),
    "remount": lambda: call("mount", b"none", b"/proc/sys", b"", 0x1020, 0),
    "umount": lambda: call("umount2", b"/proc/sys", 0),
    "open-tree": lambda: call("open_tree", -100, b"/", 1),
    "bpf": lambda: call("bpf", 0, ctypes.create_string_buffer(struct.pack("IIIII", 1, 4, 4, 1, 0) + bytes(100)), 72),
    "pin": lambda: call("bpf", 7, ctypes.create_string_buffer(struct.pack("QII", ctypes.addressof(PINS), 0, 0)), 16),
    "pins": lambda: print("pins", os.listdir(PINS.value)),
    "handle": lambda: call("open_by_handle_at", 3, ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + bytes(16)), 0),
    "keyctl": lambda: call("keyctl", 0, -4, 0, 0, 0),
    "raise-limit": raise_limit,
    "processes": processes,
    "core-pattern": write("/proc/sys/kernel/core_pattern", "|/bin/sh"),
    "sysrq": write("/proc/sysrq-trigger", "h"),
    "cgroup": leave_cgroup,
    "device": lambda: os.close(os.open("/dev/evil", os.O_RDONLY)),
    "kcore": lambda: print("kcore-bytes", len(open("/proc/kcore", "rb").read(1))) or "masked",
    "privileges": setuid_gains,
    "capabilities": capabilities,
    "descriptors": descriptors,
    "volume-public": lambda: open("/srv/volume/public/f").close() or "readable",
    "volume-secret": lambda: open("/srv/volume/secret").close(),
    "volume-link": lambda: open("/srv/volume/public/link").close(),
    "volume-write": write("/srv/volume/public/new", "x"),
    "volume-dotdot": lambda: open("/srv/volume/public/../secret").close(),
    "volume-proc": lambda: open("/proc/self/root/srv/volume/secret").close(),
    "volume-socket": connect(socket.AF_UNIX, "/srv/volume/public/socket"),
    "volume-fifo": volume_fifo,
    "denied-file": lambda: None if open("/etc/passwd").read(1) else "masked",
}

if __name__ == "__main__":
    for name in sys.argv[1:] or ATTEMPTS:
        attempt(name, ATTEMPTS[name])
