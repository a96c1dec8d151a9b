"""Taking over the process: the channel, the signals, the streams and the builtins of a guest."""

from __future__ import annotations

import builtins
import posix
import sys

from . import frames
from .channel import Channel
from .orphans import Orphans
from .reloaded import Reloaded
from .session import Session
from .signals import SIGPIPES, SIGRELOADED, Guard
from .streams import Output, Pipes, move_high, text_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, NoReturn
else:
    import _signal


def prepare(config: dict[str, Any], home: str) -> Session:
    """Makes a session, which nothing leads to yet."""
    guard = Guard()
    session = Session(guard, config["message"], home, Reloaded())
    session.channel = Channel(config["message"], guard, session.deliver, session.fits)
    session.output = Output(session.channel, config["output"])
    session.streams = text_stream(session.output, frames.STDOUT), text_stream(session.output, frames.STDERR)
    session.orphans = Orphans()
    return session


def install(session: Session) -> None:
    """Takes over the interpreter: what a zygote does once for all of its guests."""
    _send_before_exit(session.channel)
    session.orphans.watch()
    _watch_signals(session)
    session.replaced = sys.stdout, sys.stderr  # kept: their end would write to them
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = session.streams
    builtins.post = session.post  # type: ignore[attr-defined]
    builtins.recv = session.recv  # type: ignore[attr-defined]
    sys.argv = [""]


def start(session: Session, connected: bool) -> None:
    """Takes over the process: its channel from fds 0 and 1, unless it is connected already, and what forks inherit."""
    if not connected:
        session.channel.connect(*_take_channel())
    session.orphans.begin()
    session.pipes = Pipes(session.output)
    guard = session.guard
    guard.begin(*map(move_high, posix.pipe()))

    def after_in_child() -> None:
        session.channel.abandon()
        session.pipes.abandon()
        guard.give_back()

    posix.register_at_fork(
        before=guard.before_fork, after_in_parent=guard.after_fork, after_in_child=after_in_child
    )


def _send_before_exit(channel: Channel) -> None:
    """Has os._exit send what waits of a burst; the module os takes it from here when it is imported."""
    exit_now = posix._exit

    def _exit(status: int) -> NoReturn:
        channel.flush()
        exit_now(status)

    posix._exit = _exit
    if "os" in sys.modules:
        sys.modules["os"]._exit = _exit  # type: ignore[attr-defined]


def _take_channel() -> tuple[int, int]:
    stdin, stdout = posix.fstat(0), posix.fstat(1)
    same = stdin.st_mode >> 12 == 0o14 and stdin[:3] == stdout[:3]  # one socket
    reader = move_high(posix.dup(0))
    writer = reader if same else move_high(posix.dup(1))
    null = posix.open("/dev/null", posix.O_RDONLY)
    posix.dup2(null, 0, True)
    posix.close(null)
    return reader, writer


def _watch_signals(session: Session) -> None:
    guard = session.guard
    guard.watch(_signal.SIGIO, session.on_arrival)
    guard.watch(SIGPIPES, session.on_output)
    guard.watch(_signal.SIGTERM, session.on_terminate)
    guard.watch(_signal.SIGCHLD, session.on_child)
    guard.watch(SIGRELOADED, session.on_reloaded)
    guard.take_over()


def say_ready(session: Session) -> None:
    """Tells the host that requests can come."""
    version = sys.version.split()[0]
    memfds = "true" if session.channel.passes_memfds else "false"
    ready = '{"python":"%s","pid":%d,"protocol":%d,"memfd":%s}' % (version, posix.getpid(), frames.PROTOCOL, memfds)
    session.channel.send(frames.READY, 0, ready.encode())
