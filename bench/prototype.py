"""The floors of a warm spawn, measured in a warm Python: os.fork, and a bare prototype of a zygote.

The prototype is clone3 with all seven namespaces, id maps written from outside, a cgroup in every hierarchy, a tmpfs and a
/proc of its own; its child answers and ends. Nothing of psi is in it: it says what the kernel takes. Prints a JSON object of
milliseconds for every line that it reads.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Callable, List

_CLONE3 = 435
_NAMESPACES = 0x10000000 | 0x20000000 | 0x00020000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000  # user pid mnt net ipc uts cgroup
_SIGCHLD = 17

libc = ctypes.PyDLL(None, use_errno=True)  # it keeps the interpreter's lock: the child must have it


def clone3() -> int:
    """As os.fork, with a namespace of each kind."""
    args = ctypes.create_string_buffer(struct.pack("11Q", _NAMESPACES, 0, 0, 0, _SIGCHLD, 0, 0, 0, 0, 0, 0))
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = libc.syscall(_CLONE3, args, ctypes.c_size_t(88))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return pid


def mount(kind: str, target: str) -> None:
    if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None):
        raise OSError(ctypes.get_errno(), f"mounting {kind} on {target}")


def groups() -> List[str]:
    """A directory of our own in every hierarchy."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" - ")
        kind, options = fields[1].split()[0], fields[1].split()[2]
        if kind in ("cgroup", "cgroup2") and "name=" not in options:
            found.append(line.split()[4])
    return found


def answered(ours: socket.socket) -> None:
    ours.sendall(b"1")
    if ours.recv(1) != b"1":
        raise SystemExit("prototype: no answer")


def by_fork() -> None:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        theirs.sendall(theirs.recv(1))
        os._exit(0)
    answered(ours)
    done(ours, theirs, pid)


def by_clone3(hierarchies: List[str], number: int) -> Callable[[], None]:
    """Starts one, and returns how to end it."""
    ours, theirs = socket.socketpair()
    pid = clone3()
    if pid == 0:
        ours.close()
        libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
        theirs.recv(1)  # the id map is written
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        mount("tmpfs", "/tmp")
        mount("proc", "/proc")
        theirs.sendall(b"1")
        theirs.recv(1)
        os._exit(0)
    Path(f"/proc/{pid}/uid_map").write_text("0 3000000 1")
    Path(f"/proc/{pid}/gid_map").write_text("0 3000000 1")
    made = []
    for hierarchy in hierarchies:
        path = f"{hierarchy}/psi-bench-{os.getpid()}-{number}"
        os.mkdir(path)
        made.append(path)
        try:
            Path(f"{path}/cgroup.procs").write_text(str(pid))
        except OSError:
            pass  # cpuset without cpus
    answered(ours)

    def end() -> None:
        done(ours, theirs, pid)
        for path in made:
            for _ in range(200):
                try:
                    os.rmdir(path)
                    break
                except OSError:
                    time.sleep(0.001)

    return end


def done(ours: socket.socket, theirs: socket.socket, pid: int) -> None:
    theirs.close()
    ours.close()
    os.waitpid(pid, 0)


def main() -> None:
    hierarchies = groups()
    number = 0
    for _ in sys.stdin:
        number += 1
        start = time.perf_counter()
        by_fork()
        fork = time.perf_counter() - start
        start = time.perf_counter()
        end = by_clone3(hierarchies, number)
        zygote = time.perf_counter() - start
        end()
        print(json.dumps({"os.fork of a warm Python (floor)": fork * 1e3, "bare clone3 zygote with cgroups": zygote * 1e3}), flush=True)


if __name__ == "__main__":
    main()
