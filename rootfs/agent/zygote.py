"""A zygote: an agent that is started once and forked for each guest.

It is an agent in every respect until it would take its channel. The supervisor
starts it with a socket as fd 3 and puts a module in C into its root, which no
guest's root has (internal/container/zygote says what it does).

Before it is forked it rehearses a guest's first moments. What they take is then there in
every guest, in pages that it shares: the types that the compiler makes when it is first
called, and code as the interpreter adapts it once it has run a few times. Nothing else is
left of a rehearsal: it has a session and a channel of its own, and it neither starts a
thread nor changes what a guest's own start changes.
"""

from __future__ import annotations

import gc
import posix
import sys

from . import frames
from .channel import Channel
from .ends import SOCKETS
from .orphans import Orphans
from .reloaded import Reloaded
from .session import Session
from .signals import Guard
from .streams import Output, text_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .channel import Payload

_CONTROL = 3
_MODULE = "/usr/lib/psi/_zygote.so"
_REHEARSALS = 24  # CPython adapts code when it has run some 8 to 16 times
_LIMIT = 1 << 20
_CONFIG = b'{"imports":null}'
_SOURCE = b"def f(x):\n    return [x]\npost(f(0))"


def is_zygote() -> bool:
    """Whether this agent was started as a zygote: guests have no fd 3 when they start."""
    try:
        return posix.fstat(_CONTROL).st_mode >> 12 == 0o14
    except OSError:
        return False


def serve() -> None:
    """Makes guests, and returns in each of them; the zygote itself never does."""
    import _imp

    if len(posix.listdir("/proc/self/task")) != 1:
        sys.exit("psi: what is preloaded has started threads, which a fork would lose")
    spec = sys.modules["_frozen_importlib"].ModuleSpec("_zygote", None, origin=_MODULE)
    module = _imp.create_dynamic(spec)
    _imp.exec_dynamic(module)
    gc.collect()
    gc.freeze()  # what is here stays: a collection in a guest would copy every page of it
    module.serve()
    gc.unfreeze()
    if "numpy.random" in sys.modules:  # Python's own random sees to itself
        sys.modules["numpy.random"].seed()
    for finder in sys.path_importer_cache.values():
        if finder is not None:
            finder.invalidate_caches()  # the zygote's root has more in it


def rehearse(home: str, configure: Callable[[Session, Payload], None]) -> None:
    """Serves requests of its own; configure takes a CONFIG over."""
    if not SOCKETS:
        return
    if "_posixsubprocess" in sys.builtin_module_names:  # else a guest's policy may hide its file
        import _posixsubprocess  # noqa: F401
    main = sys.modules["__main__"]
    try:
        for _ in range(_REHEARSALS):
            _once(home, configure)
    finally:
        sys.modules["__main__"] = main


def _once(home: str, configure: Callable[[Session, Payload], None]) -> None:
    import _socket

    host, guest = _socket.socketpair()
    fd = guest.detach()
    guard = Guard()
    session = Session(guard, _LIMIT, home, Reloaded())
    session.channel = Channel(fd, fd, _LIMIT, guard, session.deliver, session.fits)
    session.channel.leave_unwatched()
    session.output = Output(session.channel, _LIMIT)
    session.orphans = Orphans()
    for kind in (frames.STDOUT, frames.STDERR):
        text_stream(session.output, kind)
    session.configure = lambda payload: configure(session, payload)
    session.main.__dict__["post"] = session.post
    session.channel.send(frames.READY, 0, _CONFIG)
    host.send(frames.HEADER.pack(len(_CONFIG), frames.CONFIG, 0, 0, 0) + _CONFIG)
    host.send(frames.HEADER.pack(len(_SOURCE), frames.EXEC, 0, 0, 1) + _SOURCE)
    session.serve_one()
    host.close()
