"""Sandboxes for programs with an event loop.

    import pyisolate as psi

    async with await psi.asyncio.spawn("guest42", policy="defaults") as sb:
        await sb.exec("from math import sqrt; post(sqrt(2))")
        print(await sb.recv(timeout=1))

Calls, meanings and exceptions are those of :mod:`pyisolate`; what may wait is awaited. The loop itself
watches the guests' channels, so a thousand of them need no thread. A handle belongs to the loop in which it was
spawned, and its channel to it alone: ``psi.list_active()`` lists it, to be closed, not to be received from.
Cancelling what waits for the guest's code (``exec``, ``call``) interrupts that code.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any, Callable, List, Mapping, Optional, Sequence, TypeVar

import pyisolate

from . import _frames as wire
from ._channel import ChannelClosed, Payload, WaitExpired
from ._control import ConnectionLost, OnOK, Pending, no_answer
from ._engine import EngineLike, engine_fields, engine_words
from ._handle import EXIT_NOTICE, Malformed
from ._hint import fs_rules
from ._outbox import OutboxFull
from ._output import OutputText
from ._reload import Change, changes, policy_file, reload_fields
from ._request import PolicyLike, check_name, spawn_fields
from ._supervisor import READY, SPAWN, Making, Words
from ._waiting import Request
from ._watch import ChannelWatch
from .errors import SandboxError
from .sandbox import PATIENCE, Stats, connect_fields, ignore, stats_of, take_socket
from .sandbox import Sandbox as _Sandbox

__all__ = ["Sandbox", "spawn"]

T = TypeVar("T")


async def spawn(
    name: str,
    policy: PolicyLike = None,
    allowed_imports: Optional[Sequence[str]] = None,
    *,
    engine: EngineLike = None,
) -> "Sandbox":
    """Start a guest and return its handle when it is ready to run code: see :func:`pyisolate.spawn`."""
    check_name(name)
    words = engine_words(engine)
    fields = engine_fields(policy, allowed_imports) if words else spawn_fields(policy, allowed_imports)
    supervision = pyisolate._supervision
    given_up = supervision.given_up.get(name)
    if given_up is not None:
        await asyncio.get_running_loop().run_in_executor(None, given_up.settle)
    made = Making(supervision, name, fields)
    try:
        supervision.reserve(made)
        sandbox = Sandbox(await _ask_for(made, words))
        await sandbox._ready()
        return sandbox
    except BaseException:
        supervision.give_up(made)
        raise


async def _ask_for(made: Making, words: Words) -> _Sandbox:
    supervision = pyisolate._supervision
    while True:
        fresh = False
        connection = supervision.living(words)
        if connection is None:  # a supervisor is started: once, and it takes a while
            found = asyncio.get_running_loop().run_in_executor(None, supervision.connected, words)
            connection, fresh = await found
        pending = supervision.ask_for(made, connection)
        try:
            sandbox: _Sandbox = await _reply(pending, "spawn", SPAWN)
            return sandbox
        except ConnectionLost:
            if fresh:
                raise


async def _reply(pending: Pending, op: str, timeout: float) -> Any:
    """What the supervisor answers."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    pending.notify(lambda: _soon(loop, came.set))
    try:
        await asyncio.wait_for(came.wait(), timeout)
    except asyncio.TimeoutError:
        raise no_answer(op, timeout) from None
    return pending.value()


