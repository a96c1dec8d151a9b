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

The process's I/O thread reads, and wakes who asked. Two threads that are woken one after another are a tenth of
a spawn, so who waits for the only reply that is to come may lead, and read it: then the I/O thread does not see
the socket (it polls an epoll, from which the leader takes it). It goes on where the leader stops, who may be
interrupted (KeyboardInterrupt) at any moment: what the kernel gives is recorded inside one call into C, and a
message stays, to be looked at again, until one assignment takes it away. So the leader takes its reply and what
may be looked at twice, that a guest has exited; with anything else the I/O thread goes on.
"""

from __future__ import annotations

import array
import itertools
import json
import os
import select
import socket
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from ._codec import _dump
from ._io import IOThread
from ._lock import make_lock
from ._outbox import Outbox, OutboxFull
from ._waiting import Bell
from .errors import PolicyAuthError, PolicyError, SandboxError, TimeoutError

VERSION = 2
MAX_FRAME = 1 << 20
_MAX_FDS = 16
_CHUNK = 16 << 10  # bytes of one read: larger ones cost a large buffer, whatever comes
_ROOM = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_decode = json.JSONDecoder().raw_decode  # as json.loads, with fewer steps; _dump is in place of json.dumps

Message = Dict[str, Any]
OnOK = Callable[[Message, Optional[int]], Any]  # what becomes of an "ok", and of the descriptor that came along
_Got = Tuple[bytes, List[Tuple[int, int, bytes]], int, Any]  # what recvmsg returns
# What has come and was not taken: data, where the next message starts in it, descriptors, and one read that has not
# been looked at, stored there by the call itself. Replaced as a whole, so that it is never half changed.
_Unread = Tuple[bytes, int, Tuple[int, ...], List[_Got]]


class ConnectionLost(SandboxError):
    """The supervisor is gone; the text says how that was seen."""


class Pending(Bell):
    """A request that waits for its reply: the bell rings when it is there."""

    asked = False  # it went off, or will by itself
    stopped = False  # who has led reads no more
    result: Any = None
    error: Optional[SandboxError] = None
    _tell: Optional[Callable[[], None]] = None

    def __init__(self, on_ok: Optional[OnOK]) -> None:
        super().__init__()
        self.on_ok = on_ok

    def finish(self, result: Any, error: Optional[SandboxError] = None) -> None:
        """The reply is there. Once."""
        self.result, self.error = result, error
        self.ring()
        if self._tell is not None:
            self._tell()

    def notify(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called when the reply is there, by any thread, perhaps twice."""
        self._tell = tell
        if self.rung:
            tell()

    def value(self) -> Any:
        """What the reply was, once it is there; raises its error."""
        if self.error is not None:
            raise self.error
        return self.result


