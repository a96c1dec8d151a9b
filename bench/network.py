"""Through the proxy: what a guest exchanges with a server on the host, against plain loopback."""

from __future__ import annotations

import contextlib
import os
import socket
from functools import partial
from typing import Callable, Dict, List

import place  # noqa: F401  # finds pyisolate
import pyisolate as psi
from figures import Row, interleaved
from place import fresh_name

SIZE = 256 << 20
# Both are the guest's code, and that of a process with nothing around it.
CLIENT = '''
import socket
connection = socket.create_connection(("127.0.0.1", PORT))
room = bytearray(256 << 10)
def download():
    connection.sendall(b"d")
    left = SIZE
    while left:
        left -= connection.recv_into(room, min(left, len(room)))
def upload():
    connection.sendall(b"u")
    for _ in range(SIZE // len(room)):
        connection.sendall(room)
    connection.recv(1)
'''


def server(clients: int) -> int:
    """Start processes that send or take SIZE bytes for every byte that a client sends; the port at which they listen."""
    listener = socket.create_server(("127.0.0.1", 0))
    if os.fork() == 0:
        for _ in range(clients):
            connection = listener.accept()[0]
            if os.fork() == 0:
                with contextlib.suppress(ConnectionResetError):  # a guest that was closed
                    serve(connection)
                os._exit(0)
            connection.close()
        os._exit(0)
    return int(listener.getsockname()[1])


def serve(connection: socket.socket) -> None:
    room = bytearray(os.urandom(256 << 10))
    while wanted := connection.recv(1):
        if wanted == b"d":
            for _ in range(SIZE // len(room)):
                connection.sendall(room)
            continue
        left = SIZE
        while left:
            left -= connection.recv_into(room, min(left, len(room)))
        connection.sendall(b"x")


def bare(source: str) -> Callable[[str], None]:
    """The same code as a Python process with nothing around it."""
    here, there = socket.socketpair()
    if os.fork() == 0:
        here.close()
        names: Dict[str, Callable[[], None]] = {}
        exec(source, names)  # the guest's own code
        while name := there.recv(16):
            names[name.decode()]()
            there.sendall(b"x")
        os._exit(0)
    there.close()

    def once(name: str) -> None:
        here.sendall(name.encode())
        here.recv(1)
    return once


def proxied(runs: int) -> List[Row]:
    """What a guest exchanges with a server on the host through the proxy, against the same two processes over plain loopback.

    A relay has the work of loopback twice, so how near it comes depends on whether a processor is free for it.
    """
    port = server(2)
    source = CLIENT.replace("PORT", str(port)).replace("SIZE", str(SIZE))
    plain = bare(source)
    rows = []
    with psi.spawn(fresh_name(), {"cpu": os.cpu_count() or 1, "tcp": [f"127.0.0.1:{port}"]}) as sandbox:
        sandbox.exec(source)
        for name in ("download", "upload"):
            times = interleaved(runs, {"plain": partial(plain, name), "guest": partial(sandbox.call, name)})
            rows.append(Row("network", f"{name} of 256 MiB through the proxy", "ms", times["guest"], {"plain loopback": times["plain"]}, ratio_at_most=1.25))
    return rows
