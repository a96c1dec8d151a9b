"""Requests: exec and call one after another, interrupt, cancel, and the end.

Every request is answered exactly once: DONE or RESULT, or ERROR with the
exception that ended it. Guest code runs on the main thread and outside the
critical state, with `running` set to the request's id.
"""

from __future__ import annotations

import builtins
import posix
import sys
from _thread import get_ident

from . import frames
from .channel import Lost
from .codec import decode, encode
from .faults import class_name, describe, describe_briefly

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections import deque
    from io import TextIOWrapper
    from types import FrameType
    from typing import Any, Callable, Mapping, Optional, Union

    from .channel import Channel, Payload
    from .codec import Data
    from .orphans import Orphans
    from .reloaded import Reloaded
    from .signals import Guard
    from .streams import Output, Pipes
else:
    import _signal
    from _collections import deque

_SOURCES = 64  # programs kept for tracebacks


class Session:
    """The life of a guest, from READY to its end."""

    def __init__(self, guard: Guard, message: int, home: str, reloaded: Reloaded) -> None:
        self.guard = guard
        self.message = message
        self.home = home
        self.reloaded = reloaded
        reloaded.takers.append(self.resize)
        self.channel: Channel
        self.output: Output
        self.pipes: Pipes
        self.streams: tuple[TextIOWrapper, TextIOWrapper]  # stdout and stderr
        self.replaced: object  # what they were before
        self.orphans: Orphans
        self.requests: deque[tuple[int, int, Payload]] = deque()
        self.posts: deque[Payload] = deque()
        self.running = 0
        self.interrupted = 0
        self.cancelled: list[tuple[int, int]] = []
        self.ending = False
        self.finishing = False
        self.configure: Optional[Callable[[Payload], None]] = None  # what takes CONFIG
        self.asked = False  # a request has come: CONFIG cannot, any more
        self.limited = False  # there is an import list
        self.sources: dict[str, str] = {}
        self.main = type(sys)("__main__")
        self.main.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = self.main

    # --- what guest code calls

    def post(self, obj: object) -> None:
        """Send a value to the host. TypeError: it cannot cross; ValueError: it is too large."""
        self.channel.post(self._encode(obj))

    def _encode(self, obj: object) -> Union[bytes, list[Data]]:
        try:
            return encode(obj, limit=self.message)
        except ValueError:
            if not self.reloaded.look():
                raise
            return encode(obj, limit=self.message)

    def recv(self, timeout: Optional[float] = None) -> Any:
        """The next value that the host has posted. TimeoutError after timeout seconds."""
        channel = self.channel
        if not channel.open:
            raise RuntimeError("recv() works only in the guest's first process: this is a child of it")
        main = get_ident() == self.guard.main
        try:
            if main:
                self.guard.critical = True  # first: from here no handler files a post
                if timeout is None and not self.posts:
                    found = channel.take_post()
                    if found is not None:
                        return decode(found)
            while True:
                if not self.posts and not channel.wait(self.posts.__len__, timeout):
                    raise TimeoutError(f"nothing was posted within {timeout} s")
                try:
                    payload = self.posts.popleft()
                    break
                except IndexError:  # another thread was faster
                    continue
            channel.held -= len(payload)
        except EOFError:
            if not main:
                raise
            self.ending = True
            raise SystemExit(0) from None
        finally:
            if main:
                self.guard.critical = False
                if self.guard.pending:
                    self.guard.leave()
        return _value(payload)

    # --- what arrives

    def deliver(self, kind: int, ident: int, payload: Payload) -> None:
        """Files one frame; called by whichever thread reads."""
        if kind == frames.POST:
            self.posts.append(payload)
        elif kind in (frames.EXEC, frames.CALL):
            self.asked = True
            self.requests.append((kind, ident, payload))
        elif kind == frames.INTERRUPT and ident == self.running:
            self.interrupted = ident
            self._attract()
        elif kind in (frames.INTERRUPT, frames.CANCEL):
            self._cancel(ident)
        elif kind == frames.CONFIG and self.configure is not None and not self.asked:
            self.channel.held -= len(payload)
            self.configure(payload)
        else:
            posix._exit(76)  # the host speaks another protocol

    def resize(self, config: Mapping[str, Any]) -> None:
        """Takes over the policy's limits of messages and output."""
        self.message = self.channel.message = config["message"]
        self.output.resize(config["output"])

    def fits(self, size: int) -> bool:
        """Whether the host still takes a value of so many bytes, whose first byte is about to be sent."""
        self.reloaded.look()
        return size <= self.message + frames.VALUE_SLACK

    def _cancel(self, ident: int) -> None:
        for index, (kind, queued, payload) in enumerate(self.requests):
            if queued == ident:
                del self.requests[index]
                self.channel.held -= len(payload)
                self.cancelled.append((kind, ident))
                self._attract()
                return

    def _attract(self) -> None:
        """Has the main thread look at what was filed, as soon as it may."""
        if get_ident() == self.guard.main:
            self.guard.pending.append(self._attend)
        else:
            _signal.pthread_kill(self.guard.main, _signal.SIGIO)

    def _attend(self) -> None:
        while self.cancelled:
            kind, ident = self.cancelled.pop(0)
            reason = describe_briefly("CancelledError", "the request was cancelled before it ran", "asyncio.exceptions")
            self.channel.send(frames.ERROR, ident, reason, frames.FLAG_EXEC if kind == frames.EXEC else 0)
        if self.channel.ended:
            self._end()
        if self.interrupted and self.interrupted == self.running:
            self.interrupted = 0
            handler = self.guard.installed(_signal.SIGINT)
            if callable(handler):
                handler(int(_signal.SIGINT), sys._getframe())
            else:
                raise KeyboardInterrupt

    def _end(self) -> None:
        self.ending = True
        if not self.finishing:  # else it would end the exit functions
            raise SystemExit(0)

    def on_arrival(self, signum: int = 0, frame: Optional[FrameType] = None) -> None:
        """SIGIO: something has arrived while the main thread runs guest code."""
        if self.guard.critical:
            self.guard.pending.append(self.on_arrival)
            return
        self.channel.drain()
        if self.cancelled or self.interrupted or self.channel.ended:
            self._attend()
        if self.guard.pending:
            self.guard.leave()

    def on_output(self, signum: int = 0, frame: Optional[FrameType] = None) -> None:
        """SIGPIPES: a child or C code has written to fd 1 or 2."""
        if self.guard.critical:
            self.guard.pending.append(self.on_output)
            return
        self.guard.critical = True  # or the next signal would overtake what was read
        try:
            self.pipes.drain()
        finally:
            self.guard.leave()

    def on_child(self, signum: int = 0, frame: Optional[FrameType] = None) -> None:
        """SIGCHLD: a child, or an orphan, has died."""
        if self.guard.critical:
            self.guard.pending.append(self.on_child)
        else:
            self.orphans.reap()

    def on_reloaded(self, signum: int = 0, frame: Optional[FrameType] = None) -> None:
        """SIGRELOADED: another policy is in force."""
        if self.guard.critical:
            self.guard.pending.append(self.on_reloaded)
        else:
            self.reloaded.look()

    def on_terminate(self, signum: int = 0, frame: Optional[FrameType] = None) -> None:
        """SIGTERM: end soon. A second one, or one that finds the host not reading: now."""
        if self.ending or (self.guard.critical and self.channel.blocked):
            posix._exit(0)
        self.ending = True
        if self.guard.critical:
            self.guard.pending.append(self._end)
        else:
            raise SystemExit(0)

    # --- the requests

    def serve(self) -> None:
        """Serves until SIGTERM or the end of the channel. Does not return."""
        while not self.ending:
            try:
                self.serve_one()
            except BaseException as error:  # of a guest's signal handler, between two requests
                self.guard.critical = True
                if isinstance(error, EOFError) and self.channel.ended:
                    break
                if not self.ending:
                    self._attempt(lambda error=error: self._complain(error))  # type: ignore[misc]
        self.finish()

    def serve_one(self) -> None:
        """Waits for a request and answers it."""
        self.guard.critical = True
        while not self.channel.wait(self.requests.__len__, 1.0 if self.orphans.waiting() else None):
            self.orphans.reap()
        kind, ident, payload = self.requests.popleft()
        self.channel.held -= len(payload)
        self.interrupted = 0
        self.running = self.output.request = ident
        if kind == frames.EXEC:
            reply, error = self._attempt(lambda: self._exec(ident, payload))
        else:
            reply, error = self._attempt(lambda: self._call(payload))
        if not self.channel.open:
            self._end_child(error)
        if not self.ending or error is None:
            self._answer(kind, ident, reply, error)

    def _answer(self, kind: int, ident: int, reply: Any, error: Optional[BaseException]) -> None:
        if error is not None:
            failure = error
            report, again = self._attempt(lambda: describe(failure, self.sources, self.home))
            if again is not None:
                report = describe_briefly(class_name(failure), "(no description: it raised another exception)")
        self.running = self.output.request = 0
        if error is not None:
            self.channel.send(frames.ERROR, ident, report, frames.FLAG_EXEC if kind == frames.EXEC else 0)
        elif kind == frames.EXEC:
            self.channel.send(frames.DONE, ident)
        else:
            try:
                self.channel.send(frames.RESULT, ident, reply)
            except ValueError as lowered:  # the limit, by a reload, since it was encoded
                self._answer(kind, ident, None, lowered)

    def _attempt(self, run: Callable[[], Any]) -> tuple[Any, Optional[BaseException]]:
        """Runs guest code, and is critical again afterwards, whatever it raises."""
        try:
            try:
                self.guard.leave()
                return run(), None
            finally:
                self.guard.critical = True
        except BaseException as error:
            self.guard.critical = True
            return None, error

    def _exec(self, ident: int, payload: Payload) -> None:
        name = f"<exec {ident}>"
        source = str(payload, "utf-8")  # type: ignore[arg-type]  # never one in a file
        self.sources[name] = source
        if len(self.sources) > _SOURCES:
            del self.sources[next(iter(self.sources))]
        try:
            exec(compile(source, name, "exec", 0, True), self.main.__dict__)
        finally:
            self._flush()

    def _call(self, payload: Payload) -> Any:
        request = _value(payload)
        function, args, keywords = request
        try:
            value = self._lookup(function)(*args, **keywords)
        finally:
            self._flush()
        try:
            return self._encode(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"the result of {function}() cannot be sent: {error}") from None

    def _lookup(self, dotted: str) -> Any:
        """The object of a dotted name: of the namespace, a builtin, or of a module."""
        head, _, rest = dotted.partition(".")
        space = self.main.__dict__
        if head in space:
            found = space[head]
        elif hasattr(builtins, head):
            found = getattr(builtins, head)
        elif not rest:
            raise NameError(f"name {dotted!r} is not defined in the guest")
        else:
            found = self._import(head)
        path = head
        for name in rest.split(".") if rest else ():
            path = f"{path}.{name}"
            if not hasattr(found, name) and type(found) is type(sys):
                self._import(path)
            found = getattr(found, name)
        return found

    def _import(self, path: str) -> Any:
        # With the guest's own globals: its import list applies.
        return builtins.__import__(path, self.main.__dict__, None, (), 0)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, ValueError):  # closed, or something else altogether
                pass

    def _complain(self, error: BaseException) -> None:
        sys.excepthook(type(error), error, error.__traceback__)
        self._flush()

    def _end_child(self, error: Optional[BaseException]) -> None:
        """A forked child has come to the end of the guest's code."""
        code = 0
        if isinstance(error, SystemExit):
            code = error.code if type(error.code) is int else int(error.code is not None)
        elif error is not None:
            failure = error
            code = 1
            self._attempt(lambda: self._complain(failure))
        self._attempt(self._flush)
        posix._exit(code & 255)

    def finish(self) -> None:
        """Ends the guest: exit functions, what is still buffered, exit status 0."""
        self.guard.critical = True
        self.finishing = True
        if "atexit" in sys.modules:  # else there are none
            self._attempt(sys.modules["atexit"]._run_exitfuncs)
        self._attempt(self._flush)
        posix._exit(0)


def _value(payload: Payload) -> Any:
    if type(payload) is Lost:
        raise OSError(*payload.args)
    return decode(payload)  # type: ignore[arg-type]
