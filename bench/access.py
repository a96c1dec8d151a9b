"""What a policy costs where it allows: a connect and an open in a guest, against the same in a plain Python."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path
from typing import List

import place
import pyisolate as psi
from figures import Row, first, rest
from place import fresh_name

_EACH = 200  # operations in one run

_CODE = f"""
import os, socket, time
def connects(port):
    start = time.perf_counter()
    for _ in range({_EACH}):
        with socket.create_connection(("127.0.0.1", port)) as s: s.recv(1)
    return time.perf_counter() - start
def opens(path):
    start = time.perf_counter()
    for _ in range({_EACH}): os.close(os.open(path, os.O_RDONLY))
    return time.perf_counter() - start
"""

_PLAIN = _CODE + """
import sys
for line in sys.stdin:
    name, argument = line.split()
    print(globals()[name](int(argument) if argument.isdigit() else argument), flush=True)
"""


def costs(runs: int, work: Path) -> List[Row]:
    opened = work / "allowed"
    opened.mkdir()
    path = opened / "data.csv"
    path.write_text("1,2\n")
    server = socket.create_server(("127.0.0.1", 0), backlog=512)
    threading.Thread(target=accept, args=(server,), daemon=True).start()
    port = server.getsockname()[1]
    plain = subprocess.Popen([place.PYTHON, "-I", "-S", "-c", _PLAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def outside(name: str, argument: object) -> float:
        assert plain.stdin is not None and plain.stdout is not None
        plain.stdin.write(f"{name} {argument}\n")
        plain.stdin.flush()
        return float(plain.stdout.readline())

    rows = []
    with psi.spawn(fresh_name(), {"fs": [f"{opened}/*.csv"], "tcp": [f"127.0.0.1:{port}"], "cpu": 2}) as guest:
        guest.exec(_CODE)
        for label, name, argument in (("connect", "connects", port), ("open", "opens", str(path))):
            times: dict[str, List[float]] = {"allowed by a policy": [], "no policy, no guest": []}
            for _ in range(runs):
                times["allowed by a policy"].append(guest.call(name, argument) / _EACH * 1e6)
                times["no policy, no guest"].append(outside(name, argument) / _EACH * 1e6)
            rows.append(Row("access", f"an allowed {label}" + (" and the first byte" if label == "connect" else ""), "µs", first(times), rest(times)))
    plain.communicate()
    server.close()
    return rows


def accept(server: socket.socket) -> None:
    while True:
        try:
            with server.accept()[0] as conn:
                conn.send(b"x")
        except OSError:
            return
