"""The control connection: requests to a supervisor (psi-shim serve), its replies and notices.

::

    +----------------------+---------------------------+
    | length, u32, network | JSON object, length bytes |      length ≤ 1 MiB, both ways
    +----------------------+---------------------------+

    client                                  supervisor
      {"id":1,"op":"hello","version":2} ──►
                                        ◄── {"id":1,"ok":{…}}   or {"id":1,"error":{"kind","message"}}
      {"id":2,"op":"spawn",…}           ──►
                                        ◄── {"id":2,"ok":{…}}   + one descriptor: the guest's channel
      {"id":3,"op":"connect",…}         ──►
                                        ◄── {"id":3,"ok":{…}}   + one: a socket connected to the guest's port
                                        ◄── {"event":…}, {"exited":{…}}        pushed, without an id

A descriptor comes with the first byte of its reply. Replies that carry one come in the order in which
their descriptors came, so a queue matches them; what nobody asked for is closed.
"""

from __future__ import annotations

import array
import itertools
import json
import os
import select
import socket
import struct
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Mapping, Optional

from ._outbox import Outbox, OutboxFull
from ._waiting import Bell
from .errors import PolicyAuthError, PolicyError, SandboxError, TimeoutError

VERSION = 2
MAX_FRAME = 1 << 20
_MAX_FDS = 16
_ROOM = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)

Message = Dict[str, Any]
OnOK = Callable[[Message, Optional[int]], Any]  # what becomes of an "ok", and of the descriptor that came along


class ConnectionLost(SandboxError):
    """The supervisor is gone; the text says how that was seen."""


