#!/usr/bin/env python3
"""Measure psi against its peers on this machine, in one run, and report ratios.

Machines differ and drift, so nothing here is an absolute promise: every figure of psi's is taken in
turn with the figure it is compared with (A B A B ...), and the ratio of the medians is what counts.

    make bench          writes build/bench/report.md and report.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))

import engines  # noqa: E402  # bench/engines.py
import kernel  # noqa: E402  # bench/kernel.py
import pyisolate as psi  # noqa: E402

RUNTIME = ROOT / "bin" / "psi-runtime"
ROOTFS = ROOT / "build" / "rootfs"


class Row:
    """One figure: what was measured, in which unit, against what, and the target of the ratio or value."""

    def __init__(self, name: str, unit: str, values: List[float], peer: str = "", peer_values: Optional[List[float]] = None,
                 target: str = "", bound: Optional[float] = None) -> None:
        self.name, self.unit, self.values = name, unit, sorted(values)
        self.peer, self.peer_values = peer, sorted(peer_values or [])
        self.target, self.bound = target, bound

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def ratio(self) -> Optional[float]:
        return self.median / statistics.median(self.peer_values) if self.peer_values else None

    @property
    def met(self) -> Optional[bool]:
        if self.bound is None:
            return None
        return (self.ratio if self.ratio is not None else self.median) <= self.bound

    def as_dict(self) -> Dict[str, object]:
        return {
            "name": self.name, "unit": self.unit, "median": self.median, "p99": percentile(self.values, 99), "runs": len(self.values),
            "peer": self.peer, "peer_median": statistics.median(self.peer_values) if self.peer_values else None,
            "ratio": self.ratio, "target": self.target, "met": self.met,
        }


def percentile(ordered: List[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[Kbench: {text}", end="", file=sys.stderr, flush=True)


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def interleaved(runs: int, *actions: Callable[[], object]) -> List[List[float]]:
    """Time the actions in turn, after one warm-up of each. Seconds."""
    for action in actions:
        action()
    times: List[List[float]] = [[] for _ in actions]
    for _ in range(runs):
        for action, column in zip(actions, times):
            column.append(timed(action))
    return times


def command(*args: str) -> Callable[[], object]:
    def run() -> None:
        subprocess.run(args, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return run


def cold_run(runs: int, work: Path) -> List[Row]:
    """`psi-runtime run` against `runc run` of the same bundle, a script that prints 1."""
    script = work / "one.py"
    script.write_text("print(1)\n")
    bundle = work / "bundle"
    subprocess.run([str(RUNTIME), "bundle", "--policy", "defaults", "--rootfs", str(ROOTFS), "--entry", str(script), "-o", str(bundle)],
                   check=True, stdout=subprocess.DEVNULL)
    runc = shutil.which("runc") or "/usr/sbin/runc"
    mine, theirs, floor = interleaved(
        runs,
        command(str(RUNTIME), "run", "--bundle", str(bundle), "bench-psi"),
        command(runc, "run", "--bundle", str(bundle), "bench-runc"),
        command(sys.executable, "-I", "-S", "-c", "print(1)"),
    )
    ms = [[value * 1e3 for value in column] for column in (mine, theirs, floor)]
    return [
        Row("cold: psi-runtime run, print(1)", "ms", ms[0], "runc run, same bundle", ms[1], "≤ 1.0 ×", 1.0),
        Row("floor: python3 -I -S -c 'print(1)', no container", "ms", ms[2]),
    ]


def engine_runs(runs: int, work: Path) -> List[Row]:
    """Each engine's `run --rm` of a script that prints 1, with psi-runtime and with runc in turn."""
    rows: List[Row] = []
    with engines.commands(work, RUNTIME, ROOTFS) as commands:
        for name, with_psi, with_runc in commands:
            mine, theirs = interleaved(runs, command(*with_psi), command(*with_runc))
            rows.append(Row(f"{name}, psi-runtime", "ms", [v * 1e3 for v in mine], "runc", [v * 1e3 for v in theirs], "≤ 1.0 ×", 1.0))
    return rows


def cold_spawn(runs: int) -> List[Row]:
    """psi.spawn to the first value received, through a supervisor that already runs and has cleaned up after the last."""
    times: List[float] = []
    for number in range(runs + 1):
        time.sleep(0.15)
        start = time.perf_counter()
        with psi.spawn(f"bench-{number}") as sandbox:
            sandbox.exec("post(1)")
            if sandbox.recv(timeout=10) != 1:
                raise SystemExit("bench: a guest answered something else than 1")
            times.append((time.perf_counter() - start) * 1e3)
    return [Row("cold spawn to first recv, supervisor running", "ms", times[1:], target="≤ 35 ms", bound=35.0)]


def bare_echo() -> Callable[[], None]:
    """One round trip of 1 kB between two Python processes over a socketpair, with nothing around it."""
    here, there = socket.socketpair()
    if os.fork() == 0:
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
    return once


