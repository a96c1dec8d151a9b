"""The data path: short messages both ways, a flood of posts, 64 MiB each way."""

from __future__ import annotations

import os
import resource
import socket
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import place
import pyisolate as psi
from figures import Row, first, interleaved, progress, rest, timed
from place import fresh_name

_BATCH = 1000
_LARGE = (64 << 20) - 4096  # the limit of a message holds its header too


@contextmanager
def bare_echo() -> Iterator[Callable[[], None]]:
    """A round trip of 1 kB between two Python processes over a socketpair, with nothing around it."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        here.close()
        while True:
            data = there.recv(4096)
            if not data:
                os._exit(0)
            there.sendall(data)
    there.close()
    payload = b"x" * 1024

    def once() -> None:
        here.sendall(payload)
        got = 0
        while got < 1024:
            got += len(here.recv(4096))

    try:
        yield once
    finally:
        here.close()
        os.waitpid(pid, 0)


def round_trip(runs: int) -> List[Row]:
    """post and recv of a 1 kB string, against the bare echo, in alternating batches; the median of each batch."""
    value = "x" * 1024
    with bare_echo() as bare, psi.spawn(fresh_name()) as sandbox:
        sandbox.exec("while True: post(recv())")

        def echo() -> None:
            sandbox.post(value)
            sandbox.recv()

        times: Dict[str, List[float]] = {"psi": [], "bare socketpair echo": []}
        for number in range(runs):
            progress.step(number, runs)
            for action, column in zip((echo, bare), times.values()):
                column.append(statistics.median(timed(action) * 1e6 for _ in range(_BATCH)))
    return [Row("messages", "1 kB round trip, p50", "µs", times["psi"], rest(times), ratio_at_most=1.5)]


def posts(runs: int, count: int = 100_000) -> List[Row]:
    """How many 100-byte posts a second go from a guest to recv."""
    rates = []
    with psi.spawn(fresh_name()) as sandbox:
        sandbox.exec("def flood(n):\n  x = 'x' * 100\n  for _ in range(n): post(x)")
        for number in range(runs + 1):
            progress.step(number, runs)
            sandbox.exec(f"flood({count})")
            start = time.perf_counter()
            for _ in range(count):
                sandbox.recv()
            rates.append(count / (time.perf_counter() - start))
    return [Row("messages", "one-way posts of 100 B", "/s", rates[1:], at_least=300_000)]


def large(runs: int, work: Path, quick: bool) -> List[Row]:
    """64 MiB of bytes, and of a numpy array whose every page is then read, each way; against a copy into fresh memory."""
    root = place.numpy_root(work, not quick)
    if root is None:
        return large_bytes(runs)
    import numpy

    array = numpy.frombuffer(os.urandom(1 << 20) * (_LARGE >> 20) + bytes(_LARGE % (1 << 20)), "u8")

    def touch(found: Any) -> None:
        if len(found) != len(array) or int(found[::4096].max()) < 0:
            raise SystemExit("bench: another array arrived")

    with place.supervisor(work, 4, "--rootfs", str(root)), psi.spawn(fresh_name(), {"mem": "1GiB"}) as sandbox:
        sandbox.exec("import numpy\ndef keep(x): globals()['kept'] = x.copy()\ndef touch(x): return int(x[::4096].max())")
        sandbox.call("keep", array)

        def out() -> None:
            sandbox.exec("post(kept)")
            touch(sandbox.recv(timeout=60))

        rows = compared(runs, "numpy array", out, lambda: sandbox.call("touch", array), 1.2)
    return rows + large_bytes(runs)


def large_bytes(runs: int) -> List[Row]:
    data = os.urandom(1 << 20) * (_LARGE >> 20)
    with psi.spawn(fresh_name(), {"mem": "1GiB"}) as sandbox:
        sandbox.exec("def keep(x): globals()['kept'] = x")
        sandbox.call("keep", data)

        def out() -> None:
            sandbox.exec("post(kept)")
            if len(sandbox.recv(timeout=60)) != len(data):
                raise SystemExit("bench: other bytes arrived")

        return compared(runs, "bytes", out, lambda: sandbox.call("len", data), None)


def compared(runs: int, kind: str, out: Callable[[], object], into: Callable[[], object], at_most: Optional[float]) -> List[Row]:
    source = os.urandom(1 << 20) * (_LARGE >> 20)
    rows = []
    for name, action in (("guest to host", out), ("host to guest", into)):
        times = interleaved(runs, {name: action, "memcpy into fresh memory": lambda: bytearray(source)})
        rows.append(Row("messages", f"64 MiB {kind}, {name}", "ms", first(times), rest(times), ratio_at_most=at_most))
    return rows


def flooded_client() -> List[Row]:
    """Growth of the client's peak memory while a guest posts as fast as it can and nobody receives."""
    with psi.spawn(fresh_name(), policy={"message": "1MiB"}) as sandbox:
        sandbox.exec("post('ready')")
        sandbox.recv(timeout=10)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sandbox.exec("while True: post('x' * 500_000)")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            _ = sandbox.stdout  # reads what has come
            time.sleep(0.05)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [Row("messages", "client memory growth, flooded for 3 s", "MiB", [(after - before) / 1024], at_most=64.0)]
