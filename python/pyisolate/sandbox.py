"""The handle of a guest.

A guest runs what it is sent one request after another, in one namespace that keeps its state, and sends
values back with ``post``. Those values are data: None, bool, numbers, str, bytes, list, tuple, dict, set,
datetime types, Decimal, Fraction, UUID, pure paths, the collections types, builtin exceptions, and
numpy arrays if this process has imported numpy; other classes only when they were opted in to with
:meth:`Sandbox.accept`. Nothing that a guest sends is executed, and it cannot make this process grow
without bounds: while nobody receives, it is the guest that waits.
"""

from __future__ import annotations

import socket
import time
from typing import Any, Callable, List, Mapping, NamedTuple, NoReturn, Optional

from . import _frames as wire
from ._channel import ChannelClosed, Payload, WaitExpired
from ._control import ConnectionLost, Message, OnOK, Pending
from ._handle import EXIT_NOTICE, Handle, Malformed
from ._hint import fs_rules
from ._outbox import OutboxFull
from ._output import OutputText
from ._reload import Change, changes, policy_file, reload_fields
from ._request import PolicyLike
from ._waiting import Request
from .errors import SandboxError
from .policy import FsRule

PATIENCE = 30.0  # seconds that a supervisor may take to answer, beyond what was asked of it


class Stats(NamedTuple):
    """What a guest uses: cpu time since launch in milliseconds, memory now in bytes, processes and threads."""

    cpu_ms: float
    mem_bytes: int
    pids: int


def stats_of(reply: Message) -> Stats:
    """The figures in a supervisor's reply."""
    return Stats(float(reply["cpu_ms"]), int(reply["mem_bytes"]), int(reply["pids"]))