class Connection:
    """One connection to a supervisor.

    ``ask``, ``tell``, ``send``, ``wait`` and ``lead`` may be called by any thread; everything else runs in the I/O thread.
    ``on_push`` gets every message without an id (``exited`` perhaps twice, and in any thread), ``on_lost`` the reason when the connection ends (once).
    """

    def __init__(
        self,
        sock: socket.socket,
        io: IOThread,
        on_push: Callable[["Connection", Message], None],
        on_lost: Callable[["Connection", str], None],
    ) -> None:
        sock.setblocking(False)
        self.lost: Optional[str] = None
        self._sock = sock
        self._io = io
        self._on_push = on_push
        self._on_lost = on_lost
        self._pending: Dict[int, Pending] = {}
        self._ids = itertools.count(1)
        self._outbox = Outbox()
        self._outbox.open(sock)
        self._unread: _Unread = (b"", 0, (), [])
        self._reading = make_lock()  # guards reading without a leader, and who becomes one
        self._leader: Optional[Pending] = None  # whose reply is read by who waits for it
        self._arrival = select.poll()  # the leader's
        self._arrival.register(sock, select.POLLIN)
        self._gate = select.epoll()  # the I/O thread's
        self._gate.register(sock, select.EPOLLIN)

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
        pending = self.tell(op, fields, on_ok)
        return self.lead(pending, op, timeout) if on_ok is None else self.wait(pending, op, timeout)

    def wait(self, pending: Pending, op: str, timeout: float) -> Any:
        """Wait for the reply to what ``tell`` has sent."""
        if not pending.wait(timeout):
            raise no_answer(op, timeout)
        return pending.value()

    def lead(self, pending: Pending, op: str, timeout: float) -> Any:
        """As ``wait``, and if nobody else waits read the reply here. ``on_ok`` may then be interrupted, and called again."""
        end = time.monotonic() + timeout
        try:
            with self._reading:
                if not pending.rung and self._leader is None and self._alone(pending):
                    self._leader = pending
            if self._leader is pending:
                if self._read_reply(pending, timeout):
                    self._gate.modify(self._sock, select.EPOLLIN)
                    self._leader = None
                else:
                    self._stop_leading(pending)
        except BaseException:  # interrupted
            with self._reading:  # which Python 3.9 may have left locked
                pass
            if self._leader is pending:
                self._stop_leading(pending)
            raise
        return pending.value() if pending.rung else self.wait(pending, op, max(0.0, end - time.monotonic()))

    def _alone(self, pending: Pending) -> bool:
        """Whether no other reply is to come. What was interrupted before it went off gets none."""
        return len(self._pending) == 1 or [each for each in list(self._pending.values()) if each.asked] == [pending]

    def _read_reply(self, pending: Pending, timeout: float) -> bool:
        """Whether the reply is all that came; else the I/O thread has to go on."""
        try:
            self._gate.modify(self._sock, 0)
            while not pending.rung:
                if not self._arrival.poll(timeout * 1000) or not self._receive() or not self._take_messages(pending):
                    return False
        except Exception:
            return False  # it meets the same, and knows what to do
        return not any(self._unread)

    def _stop_leading(self, pending: Pending) -> None:
        pending.stopped = True
        self._io.serve(self)

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
        try:
            data = "".join(_dump({"id": id, "op": op, **fields}, 0)).encode()
        except ValueError as error:  # an infinite number
            raise SandboxError(f"{op} takes finite numbers: {error}") from None
        if len(data) > MAX_FRAME:
            raise PolicyError(f"a request of {len(data)} bytes; at most {MAX_FRAME} fit: make the policy smaller")
        self._pending[id] = pending
        if self.lost is not None:  # perhaps since a moment ago
            if self._pending.pop(id, None) is not None:
                pending.finish(None, ConnectionLost(self.lost))
            return
        try:
            self._outbox.put(len(data).to_bytes(4, "big") + data)
        except OutboxFull as error:
            raise SandboxError(f"the supervisor does not take requests: {error}") from None
        except OSError:
            pass  # it is gone: the next read tells
        finally:
            if self._outbox.waits:
                self._io.call(lambda: None)  # the I/O thread looks for what wants to be written
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
        self._gate.close()
        self._sock.close()

    # The I/O thread --------------------------------------------------------------------------------

    def fileno(self) -> int:
        """What can be read when the I/O thread has to read."""
        return self._gate.fileno()

    def writes_to(self) -> int:
        """The socket, if a part of a request waits to be sent, or -1."""
        return self._sock.fileno() if self._outbox.waits else -1

    def on_ready(self, events: int) -> bool:
        """Read and write what is possible; False at the end of the connection."""
        if events & select.POLLOUT:
            self._flush()
        if events == select.POLLOUT:
            return True
        with self._reading:
            if self._leader is not None:
                if not self._leader.stopped:
                    return True
                self._leader = None
                self._gate.modify(self._sock, select.EPOLLIN)
            try:
                going = self._receive()
            except BlockingIOError:
                going = True
            self._take_messages()
            return going

    def fail(self, why: str) -> None:
        """The connection has ended: tell everybody who waits, and the owner."""
        self.lost = why
        self._gate.close()
        self._outbox.close()
        _, _, fds, _ = self._unread
        for fd in fds:
            os.close(fd)
        while self._pending:
            try:
                _, pending = self._pending.popitem()
            except KeyError:
                break  # the thread that was about to send it has taken it
            if not pending.rung:
                pending.finish(None, ConnectionLost(why))
        self._on_lost(self, why)

    def _flush(self) -> None:
        try:
            self._outbox.flush()
        except OSError:
            pass  # gone: the next read tells

    def _receive(self) -> bool:
        data, start, fds, got = self._unread
        if not got:
            got.extend(map(self._sock.recvmsg, (_CHUNK,), (_ROOM,), (_CLOEXEC,)))
        more, ancillary, _, _ = got[0]
        if ancillary:
            fds += _descriptors(ancillary)
        self._unread = (data[start:] + more, 0, fds, [])
        return bool(more)

    def _take_messages(self, only: Optional[Pending] = None) -> bool:
        """Take what has come, or for a leader its reply and who has exited; False if there was something else."""
        data, start, fds, got = self._unread
        while len(data) - start >= 4:
            begin = start + 4
            size = int.from_bytes(data[start:begin], "big")
            if size > MAX_FRAME:
                raise ValueError(f"a message of {size} bytes; at most {MAX_FRAME} are allowed")
            end = begin + size
            if end > len(data):
                break
            message, _ = _decode(str(data[begin:end], "utf-8"))
            id = message.get("id")
            pending = self._pending.get(id)
            if only is not None and pending is not only and "exited" not in message:
                return False
            took = self._take(message, pending, fds)
            start, fds = end, fds[took:]
            self._unread = (data, start, fds, got)
            self._pending.pop(id, None)
        if start == len(data):
            self._unread = (b"", 0, () if only is None else fds, got)
            if only is None:
                for fd in fds:  # that nobody asked for
                    os.close(fd)
        return True

    def _take(self, message: Message, pending: Optional[Pending], fds: Tuple[int, ...]) -> int:
        """Tell whom it concerns; returns how many descriptors were taken."""
        if "id" not in message:
            self._on_push(self, message)
            return 0
        if pending is None:
            raise ValueError(f"a reply to request {message['id']!r}, which was not asked")
        if "error" in message:
            pending.finish(None, _error(message["error"]))
            return 0
        took = 1 if pending.on_ok is not None and fds else 0
        try:
            pending.finish(pending.on_ok(message["ok"], fds[0] if took else None) if pending.on_ok else message["ok"])
        except SandboxError as error:
            pending.finish(None, error)
        return took


def _descriptors(ancillary: List[Tuple[int, int, bytes]]) -> Tuple[int, ...]:
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content)
    return tuple(fds)


def no_answer(op: str, timeout: float) -> SandboxError:
    """The error for a supervisor that takes too long."""
    return SandboxError(f"the supervisor has not answered {op!r} within {timeout:g} s")


def _error(error: Message) -> SandboxError:
    kind, text = error.get("kind"), str(error.get("message"))
    errors = {"policy": PolicyError, "auth": PolicyAuthError, "timeout": TimeoutError}
    return errors.get(str(kind), SandboxError)(text)
