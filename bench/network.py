"""Through the proxy: a guest's download from a server on the host, against plain loopback."""

from __future__ import annotations

import os
import socket
from typing import Callable, Dict, List

import place  # noqa: F401  # finds pyisolate
import pyisolate as psi
from figures import Row, interleaved
from place import fresh_name

DOWNLOAD = 256 << 20
DOWNLOADER = '''
import socket
connection = socket.create_connection(("127.0.0.1", PORT))
room = bytearray(256 << 10)
def download():
    connection.sendall(b"x")
    left = SIZE
    while left:
        left -= connection.recv_into(room, min(left, len(room)))
'''


def sender(clients: int) -> int:
    """Start processes that send each client DOWNLOAD bytes for every byte that it sends; the port at which they listen."""
    listener = socket.create_server(("127.0.0.1", 0))
    if os.fork() == 0:
        for _ in range(clients):
            connection = listener.accept()[0]
            if os.fork() == 0:
                block = os.urandom(256 << 10)
                while connection.recv(1):
                    for _ in range(DOWNLOAD // len(block)):
                        connection.sendall(block)
                os._exit(0)
            connection.close()
        os._exit(0)
    return int(listener.getsockname()[1])


def bare_download(source: str) -> Callable[[], None]:
    """The downloader as a Python process with nothing around it."""
    here, there = socket.socketpair()
    if os.fork() == 0:
        here.close()
        names: Dict[str, Callable[[], None]] = {}
        exec(source, names)  # the guest's own code
        while there.recv(1):
            names["download"]()
            there.sendall(b"x")
        os._exit(0)
    there.close()

    def once() -> None:
        here.sendall(b"x")
        here.recv(1)
    return once


def proxied(runs: int) -> List[Row]:
    """A guest's download from a server on the host through the proxy, against the same two processes over plain loopback.

    A relay has the work of loopback twice, so how near it comes depends on whether a processor is free for it.
    """
    port = sender(3)
    source = DOWNLOADER.replace("PORT", str(port)).replace("SIZE", str(DOWNLOAD))
    bare = bare_download(source)
    policy = {"cpu": os.cpu_count() or 1, "tcp": [f"127.0.0.1:{port}"]}
    with psi.spawn(fresh_name(), policy) as many, psi.spawn(fresh_name(), {**policy, "net_conns": 16}) as few:
        for sandbox in (many, few):
            sandbox.exec(source)
        times = interleaved(runs, {"plain": bare, "default": lambda: many.call("download"), "few": lambda: few.call("download")})
    peer = {"plain loopback": times["plain"]}
    return [
        Row("network", "download of 256 MiB through the proxy", "ms", times["default"], peer, ratio_at_most=1.25),
        Row("network", "download of 256 MiB through the proxy, net_conns: 16", "ms", times["few"], peer, ratio_at_most=1.25),
    ]
