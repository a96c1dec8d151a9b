"""When a signal handler may run: never in the middle of a frame.

CPython runs signal handlers between any two steps of the main thread, and a
handler may raise. Half-way through the agent's own work that would lose bytes
of a frame. So handlers, the guest's own included, are put off while the main
thread is `critical`, and run when it leaves. Between two handlers nothing is
lost: the kernel's pending signals are only announcements.

A signal may also come when the main thread is about to sleep in the kernel: its handler
would run when the sleep is over. So signals are written to a pipe as well, and that is
waited for with whatever else the main thread waits for.
"""

from __future__ import annotations

import posix
import select
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
    from typing import Any, Callable, Optional

    Handler = Callable[[int, Optional[FrameType]], object]
else:
    import _signal

SIGPIPES = _signal.SIGURG  # fds 1 and 2 have something to read; ignored by default, so safe in children
SIGRELOADED = _signal.SIGWINCH  # see reloaded.py; as harmless


class Guard:
    """The main thread's critical state, and what waits for its end."""

    def __init__(self) -> None:
        self.main = get_ident()
        self.critical = True
        self.pending: list[Callable[[], object]] = []
        self._own: dict[int, Handler] = {}
        self._theirs: dict[int, Any] = {}
        self._leaving = False
        self._masks: dict[int, Any] = {}
        self._wake: tuple[int, int] = (-1, -1)  # the pipe
        self._their_wake = -1
        self._set = _signal.signal
        self._get = _signal.getsignal
        self._set_wake = _signal.set_wakeup_fd

    def leave(self) -> None:
        """Ends the critical state and runs what was put off; may raise what that raises."""
        self.critical = False
        if self._leaving:  # called by what is being run: the loop below goes on
            return
        self._leaving = True
        try:
            while self.pending:
                self.pending.pop(0)()
        finally:
            self._leaving = False
            if self.pending:  # one of them raised: the rest comes with the next signal
                _signal.pthread_kill(self.main, _signal.SIGIO)

    def watch(self, signum: int, handler: Handler) -> None:
        """Installs a handler of the agent. It runs at once and must look at critical."""
        self._own[signum] = handler
        self._set(signum, handler)

    def take_over(self) -> None:
        """Makes handlers that guest code installs obey the critical state.

        signal.signal() calls _signal.signal, found by name, so replacing it
        there is enough; a guest that keeps a way around it endangers only
        its own frames.
        """
        _signal.signal = self._install
        _signal.getsignal = self._installed
        _signal.set_wakeup_fd = self._wake_theirs
        self._install(_signal.SIGINT, _signal.default_int_handler)

    def begin(self, reader: int, writer: int) -> None:
        """Takes a pipe over, this process's own, that signals are written to."""
        for fd in reader, writer:
            posix.set_blocking(fd, False)
        self._wake = reader, writer
        self._set_wake(writer, warn_on_full_buffer=False)

    def sleep(self, fd: int, events: int, timeout: float = -1.0) -> None:
        """Waits until fd is ready or the time is over, seconds, negative for ever; the main thread until a signal comes, too."""
        poll = select.poll()
        poll.register(fd, events)
        wake = self._wake[0] if get_ident() == self.main else -1
        if wake >= 0:
            poll.register(wake, select.POLLIN)
        for ready, _ in poll.poll(None if timeout < 0 else timeout * 1000 + 1):
            if ready == wake:
                posix.read(wake, 4096)

    def before_fork(self) -> None:
        """Holds the agent's signals back: one that came to the child too early would be lost."""
        self._masks[get_ident()] = _signal.pthread_sigmask(_signal.SIG_BLOCK, self._own)

    def after_fork(self) -> None:
        """After fork, in the parent."""
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._masks.pop(get_ident()))

    def give_back(self) -> None:
        """After fork, in the child: signals mean what they mean to any program."""
        if self._their_wake == -1:  # else it is theirs that is set
            self._set_wake(-1)
        for fd in self._wake:
            try:
                posix.close(fd)
            except OSError:
                pass
        self._wake = -1, -1
        self.critical = False
        self.pending.clear()
        for signum in self._own:
            if signum not in self._theirs:
                self._set(signum, _signal.SIG_DFL)
        self._own.clear()
        self.after_fork()

    def installed(self, signum: int) -> Any:
        """The handler as guest code knows it."""
        return self._installed(signum)

    def _installed(self, signalnum: int) -> Any:
        if signalnum in self._theirs:
            return self._theirs[signalnum]
        if signalnum in self._own:
            return _signal.SIG_DFL
        return self._get(signalnum)

    def _install(self, signalnum: int, handler: Any) -> Any:
        if signalnum in (_signal.SIGIO, SIGPIPES) and signalnum in self._own:
            raise OSError(f"signal {int(signalnum)} carries the guest's channel: use another one")
        before = self._installed(signalnum)
        own = self._own.get(signalnum)
        if callable(handler):
            self._set(signalnum, self._wrap(handler, own if signalnum in (_signal.SIGCHLD, SIGRELOADED) else None))
        else:
            self._set(signalnum, own if own is not None else handler)
        self._theirs[int(signalnum)] = handler
        return before

    def _wake_theirs(self, fd: int, *, warn_on_full_buffer: bool = True) -> int:
        """The pipe of guest code, in place of ours while it has one."""
        if fd == -1:
            self._set_wake(self._wake[1], warn_on_full_buffer=False)
        else:
            self._set_wake(fd, warn_on_full_buffer=warn_on_full_buffer)
        before, self._their_wake = self._their_wake, fd
        return before

    def _wrap(self, handler: Handler, first: Optional[Handler]) -> Handler:
        def deliver(signum: int, frame: Optional[FrameType]) -> object:
            if self.critical:
                self.pending.append(lambda: deliver(signum, None))
                return None
            if first is not None:
                first(signum, frame)
            return handler(signum, frame)

        return deliver
