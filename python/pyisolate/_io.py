"""The process's one I/O thread.

It serves what nobody waits for: the control connections (replies, events, exit notices) and what is on
its way to guests that do not read fast enough. Guests' own data is read by whoever waits for it
(_channel), so this thread sleeps while a program talks to its guests.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections import deque
from typing import Callable, Deque, Dict, Protocol, Set, Tuple

from ._lock import make_lock


class Sink(Protocol):
    """Something with bytes to send: a channel."""

    def fileno(self) -> int:
        """The socket, -1 when it is closed."""

    def flush(self) -> bool:
        """Send what can be sent; True when nothing is left."""


class Endpoint(Protocol):
    """A connection that is always read. ``fail`` is called once, when the thread cannot go on with it."""

    def fileno(self) -> int:
        """What can be read when the thread has to read, -1 when it is closed."""

    def writes_to(self) -> int:
        """The socket for which bytes wait, -1 if none do."""

    def on_ready(self, events: int) -> bool:
        """Do what the poll events allow, or after :meth:`IOThread.serve` whatever is to do; False when the connection has ended."""

    def fail(self, why: str) -> None:
        """The connection has ended."""


class IOThread:
    """A daemon thread, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = make_lock()
        self._started = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._todo: Deque[Callable[[], None]] = deque()
        self._endpoints: Set[Endpoint] = set()  # the thread's
        self._sinks: Set[Sink] = set()  # the thread's

    def call(self, step: Callable[[], None]) -> None:
        """Run ``step`` in the thread, soon."""
        self._todo.append(step)
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="pyisolate-io", daemon=True).start()
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # full: it will wake

    def add(self, endpoint: Endpoint) -> None:
        """Serve a connection until it ends."""
        self.call(lambda: self._endpoints.add(endpoint))

    def serve(self, endpoint: Endpoint) -> None:
        """Serve a connection now, although nothing may have come."""
        self.call(lambda: self._serve(endpoint, 0))

    def drain(self, sink: Sink) -> None:
        """Flush ``sink`` whenever it can be written, until nothing is left."""
        self.call(lambda: self._sinks.add(sink))

    def abandon(self) -> None:
        """After fork, in the child, where the thread does not exist: close what it held."""
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        # Signals are for the threads that can be interrupted by them, above all the main one.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            poll, endpoints, sinks = self._watch()
            for fd, events in poll.poll():
                try:
                    if fd == self._wake_read:
                        self._catch_up()
                    elif fd in endpoints:
                        self._serve(endpoints[fd], events)
                    elif sinks[fd].flush():
                        self._sinks.discard(sinks[fd])
                except Exception:  # the thread serves every sandbox: one fault must not end it
                    logging.getLogger("pyisolate").exception("in the I/O thread of pyisolate")

    def _watch(self) -> Tuple["select.poll", Dict[int, Endpoint], Dict[int, Sink]]:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        endpoints: Dict[int, Endpoint] = {}
        for endpoint in self._endpoints:
            for fd, events in ((endpoint.fileno(), select.POLLIN), (endpoint.writes_to(), select.POLLOUT)):
                if fd >= 0:
                    endpoints[fd] = endpoint
                    poll.register(fd, events)
        self._sinks = {sink for sink in self._sinks if sink.fileno() >= 0}
        sinks = {sink.fileno(): sink for sink in self._sinks}
        for fd in sinks:
            if fd >= 0:  # closed meanwhile by its owner's thread
                poll.register(fd, select.POLLOUT)
        return poll, endpoints, sinks

    def _catch_up(self) -> None:
        os.read(self._wake_read, 4096)
        while self._todo:
            self._todo.popleft()()

    def _serve(self, endpoint: Endpoint, events: int) -> None:
        if endpoint not in self._endpoints:
            return  # it has ended
        why = "the connection to the supervisor ended"
        try:
            going = endpoint.on_ready(events)
        except Exception as error:
            going, why = False, f"the connection to the supervisor failed: {error}"
        if not going:
            self._endpoints.discard(endpoint)
            endpoint.fail(why)
