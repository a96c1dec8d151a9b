"""Runs on the host: has a guest answer questions; argv is one JSON document, and so is the answer."""
import asyncio
import json
import os
import sys
import urllib.parse

import pyisolate as psi

job = json.loads(sys.argv[1])
base = job["base"].encode()
ADDRESSED = ("tcp", "fast-open", "udp", "bind", "bind-listen", "listen")  # the path of such a row is an address


def real(name):
    if not name:
        return b""
    raw = urllib.parse.unquote_to_bytes(name)
    return raw if raw.startswith(b"/") else base + b"/" + raw


def names(case):
    """What the guest is told of a row, and the files that it is about, as both have them."""
    if case["do"] in ADDRESSED:
        return [case["path"].encode()], []
    path, second = real(case["path"]), case.get("to", "")
    if case["do"] in ("dirfd-read", "dirfd-create", "proc-cwd-read"):
        to = urllib.parse.unquote_to_bytes(second)
        return [path, to], [path + b"/" + to]
    paths = [path, real(second)] if second else [path]
    return paths, [path for path in paths if path]


seen = []
with open(os.path.join(os.path.dirname(__file__), "ask.py"), encoding="utf-8") as file:
    source = file.read()
with psi.spawn("decisions", policy=job["policy"]) as sandbox:
    sandbox.exec(source, timeout=60)
    for number, case in enumerate(job["cases"]):
        if case["do"] == "appears":
            with open(real(case["path"]), "w", encoding="utf-8") as made:
                made.write("x")
        told, lying = names(case)
        there = [os.path.exists(path) for path in lying]
        sandbox.exec(f"post(ask({number}, {case['do']!r}, {told!r}, {lying!r}))")
        seen.append({**sandbox.recv(timeout=120), "there": there})
    enforced = sandbox.enforced


async def refused():
    """What the kernel says that it refused, once the guest has ended."""
    told, untold = [], 0
    while True:
        try:
            _, _, event = await asyncio.wait_for(psi.events.__anext__(), 1)
        except asyncio.TimeoutError:
            return told, untold
        if event == "DENIED":
            untold += event.details["suppressed"]
            told.append(dict(event.details))


told, untold = asyncio.run(refused())
print(json.dumps({"seen": seen, "enforced": enforced, "told": told, "untold": untold}))