class Sandbox(Handle):
    """A running guest; made by :func:`pyisolate.spawn`. Any thread may use it.

    ``str(sandbox)`` is its name; two handles are equal only if they are the same. It is a context manager
    that closes on exit. When the guest has ended, every method but ``recv`` of what had already arrived
    raises :class:`SandboxError` with the ``cause``, or MemoryExceeded or CPUExceeded if that was it.
    """

    # Running code --------------------------------------------------------------------------------------

    def exec(
        self,
        src: str,
        timeout: Optional[float] = None,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
    ) -> None:
        """Run source code in the guest.

        It is queued, and the call returns at once; an exception that the code does not catch is the next
        item of :meth:`recv`, which raises it. With ``timeout`` (seconds) or a callback the call waits until
        the code has run, and hands its output to the callbacks as text, in the calling thread; when the
        time is over the code is interrupted and :class:`TimeoutError` raised.
        """
        payload = self.source(src)
        listening = on_stdout is not None or on_stderr is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        request = self._request(wire.EXEC, payload, listening)
        if timeout is None and not listening:
            return
        show = OutputText(on_stdout, on_stderr)
        try:
            self._answer(request, deadline, show)
        except WaitExpired:
            raise self.expired(f"exec has not ended within {timeout:g} s and was interrupted") from None
        show.finish()

    def call(self, func: str, /, *args: Any, **kw: Any) -> Any:
        """Call the guest's function with this dotted name and return what it returns.

        The name is looked up in the namespace of :meth:`exec`, then as a module's attribute. Arguments and
        result are values as for ``post``; what the function raises is raised here. Posts that arrive
        meanwhile are kept for :meth:`recv`, up to 1024 or 16 MiB: a guest that posts more waits until
        another thread receives. Requests run in order, so this waits for earlier ones as well.
        """
        request = self._request(wire.CALL, self.invocation(func, args, kw))
        return self._value(self._answer(request, None, ignore))

    def recv(self, timeout: Optional[float] = None) -> Any:
        """The next value that the guest posted; raises the next exception of an ``exec`` in its turn.

        Waits ``timeout`` seconds, or as long as it takes; then :class:`TimeoutError`.
        """
        if self._closed or self._forked:
            raise self.death()
        try:
            frame = self._channel.receive(None if timeout is None else time.monotonic() + timeout)
        except WaitExpired:
            raise self.expired(f"nothing to receive within {timeout:g} s") from None
        except ChannelClosed:
            raise self.death() from None
        try:
            return self._value(frame)
        except (KeyboardInterrupt, MemoryError) as error:
            if not isinstance(error, SandboxError):  # ours, and not the guest's
                self._channel.put_back(frame)  # for the next call
            raise

    def post(self, obj: Any) -> None:
        """Send a value to the guest, whose ``recv()`` returns it. Never blocks: what the guest does not
        take is kept here, up to 64 MiB, and then refused."""
        if self._closed or self._forked:
            raise self.death()
        payload = self.encode(obj, "the value to post")
        try:
            self._channel.post(payload)
        except (OutboxFull, ChannelClosed) as error:
            raise self._refused(error) from None

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the code that the guest runs now; what has not begun is cancelled."""
        self.usable()
        try:
            self._channel.interrupt()
        except (OutboxFull, ChannelClosed) as error:
            raise self._refused(error) from None

    def accept(self, *classes: Callable[..., object], **named: Callable[..., object]) -> None:
        """Opt in to classes: a dataclass, named tuple or enum member of a class with this name in the guest
        arrives as an instance, made by calling the class with the fields. With a keyword the guest's name
        for it may differ. Only accept what may be called with any arguments that a guest can think of."""
        self._classes.update({getattr(each, "__qualname__", ""): each for each in classes}, **named)

    def connect(self, port: int, timeout: float = 5.0) -> socket.socket:
        """A TCP socket that is connected to a port at which the guest listens.

        The policy exposes the port (``expose: [8000]``); nobody but the guest's owner can connect to it, and it is at no
        address of the host. The socket is the caller's, to close as well. Raises TimeoutError when the guest does
        not accept within ``timeout`` seconds, SandboxError when nothing listens there, PolicyError when the
        policy does not expose the port.
        """
        fields = connect_fields(port, timeout)
        self.usable()
        connected: socket.socket = self._ask("connect", fields, float(timeout), take_socket)
        connected.settimeout(None)
        return connected

    # What it uses and says ------------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """What the guest uses now; each access asks anew."""
        self.usable()
        return stats_of(self._ask("stats", {}))

    @property
    def stdout(self) -> str:
        """The last 256 KiB that the guest printed (of what has been read: see :meth:`recv`, :meth:`call`)."""
        return self._tail(wire.STDOUT)

    @property
    def stderr(self) -> str:
        """The last 256 KiB that the guest wrote to its stderr."""
        return self._tail(wire.STDERR)

    @property
    def alive(self) -> bool:
        """Whether the guest runs, as far as is known here."""
        return not (self._closed or self._forked or self._exited.rung)

    # Ending ---------------------------------------------------------------------------------------------

    def close(self, timeout: float = 0.2) -> None:
        """Stop the guest: ask it (SIGTERM), and after ``timeout`` seconds kill it.

        When this returns no process of it runs. Closing again, or a guest that has ended, is fine.
        """
        self._stop("close", {"timeout": max(0.0, float(timeout))}, float(timeout))

    def kill(self) -> None:
        """Kill the guest at once. When this returns no process of it runs."""
        self._stop("kill", {}, 0.0)

    def update_policy(self, policy: PolicyLike, token: Optional[str] = None, dry_run: bool = False) -> List[Change]:
        """Put another policy into force in the running guest: all of it, or with an error nothing.

        With ``dry_run`` nothing changes, and what would is returned: a dict of key, permits, example and
        rule for each thing that the guest could do then (``"change": "permits"``) or no more
        (``"forbids"``). Raises PolicyError for what a running guest cannot be given, and for files that
        are to be taken away while the guest has them open; PolicyAuthError without the right ``token``,
        if :func:`pyisolate.policy.protect` has set one.
        """
        self.usable()
        fields = reload_fields(policy, token, dry_run)
        reply = self._ask("reload", fields)
        if dry_run:
            return changes(reply)[self.id]
        self.on_reloaded(policy_file(fields), fs_rules(fields))
        return []

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        state = "running" if self.alive else self._exit.get("cause") or ("forked" if self._forked else "closed")
        return f"<Sandbox {self.name!r} {self.id} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"sandbox {self.name!r} cannot be pickled: it belongs to this process")

    # For Supervision ------------------------------------------------------------------------------------

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest's interpreter runs."""
        try:
            self._channel.wait_ready(timeout)
        except WaitExpired:
            raise self._about(SandboxError(f"guest {self.name!r} was not ready within {timeout:g} s")) from None
        except ChannelClosed:
            raise self.death() from None

    def on_exited(self, exited: Message) -> None:
        """The guest has ended (the I/O thread says so, once)."""
        self._exit = exited
        self._exited.ring()
        self._channel.hang_up()
        self._owner.forget(self)
        self.on_end()

    def on_reloaded(self, file: Optional[str], rules: Optional[List[FsRule]]) -> None:
        """Another policy has been put into force, from this file and with these fs rules, as far as they are known."""
        self._fs = rules
        self.policy_file = file
        self._channel.settle_limit()

    def discard(self) -> Pending:
        """Nobody wants this guest: have it killed, without waiting."""
        pending = self.connection.tell("kill", {"guest": self.id})
        self._finish()
        return pending

    def disown(self) -> None:
        """After fork, in the child: the guest stays the parent's."""
        self._forked = True
        self._channel.disown()

    # Inside ---------------------------------------------------------------------------------------------

    def _request(self, kind: int, payload: Payload, listening: bool = False) -> Request:
        if self._closed or self._forked:
            raise self.death()
        try:
            return self._channel.request(kind, payload, listening)
        except (OutboxFull, ChannelClosed) as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> SandboxError:
        return self.full(error) if isinstance(error, OutboxFull) else self.death()

    def _answer(self, request: Request, deadline: Optional[float], show: Callable[[wire.Frame], None]) -> wire.Frame:
        try:
            return self._channel.answer(request, deadline, show)
        except ChannelClosed:
            raise self.death() from None
        except BaseException:  # out of time, ^C, or a callback's own exception: nobody waits any more
            self._channel.abandon(request)
            raise

    def _value(self, frame: wire.Frame) -> Any:
        try:
            return self.value_of(frame)
        except Malformed as error:
            self.report(str(error))
            raise self.death() from None

    def _ask(
        self,
        op: str,
        fields: Mapping[str, object],
        timeout: float = 0.0,
        on_ok: Optional[OnOK] = None,
    ) -> Any:
        try:
            return self.connection.ask(op, {"guest": self.id, **fields}, timeout + PATIENCE, on_ok)
        except ConnectionLost:
            raise self.death() from None
        except SandboxError as error:
            if self._exited.rung:
                raise self.death() from None
            raise self._about(error)

    def _stop(self, op: str, fields: Mapping[str, object], timeout: float) -> None:
        if self._forked:
            return  # the parent's to close
        if not self._closed and not self._exited.rung:
            try:
                self.connection.ask(op, {"guest": self.id, **fields}, timeout + PATIENCE)
            except ConnectionLost:
                pass  # its guests died with it
            except SandboxError:
                if not self._exited.wait(EXIT_NOTICE):
                    raise
        self._finish()

    def _finish(self) -> None:
        self._closed = True
        self._exited.ring()  # its notice may come later, when nobody knows the guest any more
        self._channel.close()
        self._owner.forget(self)
        self.on_end()

    def _tail(self, stream: int) -> str:
        if self.alive:
            self._channel.read_now()
        return self._channel.tail(stream).decode("utf-8", "replace")


def connect_fields(port: int, timeout: float) -> Mapping[str, object]:
    """What is asked of the supervisor for a connection."""
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise SandboxError(f"connect takes a port, a number from 1 to 65535, not {port!r}")
    return {"port": port, "timeout": max(0.0, float(timeout))}


def take_socket(reply: Message, connected: Optional[int]) -> socket.socket:
    """The connection that came with the reply."""
    if connected is None:
        raise SandboxError("the supervisor answered connect without a socket")
    return socket.socket(fileno=connected)


def ignore(frame: wire.Frame) -> None:
    """For output that nobody wants."""
