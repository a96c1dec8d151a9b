"""Import every module of the standard library that is there, and use what makes system calls, but no subprocess."""
import importlib
import pkgutil
import sys

failed = []
for name in sorted(sys.stdlib_module_names):
    if name in ("antigravity", "this", "msvcrt", "nt", "winreg", "winsound", "_winapi", "_overlapped", "_scproxy", "_msi", "msilib"):
        continue
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass
    except Exception as e:  # noqa: BLE001
        failed.append(f"{name}: {e!r}")
assert not failed, failed

import array
import bz2
import ctypes
import fcntl
import gzip
import hashlib
import io
import json
import locale
import lzma
import mmap
import os
import pathlib
import pwd
import random
import resource
import secrets
import select
import selectors
import shelve
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import tarfile
import tempfile
import time
import uuid
import zipfile
import zoneinfo

with tempfile.TemporaryDirectory() as d:
    p = pathlib.Path(d)
    (p / "a").write_text("x" * 100_000)
    shutil.copy2(p / "a", p / "b")
    shutil.copytree(p, p.parent / "copy")
    shutil.rmtree(p.parent / "copy")
    os.link(p / "a", p / "c")
    os.chmod(p / "a", 0o600)
    os.utime(p / "a", (1, 1))
    os.truncate(p / "a", 10)
    os.rename(p / "a", p / "e")
    assert sorted(x.name for x in os.scandir(p)) == ["b", "c", "e"]
    assert stat.S_ISREG(os.stat(p / "b").st_mode)
    os.statvfs(d)
    with open(p / "m", "w+b") as f:
        f.truncate(8192)
        with mmap.mmap(f.fileno(), 0) as m:
            m[:4] = b"abcd"
            m.flush()
        fcntl.flock(f, fcntl.LOCK_EX)
        try:
            fcntl.lockf(f, fcntl.LOCK_EX)  # its memory is the host's: see the seccomp table
        except PermissionError:
            pass
        else:
            raise AssertionError("locks of byte ranges are allowed")
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fallocate(f.fileno(), 0, 4096)
        os.pwrite(f.fileno(), b"zz", 0)
        assert os.pread(f.fileno(), 2, 0) == b"zz"
        os.fsync(f.fileno())
        os.fdatasync(f.fileno())
    with open(p / "m", "rb") as src, open(p / "n", "wb") as dst:
        os.sendfile(dst.fileno(), src.fileno(), 0, 100)
        os.copy_file_range(src.fileno(), dst.fileno(), 100, 0)
    with tarfile.open(p / "t.tar.gz", "w:gz") as t:
        t.add(p / "b")
    with zipfile.ZipFile(p / "z.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.write(p / "b", "b")
    db = sqlite3.connect(f"file:{p}/db?vfs=unix-dotfile", uri=True)
    db.execute("create table t (x)")
    db.execute("insert into t values (1)")
    db.commit()
    assert db.execute("select * from t").fetchall() == [(1,)]
    db.close()
    with shelve.open(str(p / "shelf")) as s:
        s["k"] = [1, 2]

for codec in (bz2, gzip, lzma):
    assert codec.decompress(codec.compress(b"abc")) == b"abc"
hashlib.scrypt(b"p", salt=b"s", n=2**10, r=8, p=1)
hashlib.sha256(b"").hexdigest()
secrets.token_hex()
os.urandom(8)
uuid.uuid4()
random.random()
locale.setlocale(locale.LC_ALL, "C.UTF-8")
assert pwd.getpwuid(os.getuid()).pw_uid == 0
resource.getrusage(resource.RUSAGE_SELF)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, 256)
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
os.sched_getaffinity(0)
os.sched_yield()
os.getloadavg()
os.uname()
os.times()
os.nice(1)
os.getpriority(os.PRIO_PROCESS, 0)
time.sleep(0.01)
time.clock_gettime(time.CLOCK_MONOTONIC)
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.alarm(0)
signal.pthread_sigmask(signal.SIG_BLOCK, [])
zoneinfo.ZoneInfo("UTC") if "UTC" in zoneinfo.available_timezones() else None

a, b = socket.socketpair()
a.setblocking(False)
b.sendmsg([b"x" * 10])
with selectors.DefaultSelector() as sel:
    sel.register(a, selectors.EVENT_READ)
    assert sel.select(1)
assert a.recv(100) == b"x" * 10
r, w = os.pipe()
socket.send_fds(b, [b"f"], [r])
message, fds, _, _ = socket.recv_fds(a, 10, 4)
assert message == b"f" and len(fds) == 1
poll = select.poll()
poll.register(w, select.POLLOUT)
assert poll.poll(100)
server = socket.socket()
server.settimeout(0.1)
server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
server.close()
try:
    socket.getaddrinfo("nowhere.invalid", 80)
except socket.gaierror:
    pass
assert socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
fd = os.memfd_create("m", os.MFD_ALLOW_SEALING)
fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
if hasattr(os, "eventfd"):
    os.eventfd_write(os.eventfd(0), 1)
fcntl.fcntl(r, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
fcntl.fcntl(r, fcntl.F_SETOWN, os.getpid())
os.set_inheritable(r, True)
os.set_blocking(r, False)
assert not os.isatty(r)
pid = os.fork()
if pid == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
fd = os.pidfd_open(os.getpid())
os.close(fd)
ctypes.CDLL(None).getpid()
assert array.array("i", [1]).tobytes() and struct.pack("i", 1) and io.BytesIO() and json.dumps({})
list(pkgutil.iter_modules())
print("stdlib fine")