class Pending:
    """A request that waits for its reply."""

    def __init__(self, on_ok: Optional[OnOK]) -> None:
        self.on_ok = on_ok
        self.asked = False  # it went off, or will by itself
        self.result: Any = None
        self.error: Optional[SandboxError] = None
        self._tell: Optional[Callable[[], None]] = None
        self._bell = Bell()
        self.wait = self._bell.wait  # whether the reply is there, within so many seconds

    @property
    def done(self) -> bool:
        """Whether the reply is there."""
        return self._bell.rung

    def finish(self, result: Any, error: Optional[SandboxError] = None) -> None:
        """The reply is there. Once."""
        self.result, self.error = result, error
        self._bell.ring()
        if self._tell is not None:
            self._tell()

    def notify(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called when the reply is there, by any thread, perhaps twice."""
        self._tell = tell
        if self.done:
            tell()

    def value(self) -> Any:
        """What the reply was, once it is there; raises its error."""
        if self.error is not None:
            raise self.error
        return self.result


class Connection:
    """One connection to a supervisor.

    ``ask``, ``tell`` and ``send`` may be called by any thread; everything else runs in the I/O thread. ``on_push``
    gets every message without an id, ``on_lost`` the reason when the connection ends (once).
    """

    def __init__(
        self,
        sock: socket.socket,
        wake: Callable[[Callable[[], None]], None],
        on_push: Callable[["Connection", Message], None],
        on_lost: Callable[["Connection", str], None],
    ) -> None:
        sock.setblocking(False)
        self.lost: Optional[str] = None
        self._sock = sock
        self._wake = wake
        self._on_push = on_push
        self._on_lost = on_lost
        self._pending: Dict[int, Pending] = {}
        self._ids = itertools.count(1)
        self._outbox = Outbox(sock)
        self._in = bytearray()
        self._fds: Deque[int] = deque()

    def ask(
        self,
        op: str,
        fields: Mapping[str, object],
        timeout: float,
        on_ok: Optional[OnOK] = None,
    ) -> Any:
        """Send a request and wait for its reply: the "ok" object, or what ``on_ok`` made of it.

        ``on_ok`` runs in the I/O thread, before any later message is looked at; it gets the descriptor
        that came along and must keep or close it. Raises PolicyError, SandboxError, ConnectionLost.
        """
        return self.wait(self.tell(op, fields, on_ok), op, timeout)

    def wait(self, pending: Pending, op: str, timeout: float) -> Any:
        """Wait for the reply to what ``tell`` has sent."""
        if not pending.wait(timeout):
            raise no_answer(op, timeout)
        return pending.value()

    def tell(
        self,
        op: str,
        fields: Mapping[str, object],
        on_ok: Optional[OnOK] = None,
    ) -> Pending:
        """Send a request and do not wait."""
        pending = Pending(on_ok)
        self.send(pending, op, fields)
        return pending

    def send(self, pending: Pending, op: str, fields: Mapping[str, object]) -> None:
        """Send a request, or leave to the I/O thread what the supervisor does not take at once."""
        id = next(self._ids)
        data = json.dumps({"id": id, "op": op, **fields}).encode()
        if len(data) > MAX_FRAME:
            raise PolicyError(f"a request of {len(data)} bytes; at most {MAX_FRAME} fit: make the policy smaller")
        self._pending[id] = pending
        if self.lost is not None:  # perhaps since a moment ago
            if self._pending.pop(id, None) is not None:
                pending.finish(None, ConnectionLost(self.lost))
            return
        try:
            self._outbox.put(struct.pack("!I", len(data)) + data)
        except OutboxFull as error:
            raise SandboxError(f"the supervisor does not take requests: {error}") from None
        except OSError:
            pass  # it is gone: the next read tells
        finally:
            if self._outbox.waits:
                self._wake(lambda: None)  # the I/O thread looks for what wants to be written
        pending.asked = True

    def close(self) -> None:
        """Ask for the end of the connection; a supervisor ends its guests, says so, and closes."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def disown(self) -> None:
        """After fork, in the child: close this process's copy of the socket."""
        self.lost = "the connection belongs to the parent process"
        self._sock.close()

    # The I/O thread --------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The socket, -1 when it is closed."""
        return self._sock.fileno()

    def wants_write(self) -> bool:
        """Whether a part of a request waits to be sent."""
        return self._outbox.waits

    def on_ready(self, events: int) -> bool:
        """Read and write what is possible; False at the end of the connection."""
        if events & select.POLLOUT:
            self._flush()
        if not events & ~select.POLLOUT:
            return True
        try:
            going = self._receive()
        except BlockingIOError:
            return True
        self._take_messages()
        return going

    def fail(self, why: str) -> None:
        """The connection has ended: tell everybody who waits, and the owner."""
        self.lost = why
        self._outbox.close()
        while self._fds:
            os.close(self._fds.popleft())
        while self._pending:
            try:
                _, pending = self._pending.popitem()
            except KeyError:
                break  # the thread that was about to send it has taken it
            pending.finish(None, ConnectionLost(why))
        self._on_lost(self, why)

    def _flush(self) -> None:
        try:
            self._outbox.flush()
        except OSError:
            pass  # gone: the next read tells

    def _receive(self) -> bool:
        data, ancillary, _, _ = self._sock.recvmsg(64 << 10, _ROOM, _CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        self._in += data
        return bool(data)

    def _take_messages(self) -> None:
        messages: List[Message] = []
        while len(self._in) >= 4:
            (size,) = struct.unpack_from("!I", self._in)
            if size > MAX_FRAME:
                raise ValueError(f"a message of {size} bytes; at most {MAX_FRAME} are allowed")
            if len(self._in) < 4 + size:
                break
            messages.append(json.loads(str(self._in[4 : 4 + size], "utf-8")))
            del self._in[: 4 + size]
        for message in messages:
            self._take(message)
        while self._fds and not self._in:
            os.close(self._fds.popleft())

    def _take(self, message: Message) -> None:
        if "id" not in message:
            self._on_push(self, message)
            return
        pending = self._pending.pop(message["id"], None)
        if pending is None:
            raise ValueError(f"a reply to request {message['id']!r}, which was not asked")
        if "error" in message:
            pending.finish(None, _error(message["error"]))
            return
        fd = self._fds.popleft() if pending.on_ok is not None and self._fds else None
        try:
            pending.finish(pending.on_ok(message["ok"], fd) if pending.on_ok else message["ok"])
        except SandboxError as error:
            pending.finish(None, error)


def no_answer(op: str, timeout: float) -> SandboxError:
    """The error for a supervisor that takes too long."""
    return SandboxError(f"the supervisor has not answered {op!r} within {timeout:g} s")


def _error(error: Message) -> SandboxError:
    kind, text = error.get("kind"), str(error.get("message"))
    errors = {"policy": PolicyError, "auth": PolicyAuthError, "timeout": TimeoutError}
    return errors.get(str(kind), SandboxError)(text)
