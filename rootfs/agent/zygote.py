"""A zygote: an agent that is started once and forked for each guest.

It is an agent in every respect until it would take its channel. The supervisor
starts it with a socket as fd 3 and puts a module in C into its root, which no
guest's root has (internal/container/zygote says what it does).

Before it is forked it rehearses a guest's first moments. What they take is then there in
every guest, in pages that it shares: the types that the compiler makes when it is first
called, and code as the interpreter adapts it once it has run a few times. Nothing else is
left of a rehearsal: it has a session and a channel of its own, and it neither starts a
thread nor changes what a guest's own start changes.

Then it makes the session that all guests have, and all of their start that is in memory: only
what belongs to a process is left to them (start.py).
"""

from __future__ import annotations

import gc
import posix
import sys

from . import frames
from .ends import SOCKETS
from .start import install, say_ready
from .streams import HIGH, Pipes, move_high

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .channel import Payload
    from .session import Session

_CONTROL = 3
_MODULE = "/usr/lib/psi/_zygote.so"
_REHEARSALS = 24  # CPython adapts code when it has run some 8 to 16 times
_CONFIG = b'{"imports":null}'
_SOURCE = b"def f(x):\n    return [x]\npost(f(0))"


def is_zygote() -> bool:
    """Whether this agent was started as a zygote: guests have no fd 3 when they start."""
    try:
        return posix.fstat(_CONTROL).st_mode >> 12 == 0o14
    except OSError:
        return False


def serve(session: Session) -> tuple[bool, Callable[[], None]]:
    """Makes guests, and returns in each of them; the zygote itself never does.

    The result is whether the session is connected, and what has to be called before anything that the
    guest does, opens a file or starts a thread: until then the supervisor puts its root together.
    """
    import _imp

    if len(posix.listdir("/proc/self/task")) != 1:
        sys.exit("psi: what is preloaded has started threads, which a fork would lose")
    spec = sys.modules["_frozen_importlib"].ModuleSpec("_zygote", None, origin=_MODULE)
    module = _imp.create_dynamic(spec)
    _imp.exec_dynamic(module)
    reader = _connect(session)
    install(session)
    for finder in sys.path_importer_cache.values():
        if finder is not None:
            finder.invalidate_caches()  # the zygote's root has more in it
    gc.collect()
    gc.freeze()  # what is here stays: a collection in a guest would copy every page of it
    connected: bool = module.serve(reader)
    gc.unfreeze()
    if reader >= 0 and not connected:
        session.channel.forget()
    if "numpy.random" in sys.modules:  # Python's own random sees to itself
        sys.modules["numpy.random"].seed()
    return connected, module.live


def _connect(session: Session) -> int:
    """Connects the session to where guests have their channel, if they may open so many files; else the result is -1."""
    if not SOCKETS:
        return -1
    import _socket

    host, guest = _socket.socketpair()
    reader = move_high(guest.detach())
    if reader == HIGH:
        session.channel.connect(reader, reader)
    posix.close(reader)  # nothing is there until a guest's is: what is open is what a guest's table has room for
    return reader if reader == HIGH else -1


def rehearse(prepare: Callable[[], Session], configure: Callable[[Session, Payload], None]) -> None:
    """Serves requests of its own, by sessions that prepare makes; configure takes a CONFIG over."""
    if not SOCKETS:
        return
    if "_posixsubprocess" in sys.builtin_module_names:  # else a guest's policy may hide its file
        import _posixsubprocess  # noqa: F401
    main = sys.modules["__main__"]
    streams = posix.dup(1), posix.dup(2)
    try:
        for _ in range(_REHEARSALS):
            _once(prepare(), configure)
    finally:
        sys.modules["__main__"] = main
        for number, stream in enumerate(streams, 1):
            posix.dup2(stream, number)
            posix.close(stream)


def _once(session: Session, configure: Callable[[Session, Payload], None]) -> None:
    import _socket

    host, guest = _socket.socketpair()
    fd = guest.detach()
    session.channel.connect(fd, fd)
    session.channel.leave_unwatched(True)
    session.orphans.begin()
    session.pipes = Pipes(session.output)
    session.configure = lambda payload: configure(session, payload)
    session.main.__dict__["post"] = session.post
    say_ready(session)
    host.send(frames.HEADER.pack(len(_CONFIG), frames.CONFIG, 0, 0, 0) + _CONFIG)
    host.send(frames.HEADER.pack(len(_SOURCE), frames.EXEC, 0, 0, 1) + _SOURCE)
    session.serve_one()
    session.pipes.abandon()
    host.close()
