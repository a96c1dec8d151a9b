"""What a handle of a guest knows and does without waiting: the half that threads and event loops share."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, cast

from . import _frames as wire
from ._channel import Channel, Payload
from ._codec import CodecError, DecodeError, Limits, MissingModule, UnknownClass, decode, encode
from ._control import Connection, Message
from ._death import death
from ._hint import file_hint, fs_rules
from ._outbox import OutboxFull
from ._reload import policy_file
from ._waiting import Bell
from .errors import SandboxError, TimeoutError, make_guest_error, printable

if TYPE_CHECKING:
    from ._supervisor import Supervision
    from .sandbox import Sandbox

EXIT_NOTICE = 1.0  # seconds between the end of a channel and the supervisor's reason for it
_NEWS = 10.0  # … that a supervisor may take to say whether there is news
_COPIED = 4096  # bytes of a payload whose parts are copied rather than looked at in place


class Malformed(Exception):
    """The guest sent something that no guest of ours sends; the text says what."""


class Handle:
    """The base of :class:`pyisolate.Sandbox`."""

    def __init__(
        self,
        owner: "Supervision",
        on_backlog: Callable[[Channel], None],
        name: str,
        asked: Mapping[str, object],
    ) -> None:
        """For :func:`pyisolate.spawn` alone: what is asked of a supervisor. It is of use after :meth:`begin`."""
        self.name: str = name
        self._owner = owner
        self.policy_file: Optional[str] = policy_file(asked)  # where its policy was read
        self._fs = fs_rules(asked)
        self._budget = Limits()
        self._classes: Dict[str, Callable[..., object]] = {}
        self._channel = Channel(on_backlog)
        self._exit: Message = {}
        self._exited = Bell()
        self._closed = False
        self._forked = False
        self._reported = False
        self.on_end: Callable[[], None] = lambda: None  # called by any thread when it has ended or is closed

    def begin(self, connection: Connection, made: Message, channel: socket.SocketType) -> None:
        """The supervisor has made the guest."""
        self.connection = connection
        self.id: str = made["guest"]  # on the host: psi-…
        self.policy_digest: str = made.get("policy_digest", "")
        self.enforced: List[Dict[str, str]] = made.get("enforced", [])  # which mechanism holds which rule
        self.limits: Mapping[str, Any] = made["limits"]  # in force, in the units of a policy document
        self._message_limit = int(self.limits["message"])
        self._budget.message = self._message_limit + wire.VALUE_SLACK
        hear = partial(_hear_supervisor, connection, self.id)  # not a method: a handle that is dropped goes at once
        self._channel.open(channel, hear, self._message_limit, not made.get("relayed"), made.get("ready"))

    def on_limits(self, limits: Mapping[str, Any]) -> None:
        """A reload has put these limits into force; the I/O thread says so, before the guest knows."""
        self.limits = limits
        if self._message_limit == int(limits["message"]):
            return  # as for most reloads, of which there may be a thousand at once
        self._message_limit = int(limits["message"])
        # What is decoded has been let in by the channel's reader, perhaps under an older limit: this one only grows.
        self._budget = Limits(message=max(self._budget.message, self._message_limit + wire.VALUE_SLACK))
        self._channel.set_limit(self._message_limit)

    def source(self, src: object) -> bytes:
        """The payload of an exec."""
        if not isinstance(src, str):
            raise SandboxError(f"exec takes source code as text, not {type(src).__name__}")
        try:
            payload = src.encode()
        except UnicodeEncodeError as error:
            raise SandboxError(f"exec: the source is not Unicode text: {error}") from error
        limit = self._message_limit + wire.VALUE_SLACK
        if len(payload) > limit:
            raise SandboxError(f"a request of {len(payload)} bytes; the limit is {limit} (policy key message)")
        return payload

    def invocation(self, func: object, args: Sequence[Any], kw: Mapping[str, Any]) -> Payload:
        """The payload of a call."""
        if not isinstance(func, str):
            raise SandboxError(f"call takes a function's dotted name, not {type(func).__name__}")
        return self.encode([func, list(args), dict(kw)], f"the arguments of {func!r}")

    def encode(self, obj: Any, what: str) -> Payload:
        """The payload of a value."""
        try:
            return encode(obj, limit=self._message_limit)
        except (CodecError, TypeError) as error:
            raise SandboxError(f"{what} cannot be sent: {error}") from error

    def value_of(self, frame: wire.Frame) -> Any:
        """The value that a frame carries; raises the exception if it carries one. Errors: Malformed."""
        if frame.type == wire.ERROR:
            raise self._guest_error(frame)
        payload = frame.payload
        try:
            return decode(
                memoryview(payload) if len(payload) > _COPIED and isinstance(payload, bytes) else payload,
                limits=self._budget, classes=self._classes,
            )  # fmt: skip
        except UnknownClass as error:
            way = "" if isinstance(error, MissingModule) else ": sandbox.accept() opts in to a class"
            raise self._about(SandboxError(printable(f"guest {self.name!r} sent {error}{way}"))) from None
        except DecodeError as error:
            raise Malformed(f"it sent a value that is not allowed: {error}") from None

    def usable(self) -> None:
        """Raises why the handle is of no use, if this process has ended it."""
        if self._closed or self._forked:
            raise self.death()

    def full(self, error: OutboxFull) -> SandboxError:
        """The error for a guest that does not take what it is sent."""
        return self._about(SandboxError(f"guest {self.name!r}: {error}; wait for it, or close it"))

    def expired(self, text: str) -> TimeoutError:
        """The error for a wait that took too long."""
        error = TimeoutError(f"{text} (sandbox {self.name!r})")
        self._about(error)
        return error

    def death(self, patience: float = EXIT_NOTICE) -> SandboxError:
        """Why the guest is no longer there; waits a little for the supervisor to say it."""
        fault = self._channel.fault
        if not (self._closed or self._forked):
            if fault is None and not self._exited.wait(patience) and self._channel.fault is None:
                fault = "it closed its end of the channel and went on running"
            if fault is not None and not self._closed:
                self.report(fault, patience)
        return self._about(death(self.name, self._exit, fault, self._forked))

    def report(self, fault: str, patience: float = EXIT_NOTICE) -> None:
        """The guest has broken a rule: it is killed."""
        if not self._reported:
            self._reported = True
            # The supervisor tells every watcher (BROKER_ERROR) and kills the guest: before it can end by itself,
            # which it may do when the channel is broken off.
            self.connection.tell("report", {"guest": self.id, "error": fault})
        self._channel.break_off(fault)
        self._exited.wait(patience)

    def _guest_error(self, frame: wire.Frame) -> SandboxError:
        try:
            report = decode(b"J" + frame.data, limits=self._budget)
            module, name, message, traceback = map(
                _text, (report["module"], report["qualname"], report["message"], report["traceback"])
            )
            args = report.get("args")
        except (CodecError, ValueError, KeyError, TypeError, AttributeError) as malformed:
            raise Malformed(f"it sent a malformed report of an exception: {malformed}") from None
        error = make_guest_error(module, name, message, traceback, tuple(args) if isinstance(args, list) else None)
        hint = file_hint(error, self._fs)
        error.hint = f"sandbox {self.name!r}: {printable(hint)}" if hint else ""
        return self._about(error)

    def _about(self, error: SandboxError) -> SandboxError:
        error.sandbox = cast("Sandbox", self)
        return error


def _hear_supervisor(connection: Connection, guest: str) -> None:
    """Returns when everything that the supervisor had to say has been looked at: its replies come in order."""
    try:
        connection.ask("find", {"guest": guest}, _NEWS)
    except SandboxError:
        pass


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is a {type(value).__name__}")
    return value
