"""One guest's channel, without a thread of its own.

Whoever waits for something from the guest (``recv``, ``call``, ``exec`` with a timeout) reads the
channel for everybody: of several waiting threads one leads and reads, the others follow and are woken
when frames came or the lead is free.

::

    guest ──► socket ──► FrameReader.frames ──► inbox          posts and exceptions of exec, for recv
              (kernel)   (the leader only)  ├─► Request.reply  results, by id
                                            └─► output         the tails of stdout and stderr, callbacks

Every stage is bounded. Nobody reads while nobody waits, and a leader stops reading while the inbox or a
callback's backlog is full: then the kernel's buffer fills and the *guest* blocks.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Optional, Tuple, TypeVar, Union

from . import _frames as wire
from . import _memfd
from ._filing import Filing
from ._frames import Frame, FrameReader, ProtocolError, TooLarge
from ._lock import make_lock
from ._outbox import Outbox, OutboxFull
from ._waiting import Request, Waiter

if TYPE_CHECKING:
    from ._codec import Data

T = TypeVar("T")
Payload = Union[bytes, "List[Data]"]  # as the codec gives it

_NOW = int(socket.MSG_DONTWAIT)
_LONGEST = 1e6  # seconds of one poll
_POLLS = 120  # before going to sleep: some 60 µs, in which a sleeper is woken and answers
_SLEEPS = 15  # after polling in vain again and again: so many reads sleep at once
_MANY_REQUESTS = 64  # unread answers from here on: read some while sending more


class ChannelClosed(Exception):
    """The channel has ended: the guest is gone, broke the protocol, or the handle was closed."""


class WaitExpired(Exception):
    """Nothing came in time."""


class Channel:
    """The client's end of a guest's channel. Once it is open any thread may use any method."""

    _sock: socket.SocketType
    _flags = 0  # of what is sent

    def __init__(self, on_backlog: Callable[["Channel"], None]) -> None:
        """``on_backlog`` is called when something waits to be sent: see :meth:`flush`."""
        self._on_backlog = on_backlog
        self._outbox = Outbox()
        self._reader = FrameReader()  # the leader's
        self.set_limit = self._reader.set_limit  # when a reload has changed it
        self._poll = select.poll()  # the leader's
        self._patience = 1  # the leader's: so many reads until it polls again; a guest's first answer takes longer
        self._vain = 0  # the leader's: so many will follow when it polls in vain
        self._lock = make_lock()  # guards all that follows
        self._leader: Optional[Waiter] = None
        self._followers: List[Waiter] = []
        self._filing = Filing()
        self._inbox = self._filing.inbox
        self._last_id = 0
        self._for_recv = self._filing.take_post  # one object, to be recognised by _lead
        self._closed = False
        self.ended = False  # no more frames will come
        self.fault: Optional[str] = None  # the rule of the protocol that the guest broke, if it did

    def open(
        self, sock: socket.SocketType, hear: Callable[[], None], message_limit: int, direct: bool, ready: Optional[Dict[str, object]]
    ) -> None:
        """Begin. ``hear`` returns when ``set_limit`` was called, if the supervisor had news. ``direct``: the other end of the
        socket is the guest's own, so that descriptors get there. ``ready`` is what the guest has said already when it was
        ready, if it was."""
        self._hear = hear
        self._reader.begin(message_limit)
        self._filing.ready = ready
        if ready is None:
            self._patience += 1  # which is read before that answer
        self._sock = sock
        sock.setblocking(True)  # reads block only in the leader; sends never do (MSG_DONTWAIT)
        self._poll.register(sock, select.POLLIN)
        self._outbox.open(sock)
        if direct and _memfd.SUPPORTED:
            self._flags = wire.TAKES_MEMFDS

    # Sending ----------------------------------------------------------------------------------------

    def request(self, kind: int, payload: Payload, listening: bool = False) -> Request:
        """Send an EXEC or CALL; with ``listening`` its output is kept for the thread that waits for it."""
        frame, flags, file = self._prepare(kind, payload)
        requests = self._filing.requests
        with self._lock:
            self._last_id = id = self._last_id % 0xFFFFFFFF + 1
            requests[id] = request = Request(id, kind, listening)
            try:
                self._send(wire.pack(kind, id, frame, flags), file)
            except Exception:
                requests.pop(id, None)
                raise
        if len(requests) > _MANY_REQUESTS:
            self.read_now()
        return request

    def post(self, payload: Payload) -> None:
        """Send a POST."""
        frame, flags, file = self._prepare(wire.POST, payload)
        self._send(wire.pack(wire.POST, 0, frame, flags), file)

    def interrupt(self, request: Optional[Request] = None) -> None:
        """Interrupt a request (by default the one that runs), or take it out of the guest's queue."""
        self.read_now()
        with self._lock:
            if request is None:
                request = next((each for each in self._filing.requests.values() if each.reply is None), None)
            if request is not None and request.reply is None:
                self._send(wire.pack(wire.CANCEL, request.id) + wire.pack(wire.INTERRUPT, request.id))

    def abandon(self, request: Request) -> None:
        """Nobody waits for this request any more: have it stopped, and drop what it still says."""
        request.abandoned = True
        with suppress(ChannelClosed, OutboxFull):  # it has ended, or is so busy that it would not listen
            self.interrupt(request)

    def flush(self) -> bool:
        """For the I/O thread: send what waits; True when there is nothing (more) to wait for."""
        try:
            return self._outbox.flush()
        except OSError:
            return True  # the guest is gone; whoever waits learns it by reading

    def fileno(self) -> int:
        """The socket, -1 when it is closed."""
        return self._outbox.fileno()

    def _prepare(self, kind: int, payload: Payload) -> Tuple[bytes, int, Optional[_memfd.Memfd]]:
        """What goes into the frame of a payload, the frame's flags, and the file that goes with it."""
        flags = self._flags
        if isinstance(payload, bytes):
            if len(payload) <= _memfd.LEAST:
                return payload, flags, None
            payload = [payload[:1], memoryview(payload)[1:]]
        size = sum(map(len, payload[1:]))
        ready = self._filing.ready or {}
        taken = size >= _memfd.LEAST and kind != wire.EXEC and flags and ready.get("memfd") is True
        if not taken or not self._outbox.takes_file(size):
            return b"".join(payload), flags, None
        return wire.begin(size, payload[0]), flags | wire.MEMFD, _memfd.Memfd(payload[1:])

    def _send(self, frame: bytes, file: Optional[_memfd.Memfd] = None) -> None:
        try:
            sent = self._outbox.put(frame, file)
        except OSError:
            raise ChannelClosed from None
        if not sent:
            self._on_backlog(self)

    # Waiting ----------------------------------------------------------------------------------------

    def receive(self, deadline: Optional[float]) -> Frame:
        """The next post, or ERROR of an exec. Raises WaitExpired, ChannelClosed."""
        if self._inbox and not self._followers:  # nobody to be woken: this is the common case in a flood
            try:
                return self._inbox.popleft()
            except IndexError:
                pass
        me = Waiter()
        try:  # as _wait, with one call less
            return self._wait_as(me, self._for_recv, deadline)
        finally:
            if self._leader is me or me.queued or self._closed:
                with self._lock:
                    self._leave(me)

    def put_back(self, frame: Frame) -> None:
        """Make what ``receive`` has given the next thing to receive again."""
        with self._lock:
            if not self.ended or self.fault is None:
                self._inbox.appendleft(frame)

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest has said that it is ready."""
        if self._filing.ready is None:
            self._wait(lambda: self._filing.ready, time.monotonic() + timeout)

    def answer(self, request: Request, deadline: Optional[float], on_output: Callable[[Frame], None]) -> Frame:
        """Wait for a request's reply; its output goes to ``on_output``, in this thread, if it listens."""
        if request.output is None:
            return self._wait(request.take, deadline)
        with self.listening(request):
            return self._listen(request, deadline, on_output)

    @contextmanager
    def listening(self, request: Request) -> Iterator[None]:
        """While this lasts, the output of a request that listens is kept until it is taken."""
        try:
            if request.output is not None:
                with self._lock:
                    self._filing.listeners.append(request)
            yield
        finally:
            with self._lock:
                request.output = None
                if request in self._filing.listeners:
                    self._filing.listeners.remove(request)

    def _listen(self, request: Request, deadline: Optional[float], on_output: Callable[[Frame], None]) -> Frame:
        while True:
            frame = self._wait(request.take, deadline)
            if frame is request.reply:
                return frame
            on_output(frame)
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitExpired  # a guest that never stops printing does not stop the clock

    def answer_now(self, request: Request) -> Frame:
        """The next frame of a request that was made with ``listening``, or its reply, if it is there."""
        return self._wait(request.take, 0.0)

    @property
    def is_full(self) -> bool:
        """Whether nothing more is read before somebody receives."""
        with self._lock:
            return self._filing.full()

    def read_now(self) -> None:
        """Take in what has arrived, unless somebody is reading or the inbox is full. Never blocks."""
        try:
            self._wait(lambda: None, time.monotonic())
        except (WaitExpired, ChannelClosed):
            pass

    def settle_limit(self) -> None:
        """Have a limit that was set hold for what is sent from now on: nobody may be reading."""
        with self._lock:
            if self._leader is None and not self.ended:
                self._reader.take_changes(self._sock)

    def tail(self, stream: int) -> bytes:
        """The last bytes of STDOUT or STDERR that have been read."""
        with self._lock:
            return bytes(self._filing.tails[stream])

    def _wait(self, take: Callable[[], Optional[T]], deadline: Optional[float]) -> T:
        # The loop is a function of its own: CPython 3.12 and 3.13 skip a `finally` when an interrupt comes
        # at the backward jump of a loop directly inside its `try`.
        me = Waiter()
        try:
            return self._wait_as(me, take, deadline)
        finally:
            if self._leader is me or me.queued or self._closed:
                with self._lock:
                    self._leave(me)

    def _wait_as(self, me: Waiter, take: Callable[[], Optional[T]], deadline: Optional[float]) -> T:
        tried = False
        while True:
            with self._lock:
                if self._closed:
                    raise ChannelClosed
                item = take()
                if item is not None:
                    return item
                if self.ended:
                    raise ChannelClosed
                timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
                if timeout == 0.0 and tried:
                    raise WaitExpired
                tried = True
                if (self._leader is not None and self._leader is not me) or self._filing.full():
                    if self._leader is me:
                        self._leader = None
                    me.queue()
                    self._followers.append(me)
                else:
                    self._leader = me
            if self._leader is me:
                item = self._lead(me, timeout, take)
                if item is not None:
                    return item
            else:
                me.sleep(timeout)

    def _leave(self, me: Waiter) -> None:
        if self._leader is me:
            self._leader = None
        if self._followers:
            if me in self._followers:
                self._followers.remove(me)
            if self._leader is None:
                self._wake()
        if self._closed and self._leader is None:
            self._release()

    def _release(self) -> None:
        self._outbox.close()
        self._reader.close()

    def _wake(self) -> None:
        followers, self._followers = self._followers, []
        for each in followers:
            each.wake()

    # Reading (the leader) -----------------------------------------------------------------------------

    def _lead(self, me: Waiter, timeout: Optional[float], take: Callable[[], Optional[T]]) -> Optional[T]:
        """Read once, hand out what came, and take what this thread waits for, if it is there now."""
        fault: Optional[str] = None
        more = True
        reader = self._reader
        try:
            if reader.has_more or self._linger(timeout):
                more = reader.read(self._sock, _NOW)
            elif timeout is None:
                more = reader.read(self._sock)
            elif self._poll.poll(min(timeout, _LONGEST) * 1000):
                more = reader.read(self._sock, _NOW)
        except TooLarge:
            self._hear()
            fault = reader.read_again(self._sock, _NOW)
        except BlockingIOError:
            return None
        except OSError:
            more = False  # reset: the guest died with unread frames in its own buffer
        except ProtocolError as error:
            fault = str(error)
        frames = reader.frames
        with self._lock:
            item: Optional[T]
            if take is self._for_recv and len(frames) == 1 and frames[0][0] == wire.GUEST_POST and not self._inbox:
                item = frames.popleft()  # type: ignore[assignment]  # past the inbox: this is the common case
            else:
                try:
                    self._filing.hand_out(frames)
                except ProtocolError as error:
                    fault = str(error)
                if fault is not None:
                    self.fault = fault
                    reader.close()  # nothing is read after this: what came and belongs to nothing goes now
                if fault is not None or not more:
                    self.ended = True
                item = None if self._closed else take()
            if item is not None and not self._followers and not self._closed:
                self._leader = None
            elif item is not None:
                self._leave(me)
            elif self._followers:
                self._wake()
            return item

    def _linger(self, timeout: Optional[float]) -> bool:
        """Whether something comes within a moment that is shorter than going to sleep and being woken.

        A guest that answers at once is met awake, which halves the time of a round trip: the moment is long
        enough for one that has to be woken, so that it stays awake as well. One that was not met, because it is slow or has no core to run on, costs the moment in one read of sixteen.
        """
        if timeout == 0.0:
            return False
        if self._patience:
            self._patience -= 1
            return False
        poll = self._poll.poll
        for _ in range(_POLLS):
            if poll(0):
                self._vain = 0
                return True
        self._patience = self._vain = min(2 * self._vain + 1, _SLEEPS)
        return False

    # Ending -------------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """The guest is gone: what it sent before can still be received, then the channel has ended."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def break_off(self, fault: str) -> None:
        """The guest broke a rule: nothing more is taken from it."""
        with self._lock:
            self.fault = self.fault or fault
            self.ended = True
            self._inbox.clear()
            self._wake()
        self.hang_up()

    def close(self) -> None:
        """End everything now; threads that wait get ChannelClosed."""
        with self._lock:
            self._closed = self.ended = True
            self._inbox.clear()
            if self._followers:
                self._wake()
            if self._leader is None:
                self._release()
            else:
                self.hang_up()  # wakes the leader, who closes

    def disown(self) -> None:
        """After fork, in the child: close this process's copy; the parent's channel is not touched."""
        self._closed = self.ended = True
        self._lock = make_lock()
        self._reader.close()
        with suppress(AttributeError):  # it was never opened
            self._sock.close()

    def __del__(self) -> None:
        try:
            self._sock.close()
        except AttributeError:
            return  # it was never opened
        self._reader.close()
