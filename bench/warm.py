"""Warm spawns: guests of a supervisor that runs, one after another, by many threads, and a thousand at once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, List, Set, Tuple

import place  # noqa: F401  # finds pyisolate
import pyisolate as psi
from cold import make_bundle
from figures import Row, command, figure, progress, timed
from place import ROOTFS, answer, fresh_name, supervisor
from processors import Processors

_PAUSE = 0.1  # seconds between two spawns: a supervisor tidies up, and makes ready


def spawns(runs: int, work: Path) -> List[Row]:
    """spawn to first recv, for policies that open nothing, files, an endpoint; beside what a fork and a bare zygote take."""
    opened = work / "opened"
    for name in ("a", "b"):
        (opened / name).mkdir(parents=True)
        (opened / name / "data.csv").write_text("1,2\n")
    server = socket.create_server(("127.0.0.1", 0))
    policies: Dict[str, Any] = {
        "defaults": None,
        "two fs rules": {"fs": [f"{opened}/a/*.csv", {"write": f"{opened}/b/**"}]},
        "one tcp rule": {"tcp": [f"127.0.0.1:{server.getsockname()[1]}"]},
    }
    steps: Dict[str, List[Tuple[float, float, float]]] = {name: [] for name in policies}  # spawn, answer; the client's own
    floors: Dict[str, List[float]] = {}
    with Floors() as floor:
        for number in range(runs + 1):
            progress.step(number, runs)
            for name, policy in policies.items():
                time.sleep(_PAUSE)
                own, start = time.thread_time(), time.perf_counter()
                sandbox = psi.spawn(fresh_name(), policy)
                spawned = time.perf_counter()
                answer(sandbox)
                end = time.perf_counter()
                if number:
                    steps[name].append(((spawned - start) * 1e3, (end - spawned) * 1e3, (time.thread_time() - own) * 1e3))
                sandbox.close()
            for name, value in floor.take().items():
                floors.setdefault(name, []).append(value)
    server.close()
    return [
        Row(
            "warm", f"spawn to first recv, {name}", "ms", [spawn + answer for spawn, answer, _ in found], floors,
            note=_steps(found), at_most=1.0, p99_at_most=5.0,
        ) for name, found in steps.items()
    ]  # fmt: skip


def _steps(found: List[Tuple[float, float, float]]) -> str:
    spawn, answer, own = (figure(median(step)) for step in zip(*found))
    return f"spawn returns after {spawn} ms, the first exec and recv take {answer}; {own} of both are the client's own code and calls (by steps: ARCHITECTURE.md, A spawn)"


def from_nothing(runs: int, work: Path) -> List[Row]:
    """A guest that nobody made ahead, forked by a zygote, beside the bare prototype of one."""
    times: List[float] = []
    floors: Dict[str, List[float]] = {}

    def one() -> None:
        start = time.perf_counter()
        with psi.spawn(fresh_name()) as sandbox:
            answer(sandbox)
            times.append((time.perf_counter() - start) * 1e3)

    with Floors() as floor, supervisor(work, 8, "--pool", "0"):
        one()
        times.clear()
        for number in range(runs):
            progress.step(number, runs)
            time.sleep(_PAUSE)
            one()
            for name, value in floor.take().items():
                floors.setdefault(name, []).append(value)
        taken = list(times)
        with Processors() as processors:
            for _ in range(runs):
                one()
    peers = dict(sorted(floors.items()))  # the zygote first
    note = f"with its end, {processors.each(runs)}"
    return [Row("warm", "spawn to first recv from nothing, by a zygote", "ms", taken, peers, note=note, at_most=4.0, ratio_at_most=2.0)]


class Floors:
    """bench/prototype.py: what os.fork of a warm Python, and clone3 with all namespaces, take."""

    def __enter__(self) -> "Floors":
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("prototype.py")), str(ROOTFS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def take(self) -> Dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: Dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()


def sustained(seconds: float, work: Path, threads: Tuple[int, ...] = (1, 8, 64)) -> List[Row]:
    """spawn, exec, recv and close, again and again, by so many threads; beside a loop of `runc run`, and as many loops."""
    bundle = work / "sustained"
    make_bundle(bundle)
    runc = shutil.which("runc") or "/usr/sbin/runc"

    def by_psi() -> None:
        with psi.spawn(fresh_name()) as sandbox:
            answer(sandbox)

    def by_runc() -> None:
        name = fresh_name()
        command(runc, "--root", f"{work}/runc-sustained", "run", "--bundle", str(bundle), name)()

    rows: List[Row] = []
    loop: List[float] = []
    for count in threads:
        mine, theirs = [], []
        times: List[float] = []
        note = ""
        for _ in range(2):  # in turn
            with Processors() as processors:
                rate, each = repeat(by_psi, count, seconds / 2)
            note = processors.each(len(each))
            mine.append(rate)
            times += each
            if count <= 8:
                theirs.append(repeat(by_runc, count, seconds / 2)[0])
        loop = loop or theirs  # the first is by one thread
        peers = {"a loop of runc run": loop}
        if theirs is not loop and theirs:
            peers[f"{count} loops"] = theirs
        bounds: Dict[str, Any] = {"at_least": 200, "ratio_at_least": 8} if count == 8 else {}
        rows.append(Row("sustained", f"spawn, exec, recv, close by {count} threads", "/s", mine, peers, note=note, **bounds))
        rows.append(Row("sustained", f"… one of them by {count} threads", "ms", times))
    return rows


def repeat(action: Callable[[], None], threads: int, seconds: float) -> Tuple[float, List[float]]:
    """How many a second, and how long each took in milliseconds."""
    action()
    times: List[float] = []
    errors: List[BaseException] = []
    start = time.perf_counter()

    def run() -> None:
        try:
            while time.perf_counter() - start < seconds:
                times.append(timed(action) * 1e3)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return len(times) / (time.perf_counter() - start), times


def alive(count: int, work: Path) -> List[Row]:
    """Many guests at once: whether all answer, what an idle one takes, how long one more takes, and a reload of all."""
    path = work / "alive.yml"
    texts = ["cpu: 1\ntcp: ['127.0.0.1:9200']\n", "cpu: 2\ntcp: ['127.0.0.1:9201', '10.0.0.0/8:443']\n"]
    path.write_text(texts[0])
    rows: List[Row] = []
    reloads: Dict[int, List[float]] = {}
    sandboxes: List[psi.Sandbox] = []
    with supervisor(work, count + 64):
        for stage in sorted({1, min(100, count), count}):
            sandboxes += spawn_many(stage - len(sandboxes), path)
            reloads[stage] = []
            for number in range(5 if stage == count else 20):
                path.write_text(texts[(number + 1) % 2])
                reloads[stage].append(timed(lambda: psi.policy.refresh(path)) * 1e3)
        answered = sum(each.call("abs", -1) for each in sandboxes)
        more = [timed(lambda: answer_one(sandboxes)) * 1e3 for _ in range(20)]
        memory = [memory_of(each.id) / (1 << 20) for each in sandboxes[:50]]
    rows.append(Row("alive", f"of {count} guests at once, answering", "guests", [float(answered)], at_least=float(count)))
    rows.append(Row("alive", "memory of an idle guest (PSS and its cgroup's kernel memory)", "MiB", memory, at_most=2.0))
    rows.append(Row("alive", f"spawn to first recv, with {count} alive", "ms", more))
    for stage, found in reloads.items():
        rows.append(Row("reload", f"policy reload, {stage} guests", "ms", found))
    return rows


def answer_one(sandboxes: List[psi.Sandbox]) -> None:
    sandbox = psi.spawn(fresh_name())
    sandboxes.append(sandbox)
    answer(sandbox)


def spawn_many(count: int, policy: Path) -> List[psi.Sandbox]:
    made: List[psi.Sandbox] = []
    todo = list(range(count))

    def run() -> None:
        while todo:
            todo.pop()
            sandbox = psi.spawn(fresh_name(), policy)
            answer(sandbox)
            made.append(sandbox)
            progress.step(len(made), count)

    workers = [threading.Thread(target=run) for _ in range(min(8, count))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if len(made) < count:
        raise SystemExit(f"bench: only {len(made)} of {count} guests came to life")
    return made


def memory_of(id: str) -> float:
    """Bytes that a guest takes: the proportional share of its processes, and what the kernel holds for its cgroup."""
    total = 0.0
    pids: Set[int] = set()
    for where, _, _ in os.walk("/sys/fs/cgroup"):
        if not os.path.basename(where).startswith(id):
            continue
        pids.update(map(int, read(f"{where}/cgroup.procs").split()))
        kernel = read(f"{where}/memory.kmem.usage_in_bytes")  # v1
        stat = dict(line.split() for line in read(f"{where}/memory.stat").splitlines())  # v2
        total += float(kernel or stat.get("kernel", "0"))
    for pid in pids:
        for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                total += float(line.split()[1]) * 1024
    return total


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