def _soon(loop: asyncio.AbstractEventLoop, step: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(step)
    except RuntimeError:
        pass  # the loop was closed meanwhile: nobody waits any more


class Sandbox:
    """A running guest; made by :func:`spawn`. As :class:`pyisolate.Sandbox`, for one event loop."""

    def __init__(self, core: _Sandbox) -> None:
        """For :func:`spawn` alone."""
        self._core = core
        self._channel = core._channel
        self._watch = ChannelWatch(core._channel)
        self._over = asyncio.Event()  # the guest has ended, or the handle was closed
        core.on_end = lambda: _soon(self._watch.loop, self._ended)
        if not core.alive:
            self._ended()

    # What is known without waiting -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its label."""
        return self._core.name

    @property
    def id(self) -> str:
        """What it is called on the host: psi-…"""
        return self._core.id

    @property
    def policy_digest(self) -> str:
        """Of the policy that it was spawned with."""
        return self._core.policy_digest

    @property
    def enforced(self) -> List[Any]:
        """Which mechanism holds which rule."""
        return list(self._core.enforced)

    @property
    def limits(self) -> Mapping[str, Any]:
        """Its limits at launch, in the units of a policy document."""
        return self._core.limits

    @property
    def alive(self) -> bool:
        """Whether the guest runs, as far as is known here."""
        return self._core.alive

    @property
    def stdout(self) -> str:
        """The last 256 KiB that the guest printed (of what has been read)."""
        return self._core.stdout

    @property
    def stderr(self) -> str:
        """The last 256 KiB that the guest wrote to its stderr."""
        return self._core.stderr

    def accept(self, *classes: Callable[..., object], **named: Callable[..., object]) -> None:
        """Opt in to classes: see :meth:`pyisolate.Sandbox.accept`."""
        self._core.accept(*classes, **named)

    # Running code ------------------------------------------------------------------------------------------

    async def exec(
        self,
        src: str,
        timeout: Optional[float] = None,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
    ) -> None:
        """Run source code in the guest: queued, or with ``timeout`` or a callback until it has ended."""
        listening = on_stdout is not None or on_stderr is not None
        deadline = _deadline(timeout)
        request = await self._request(wire.EXEC, self._core.source(src), listening)
        if timeout is None and not listening:
            return
        show = OutputText(on_stdout, on_stderr)
        try:
            await self._answer(request, deadline, show)
        except WaitExpired:
            raise self._core.expired(f"exec has not ended within {timeout:g} s and was interrupted") from None
        show.finish()

    async def call(self, func: str, /, *args: Any, **kw: Any) -> Any:
        """Call the guest's function with this dotted name and return what it returns."""
        request = await self._request(wire.CALL, self._core.invocation(func, args, kw))
        return await self._value(await self._answer(request, None, ignore))

    async def recv(self, timeout: Optional[float] = None) -> Any:
        """The next value that the guest posted; raises the next exception of an ``exec`` in its turn."""
        self._core.usable()
        try:
            frame = await self._watch.until(lambda: self._channel.receive(0.0), _deadline(timeout))
        except WaitExpired:
            raise self._core.expired(f"nothing to receive within {timeout:g} s") from None
        except ChannelClosed:
            raise await self._death() from None
        return await self._value(frame)

    async def post(self, obj: Any) -> None:
        """Send a value to the guest, whose ``recv()`` returns it. Never waits for the guest."""
        self._core.usable()
        payload = self._core.encode(obj, "the value to post")
        await self._send(lambda: self._channel.post(payload))

    async def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the code that the guest runs now; what has not begun is cancelled."""
        self._core.usable()
        await self._send(self._channel.interrupt)

    # Asking the supervisor -----------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        """What the guest uses now."""
        return stats_of(await self._ask("stats", {}))

    async def update_policy(self, policy: PolicyLike, token: Optional[str] = None, dry_run: bool = False) -> List[Change]:
        """Put another policy into force in the running guest: see :meth:`pyisolate.Sandbox.update_policy`."""
        self._core.usable()
        fields = reload_fields(policy, token, dry_run)
        reply = await self._ask("reload", fields)
        if dry_run:
            return changes(reply)[self.id]
        self._core.on_reloaded(policy_file(fields), fs_rules(fields))
        return []

    async def connect(self, port: int, timeout: float = 5.0) -> socket.socket:
        """A TCP socket, not blocking, that is connected to a port at which the guest listens: see
        :meth:`pyisolate.Sandbox.connect`."""
        self._core.usable()
        connected: socket.socket = await self._ask("connect", connect_fields(port, timeout), float(timeout), take_socket)
        connected.setblocking(False)
        return connected

    async def close(self, timeout: float = 0.2) -> None:
        """Stop the guest: ask it (SIGTERM), and after ``timeout`` seconds kill it."""
        await self._stop("close", {"timeout": max(0.0, float(timeout))}, float(timeout))

    async def kill(self) -> None:
        """Kill the guest at once. When this returns no process of it runs."""
        await self._stop("kill", {}, 0.0)

    async def __aenter__(self) -> "Sandbox":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return repr(self._core)

    # Inside ----------------------------------------------------------------------------------------------------

    async def _ready(self) -> None:
        try:
            await self._watch.until(lambda: self._channel.wait_ready(0.0), time.monotonic() + READY)
        except WaitExpired:
            raise SandboxError(f"guest {self.name!r} was not ready within {READY:g} s") from None
        except ChannelClosed:
            raise await self._death() from None

    async def _request(self, kind: int, payload: Payload, listening: bool = False) -> Request:
        self._core.usable()
        return await self._send(lambda: self._channel.request(kind, payload, listening))

    async def _send(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except OutboxFull as error:
            raise self._core.full(error) from None
        except ChannelClosed:
            raise await self._death() from None

    async def _answer(self, request: Request, deadline: Optional[float], show: Callable[[wire.Frame], None]) -> wire.Frame:
        channel = self._channel
        try:
            with channel.listening(request):
                while True:
                    frame = await self._watch.until(lambda: channel.answer_now(request), deadline)
                    if frame is request.reply:
                        return frame
                    show(frame)
                    if deadline is not None and time.monotonic() >= deadline:
                        raise WaitExpired
        except ChannelClosed:
            raise await self._death() from None
        except BaseException:  # out of time, cancelled, or a callback's own exception: nobody waits any more
            channel.abandon(request)
            raise

    async def _value(self, frame: wire.Frame) -> Any:
        try:
            return self._core.value_of(frame)
        except Malformed as error:
            self._core.report(str(error), 0.0)
            raise await self._death() from None

    async def _ask(
        self,
        op: str,
        fields: Mapping[str, object],
        timeout: float = 0.0,
        on_ok: Optional[OnOK] = None,
    ) -> Any:
        self._core.usable()
        try:
            pending = self._core.connection.tell(op, {"guest": self.id, **fields}, on_ok)
            return await _reply(pending, op, timeout + PATIENCE)
        except ConnectionLost:
            raise await self._death() from None
        except SandboxError as error:
            if not self._core.alive:
                raise await self._death() from None
            error.sandbox = self._core
            raise

    async def _stop(self, op: str, fields: Mapping[str, object], timeout: float) -> None:
        core = self._core
        if core.alive:
            pending = core.connection.tell(op, {"guest": self.id, **fields})
            try:
                await _reply(pending, op, timeout + PATIENCE)
            except ConnectionLost:
                pass  # its guests died with it
            except SandboxError:
                if not await self._ends():
                    raise
        self._watch.stop()
        core._finish()
        self._ended()

    async def _death(self) -> SandboxError:
        core = self._core
        if core.alive and self._channel.fault is not None:
            core.report(self._channel.fault, 0.0)
        await self._ends()
        return core.death(0.0)

    async def _ends(self) -> bool:
        """Whether the supervisor says, within a moment, that the guest has ended."""
        if self._core.alive:
            try:
                await asyncio.wait_for(self._over.wait(), EXIT_NOTICE)
            except asyncio.TimeoutError:
                return False
        return True

    def _ended(self) -> None:
        self._over.set()
        if self._channel.fileno() < 0:
            self._watch.stop()
        self._watch.wake()


def _deadline(timeout: Optional[float]) -> Optional[float]:
    return None if timeout is None else time.monotonic() + timeout
