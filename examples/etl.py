"""Three guests at work on the host's real files: one may read them, one may not, one takes too much.

    sudo PYTHONPATH=python python3 examples/etl.py
"""

import asyncio
import time

import pyisolate as psi
from pyisolate.policy import Policy

TEXTS = "/usr/share/common-licenses"

COUNT_WORDS = f"""
import os, re
from collections import Counter

words = Counter()
table = []
for name in sorted(os.listdir({TEXTS!r})):
    with open(os.path.join({TEXTS!r}, name), encoding="utf-8") as file:
        found = re.findall(r"[a-z]{{3,}}", file.read().lower())
    table.append((name, len(found), len(set(found))))
    words.update(found)
post({{"files": table, "common": words.most_common(8)}})
"""

READ_ONE = f"post(open('{TEXTS}/GPL-3').read())"

TAKE_TOO_MUCH = """
hoard = []
while True:
    hoard.append(bytearray(1 << 20))
"""


def extract() -> None:
    """A guest that may read the licences of this machine, and import what it needs for that."""
    policy = Policy(mem="128MiB").allow_fs(f"{TEXTS}/*").allow_import("os").allow_import("re").allow_import("collections")
    print(f"1. a guest that may read {policy.fs[0]}")
    with psi.spawn("etl-reader", policy) as sb:
        started = time.perf_counter()
        sb.exec(COUNT_WORDS)
        result = sb.recv(timeout=30)
        taken = (time.perf_counter() - started) * 1e3
        print(f"   {'file':<16} {'words':>8} {'different':>10}")
        for name, words, different in result["files"]:
            print(f"   {name:<16} {words:>8} {different:>10}")
        print("   most common: " + ", ".join(f"{word} {count}" for word, count in result["common"]))
        print(f"   {len(result['files'])} files in {taken:.0f} ms, {sb.stats.cpu_ms:.0f} ms of cpu")


def without_permission() -> None:
    """A guest whose policy names no files: for it there are none."""
    print("2. a guest without that permission")
    with psi.spawn("etl-outsider", Policy(mem="128MiB")) as sb:
        sb.exec(READ_ONE)
        try:
            sb.recv(timeout=30)
        except OSError as error:
            print(f"   {type(error).__name__}: {error}")
        else:
            raise SystemExit("the guest has read a file that its policy does not allow")


def too_much() -> None:
    """A guest that takes all the memory it can get; the host does not notice."""
    print("3. a guest that takes more memory than its 64 MiB")
    with psi.spawn("etl-hoarder", Policy(mem="64MiB")) as sb:
        sb.exec(TAKE_TOO_MUCH)
        try:
            sb.recv(timeout=60)
        except psi.MemoryExceeded as error:
            observed = f", seen {error.observed / 2**20:.0f} MiB" if error.observed else ""
            print(f"   MemoryExceeded: {error}{observed}")
        else:
            raise SystemExit("the guest has got more memory than its policy allows")
        ts, sandbox, event = asyncio.run(asyncio.wait_for(next_event("MEM_KILL"), 10))
        print(f"   event: {event} of {sandbox} at {time.strftime('%H:%M:%S', time.localtime(ts))}")


async def next_event(name: str) -> "tuple[float, psi.Sandbox, psi.Event]":
    """The next event with this name."""
    async for ts, sandbox, event in psi.events:
        if event == name:
            return ts, sandbox, event
    raise AssertionError("events do not end")


def main() -> None:
    extract()
    without_permission()
    too_much()
    print(f"host: alive; active sandboxes: {list(psi.list_active()) or 'none'}")


if __name__ == "__main__":
    main()
