"""When a signal handler may run: never in the middle of a frame.

CPython runs signal handlers between any two steps of the main thread, and a
handler may raise. Half-way through the agent's own work that would lose bytes
of a frame. So handlers, the guest's own included, are put off while the main
thread is `critical`, and run when it leaves. Between two handlers nothing is
lost: the kernel's pending signals are only announcements.
"""

from __future__ import annotations

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
        self._set = _signal.signal
        self._get = _signal.getsignal

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
        self._install(_signal.SIGINT, _signal.default_int_handler)

    def before_fork(self) -> None:
        """Holds the agent's signals back: one that came to the child too early would be lost."""
        self._masks[get_ident()] = _signal.pthread_sigmask(_signal.SIG_BLOCK, self._own)

    def after_fork(self) -> None:
        """After fork, in the parent."""
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._masks.pop(get_ident()))

    def give_back(self) -> None:
        """After fork, in the child: signals mean what they mean to any program."""
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

    def _wrap(self, handler: Handler, first: Optional[Handler]) -> Handler:
        def deliver(signum: int, frame: Optional[FrameType]) -> object:
            if self.critical:
                self.pending.append(lambda: deliver(signum, None))
                return None
            if first is not None:
                first(signum, frame)
            return handler(signum, frame)

        return deliver
