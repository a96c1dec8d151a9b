"""This process's sandboxes, and the supervisor that runs them.

Embedded by default: the first spawn starts `psi-shim serve` on one end of a socketpair; it ends with this
process and takes its guests along. Or shared: a supervisor that root runs listens on a unix socket. For
guests that an engine runs, `psi-shim bridge` takes its place. When a supervisor dies, its sandboxes end
with cause "supervisor" and the next spawn starts (or connects to) another one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import weakref
from functools import partial
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from . import _locate
from ._control import VERSION, Connection, ConnectionLost, Message, Pending
from ._events import Event, Events, details_of
from ._io import IOThread
from ._lock import make_lock
from .errors import PolicyAuthError, SandboxError
from .sandbox import Sandbox

CLIENT = "pyisolate 0.1.0"
_HELLO = 30.0  # seconds that a supervisor may take to say hello
SPAWN = 120.0  # … to make a guest, on a machine that is slow or busy
READY = 60.0  # … and that the guest's interpreter may take to start
_LEAVE = 5.0  # … and that an embedded supervisor may take to end at exit

Words = Optional[Tuple[str, ...]]  # an engine's command; None: psi's own supervisor
Place = Union[None, str, Tuple[str, ...]]  # of a connection: embedded, a socket's path, a bridge's command


class Supervision:
    """The state that all sandboxes of a process share; there is one, see ``pyisolate.__init__``."""

    def __init__(self) -> None:
        self.events = Events()
        self._socket: Optional[str] = None
        self._token: Optional[str] = None
        self._handles: "weakref.WeakSet[Sandbox]" = weakref.WeakSet()
        self._begin()

    def _begin(self) -> None:
        self._io = IOThread()
        self._starting = make_lock()  # one thread at a time starts a supervisor
        self._lock = make_lock()  # guards all that follows
        self._connections: Dict[Place, Connection] = {}  # that live
        self._chosen: Dict[Tuple[Words, int], Connection] = {}  # … what PSI_SOCKET or connect() led to, by engine and user
        self._processes: List["subprocess.Popen[bytes]"] = []
        self._names: Dict[str, Making] = {}
        self.given_up: Dict[str, Making] = {}  # earlier spawns: the supervisor may still hold these names
        self._guests: Dict[str, Sandbox] = {}  # by the supervisor's id

    # Calls of the user's threads -----------------------------------------------------------------------

    def connect(self, path: Optional[str]) -> None:
        """Spawn from now on through the shared supervisor at ``path``; None: as the environment says."""
        with self._starting:
            self._socket = path
            self._chosen.clear()

    def spawn(self, name: str, fields: Mapping[str, object], engine: Words = None) -> Sandbox:
        """Make a guest and wait until it is ready."""
        given_up = self.given_up.get(name)
        if given_up is not None:
            given_up.settle()
        made = Making(self, name, fields)
        try:
            self.reserve(made)
            sandbox = self._ask_for(made, engine)
            sandbox.wait_ready(READY)
            return sandbox
        except BaseException:
            self.give_up(made)
            raise

    def reserve(self, made: "Making") -> None:
        """Begin a spawn."""
        name = made.name
        with self._lock:
            self.given_up.pop(name, None)
            if name in self._names:
                raise SandboxError(f"a sandbox named {name!r} is active; close it or choose another name")
            self._names[name] = made

    def give_up(self, made: "Making") -> None:
        """End a spawn that came to nothing."""
        made.abandon()
        with self._lock:
            if not made.settled:
                self.given_up[made.name] = made
            if self._names.get(made.name) is made:
                del self._names[made.name]

    def ask_for(self, made: "Making", connection: Connection) -> Pending:
        """Ask for the guest: the reply will be the sandbox, which is not ready then."""
        made.pending = pending = Pending(partial(self._adopt, connection, made, []))
        connection.send(pending, "spawn", {"name": made.name, **made.fields})
        made.prepare()  # while the supervisor works
        return pending

    def living(self, engine: Words) -> Optional[Connection]:
        """A connection that need not be made."""
        found = self._chosen.get((engine, os.geteuid()))
        return found if found is not None and found.lost is None else None

    def connected(self, engine: Words) -> Tuple[Connection, bool]:
        """A living connection, and whether it was made just now."""
        with self._starting:
            living = self.living(engine)
            if living is not None:
                return living, False
            place = self._place(engine)
            with self._lock:
                connection = self._connections.get(place)
            made = connection is None or connection.lost is not None
            if connection is None or made:
                connection = self._connect(engine, place)
            self._chosen[engine, os.geteuid()] = connection
            return connection, made

    def protect(self, token: str) -> None:
        """From now on a reload of this process's sandboxes needs the token."""
        with self._starting:
            with self._lock:
                connections = list(self._connections.values())
            for connection in connections:
                connection.ask("protect", {"token": token}, _HELLO)
            if self._token is not None and self._token != token:
                raise PolicyAuthError("the sandboxes of this process are protected by another token already")
            self._token = token

    def active(self) -> Dict[str, Sandbox]:
        """The sandboxes that run, by name."""
        with self._lock:
            names = dict(self._names)
        return {name: made.sandbox for name, made in names.items() if made.sandbox is not None}

    def forget(self, sandbox: Sandbox) -> None:
        """A sandbox has ended: its name is free."""
        with self._lock:
            self._guests.pop(sandbox.id, None)
            made = self._names.get(sandbox.name)
            if made is not None and made.sandbox is sandbox:
                del self._names[sandbox.name]
                made.pending = None  # whose reply it was

    def leave(self) -> None:
        """At exit: end the embedded supervisors, and with them their guests, before this process goes."""
        with self._lock:
            connections, processes = list(self._connections.values()), self._processes
        for connection in connections:
            connection.close()
        for process in processes:
            try:
                process.wait(_LEAVE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def after_fork(self) -> None:
        """In a forked child: the parent's sandboxes are not ours; a spawn here starts a supervisor of its own."""
        for sandbox in list(self._handles):
            sandbox.disown()
        for connection in self._connections.values():
            connection.disown()
        for process in self._processes:
            process.returncode = 0  # not our child: nothing to wait for
        self._io.abandon()
        self._begin()
        self.events.forget()

    # Spawning --------------------------------------------------------------------------------------------

    def _ask_for(self, made: "Making", engine: Words) -> Sandbox:
        while True:
            fresh = False
            connection = self.living(engine)
            if connection is None:
                connection, fresh = self.connected(engine)
            pending = self.ask_for(made, connection)
            try:
                sandbox: Sandbox = connection.lead(pending, "spawn", SPAWN)
                return sandbox
            except ConnectionLost:
                if fresh:
                    raise  # else it had died before: this is the "next spawn"

    def handle(self, name: str, fields: Mapping[str, object]) -> Sandbox:
        """A handle without a guest."""
        sandbox = Sandbox(self, self._io.drain, name, fields)
        self._handles.add(sandbox)
        return sandbox

    def _adopt(
        self, connection: Connection, made: "Making", sock: List[socket.SocketType], ok: Message, channel: Optional[int]
    ) -> Sandbox:
        # Before the guest's events and its end are looked at; again, in the I/O thread, after an interrupt.
        if made.sandbox is not None:
            return made.sandbox
        if channel is None:
            raise SandboxError("the supervisor sent no channel for the new guest")
        if not sock:  # made and kept in one call into C, and not asked what it is
            sock.extend(map(socket.SocketType, (socket.AF_UNIX,), (socket.SOCK_STREAM,), (0,), (channel,)))
        sandbox = made.prepare()
        sandbox.begin(connection, ok, sock[0])
        with self._lock:
            self._guests[sandbox.id] = sandbox
        made.adopt(sandbox)
        return sandbox

    def _place(self, engine: Words) -> Place:
        return engine or self._socket or _locate.shared_socket(os.environ, os.geteuid() == 0)

    def _connect(self, engine: Words, place: Place) -> Connection:
        path = place if isinstance(place, str) else None
        self._reap()
        process: Optional["subprocess.Popen[bytes]"] = None
        if path:
            sock = _dial(path)
        else:
            sock, process = _start(_command(engine))
            self._processes.append(process)
        connection = Connection(sock, self._io, self._pushed, self._lost)
        self._io.add(connection)
        try:
            connection.ask("hello", {"version": VERSION, "client": CLIENT}, _HELLO)
            if self._token is not None:
                connection.ask("protect", {"token": self._token}, _HELLO)
        except ConnectionLost as error:
            raise SandboxError(_why_no_hello(path, process)) from error
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._connections[place] = connection
        return connection

    def _reap(self) -> None:
        self._processes = [each for each in self._processes if each.poll() is None]

    # The I/O thread ----------------------------------------------------------------------------------------

    def _pushed(self, connection: Connection, message: Message) -> None:
        exited = message.get("exited")
        about: Any = message if exited is None else exited
        with self._lock:
            sandbox = self._guests.get(about.get("guest"))
        if sandbox is None:
            return  # closed meanwhile
        if exited is not None:
            sandbox.on_exited(exited)
        elif "event" in message:
            event = Event(message["event"], details_of(message))
            if event == "POLICY_HOTLOAD":
                sandbox.on_limits(event.details["limits"])
            self.events.log.publish(float(message["ts"]), sandbox, event)

    def _lost(self, connection: Connection, why: str) -> None:
        with self._lock:
            for place in [each for each, known in self._connections.items() if known is connection]:
                del self._connections[place]
            self._chosen = {each: known for each, known in self._chosen.items() if known is not connection}
            orphans = [each for each in self._guests.values() if each.connection is connection]
        for sandbox in orphans:
            sandbox.on_exited({"cause": "supervisor", "message": why})


class Making:
    """A spawn under way, whose caller may give up (KeyboardInterrupt) while the guest comes to life."""

    def __init__(self, owner: Supervision, name: str, fields: Mapping[str, object]) -> None:
        self.name = name
        self.fields = fields  # of the request
        self._owner = owner
        self._lock = make_lock()  # guards the next one
        self._handle: Optional[Sandbox] = None  # made before there is a guest
        self.sandbox: Optional[Sandbox] = None
        self.pending: Optional[Pending] = None  # the spawn
        self._ending: Optional[Pending] = None  # the kill, if it was given up
        self._abandoned = False

    def prepare(self) -> Sandbox:
        """The handle, without a guest."""
        with self._lock:
            if self._handle is None:
                self._handle = self._owner.handle(self.name, self.fields)
            return self._handle

    def adopt(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        if self._abandoned:
            self._ending = sandbox.discard()

    def abandon(self) -> None:
        self._abandoned = True
        if self.sandbox is not None:
            self._ending = self.sandbox.discard()

    @property
    def settled(self) -> bool:
        """Whether nothing is under way any more."""
        return all(each is None or each.rung for each in (self.pending, self._ending))

    def settle(self) -> None:
        """Wait until a guest that was given up is gone."""
        pending = self.pending
        if pending is not None:
            # An interrupt may have come before it went off; and it may have come just after.
            pending.wait(SPAWN if pending.asked else _LEAVE)
        if self._ending is not None:
            self._ending.wait(_LEAVE)


def _dial(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise SandboxError(
            f"connecting to the supervisor at {path}: {error.strerror or error}; it is started by root with "
            f"`psi-shim serve --socket {path}`, for the members of the group psi"
        ) from error
    return sock


def _command(engine: Words) -> Tuple[List[str], Sequence[str]]:
    """How to start psi-shim: what goes before the flag --fd, and after it."""
    shim = _locate.shim(os.environ)
    if engine:
        return [shim, "bridge"], ["--", *engine]
    return [shim, "serve", "--rootfs", _locate.rootfs(os.environ)], []


def _start(command: Tuple[List[str], Sequence[str]]) -> Tuple[socket.socket, "subprocess.Popen[bytes]"]:
    before, after = command
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [*before, "--fd", str(theirs.fileno()), *after],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # its log goes to our stderr
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # ^C at the terminal is for us
            )
        except OSError as error:
            ours.close()
            raise SandboxError(f"starting {before[0]}: {error.strerror or error}") from error
    return ours, process


def _why_no_hello(path: Optional[str], process: Optional["subprocess.Popen[bytes]"]) -> str:
    if process is None:
        return f"the supervisor at {path} ended the connection without a greeting; its log says why"
    try:
        status = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "psi-shim closed its connection before it was ready; what it wrote to stderr says why"
    return f"psi-shim ended with status {status} before it was ready; what it wrote to stderr says why"