def round_trip(runs: int) -> List[Row]:
    """post and recv of a 1 kB string, against the bare echo, in alternating batches."""
    batch = 1000
    bare = bare_echo()
    with psi.spawn("bench-echo") as sandbox:
        sandbox.exec("while True: post(recv())")
        value = "x" * 1024

        def echo() -> None:
            sandbox.post(value)
            sandbox.recv()

        def repeated(action: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                for _ in range(batch):
                    action()
            return run

        mine, theirs = interleaved(runs, repeated(echo), repeated(bare))
    to_us = 1e6 / batch
    return [Row("1 kB post/recv round trip", "µs", [v * to_us for v in mine], "bare socketpair echo of 1 kB",
                [v * to_us for v in theirs], "≤ 2 ×", 2.0)]


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
    with psi.spawn("bench-net", policy) as many, psi.spawn("bench-net-few", {**policy, "net_conns": 16}) as few:
        for sandbox in (many, few):
            sandbox.exec(source)
        plain, default, limited = interleaved(runs, bare, lambda: many.call("download"), lambda: few.call("download"))
    ms = [[value * 1e3 for value in column] for column in (plain, default, limited)]
    peer = "the same over plain loopback"
    return [Row("download of 256 MiB through the proxy", "ms", ms[1], peer, ms[0], "≤ 1.25 ×", 1.25),
            Row("download of 256 MiB through the proxy, net_conns: 16", "ms", ms[2], peer, ms[0], "≤ 1.25 ×", 1.25)]


def reload(runs: int, work: Path) -> List[Row]:
    """Another policy for several running guests by one request: other endpoints and another cpu limit."""
    guests, path = 8, work / "reload.yml"
    path.write_text("cpu: 1\n")
    sandboxes = [psi.spawn(f"bench-reload-{i}", policy=path) for i in range(guests)]
    texts = itertools.cycle(["cpu: 1\ntcp: ['127.0.0.1:9200']\n", "cpu: 2\ntcp: ['127.0.0.1:9201', '10.0.0.0/8:443']\n"])
    times: List[float] = []
    for _ in range(runs + 1):
        path.write_text(next(texts))
        times.append(timed(lambda: psi.policy.refresh(path)) * 1e3 / guests)
    for sandbox in sandboxes:
        sandbox.close()
    return [Row(f"reload of a policy, per guest ({guests} at once)", "ms", times[1:], target="≤ 1 ms", bound=1.0)]


def flooded_client() -> List[Row]:
    """Growth of the client's peak memory while a guest posts as fast as it can and nobody receives."""
    with psi.spawn("bench-flood", policy={"message": "1MiB"}) as sandbox:
        sandbox.exec("post('ready')")
        sandbox.recv(timeout=10)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sandbox.exec("while True: post('x' * 500_000)")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            _ = sandbox.stats
            time.sleep(0.05)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [Row("client memory growth under a flood of posts, 3 s, nobody receives", "MiB", [(after - before) / 1024], target="bounded: ≤ 64 MiB", bound=64.0)]


def kernel_rows(runs: int) -> List[Row]:
    """What the kernel decides: reloads, tables and matches here, instructions on the second kernel."""
    rows = [Row(name, unit, values, target=target, bound=bound or None)
            for (name, unit, _, target, bound), values in kernel.benchmarks(min(runs, 5))]
    for (name, held, free), bound in zip(kernel.instructions(), (1.2, 1.5)):
        rows.append(Row(name + ", with a policy", "instructions", [held], "without", [free], f"≤ {bound} ×", bound))
    return rows


def markdown(rows: List[Row]) -> str:
    lines = [
        "# psi benchmarks", "",
        f"Taken {time.strftime('%Y-%m-%d')} on Linux {os.uname().release}, {os.cpu_count()} cores, Python {sys.version.split()[0]}, by `make bench`.",
        "Medians of interleaved runs; the ratio is what to look at.", "",
        "| figure | median | p99 | against | ratio | target | met |", "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        against = f"{row.peer}: {statistics.median(row.peer_values):.1f} {row.unit}" if row.peer_values else ""
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        lines.append(f"| {row.name} | {row.median:.1f} {row.unit} | {percentile(row.values, 99):.1f} | {against} | {ratio} | {row.target} | {met} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", help="directory of the report")
    parser.add_argument("--runs", type=int, default=30, help="counted runs of each figure")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of Markdown")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: List[Row] = []
    with tempfile.TemporaryDirectory(prefix="psi-bench-") as work:
        os.chmod(work, 0o755)  # runc, unlike psi, reads the root as the guest's own user
        parts: List[Tuple[str, Callable[[], List[Row]]]] = [
            ("cold start", lambda: cold_run(options.runs, Path(work))),
            ("engines", lambda: engine_runs(options.runs, Path(work))),
            ("cold spawn", lambda: cold_spawn(options.runs)),
            ("round trip", lambda: round_trip(options.runs)),
            ("proxy", lambda: proxied(options.runs)),
            ("reload", lambda: reload(options.runs, Path(work))),
            ("flooded client", flooded_client),
            ("kernel", lambda: kernel_rows(options.runs)),
        ]
        for name, part in parts:
            progress(name)
            rows.extend(part())
    progress("")
    report = {"rows": [row.as_dict() for row in rows], "kernel": os.uname().release, "cpus": os.cpu_count()}
    (options.output / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    (options.output / "report.md").write_text(markdown(rows))
    print(json.dumps(report, ensure_ascii=False) if options.json else markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
