"""Reaping: process 1 inherits every process whose parent has died.

An orphan and a child that guest code will wait for look alike, so the calls
that make children note their pids. A dead process that none of them noted, and
that nobody has waited for within a second, is an orphan and is reaped; the
second is for children that C code made and waits for itself (os.system).
"""

from __future__ import annotations

import posix
import sys
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable, Optional

_PATIENCE = 1.0  # seconds


class Orphans:
    """The children that guest code knows, and the dead ones that nobody does."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._dead: dict[int, float] = {}  # pid: since when it is seen dead
        self._pid = 0

    def watch(self) -> None:
        """Notes the children that are made from now on."""
        for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp"):
            if hasattr(posix, name):
                noted = self._noting(getattr(posix, name))
                setattr(posix, name, noted)
                if "os" in sys.modules:  # else it takes them from posix
                    setattr(sys.modules["os"], name, noted)
        if "_posixsubprocess" in sys.builtin_module_names:
            self._watch_subprocess()

    def begin(self) -> None:
        """The process is the one whose children these are: a zygote watches before it is forked."""
        self._pid = posix.getpid()
        if "_posixsubprocess" not in sys.builtin_module_names:  # a guest's policy may hide its file
            self._watch_subprocess()

    def _watch_subprocess(self) -> None:
        try:
            import _posixsubprocess
        except ImportError:
            return
        _posixsubprocess.fork_exec = self._noting(_posixsubprocess.fork_exec)

    def _noting(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def make_child(*args: Any, **kwargs: Any) -> Any:
            made = make(*args, **kwargs)
            pid = made[0] if type(made) is tuple else made
            if pid:
                self._known.add(pid)
            return made

        make_child.__name__ = make.__name__
        make_child.__doc__ = make.__doc__
        return make_child

    def reap(self, signum: int = 0, frame: Optional[FrameType] = None) -> None:
        """Reaps the orphans that have been dead for long enough; a SIGCHLD handler."""
        if posix.getpid() != self._pid or not self._some_dead():
            self._dead.clear()
            return
        now = monotonic()
        zombies = _zombies(self._pid)
        self._dead = {pid: self._dead.get(pid, now) for pid in zombies}
        for pid in zombies:
            if pid in self._known or now - self._dead[pid] < _PATIENCE:
                continue
            try:
                posix.waitpid(pid, posix.WNOHANG)
            except ChildProcessError:
                pass
            self._dead.pop(pid, None)
        for pid in list(self._known):  # in place: another thread may be adding one
            if not _is_child(pid):
                self._known.discard(pid)

    def waiting(self) -> bool:
        """Whether a process is dead that may turn out to be an orphan."""
        return any(pid not in self._known for pid in self._dead)

    def _some_dead(self) -> bool:
        try:
            options = posix.WEXITED | posix.WNOHANG | posix.WNOWAIT
            return posix.waitid(posix.P_ALL, 0, options) is not None
        except ChildProcessError:
            return False


def _is_child(pid: int) -> bool:
    try:
        posix.waitid(posix.P_PID, pid, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        return True
    except ChildProcessError:
        return False


def _zombies(parent: int) -> list[int]:
    """The dead children of a process, from /proc."""
    found = []
    for name in posix.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] == b"Z" and int(fields[1]) == parent:
            found.append(int(name))
    return found
