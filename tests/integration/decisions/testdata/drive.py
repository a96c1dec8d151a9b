"""Runs on the host: spawns a guest and asks it; argv is one JSON document, and so is the answer."""
import asyncio
import json
import os
import sys
import urllib.parse

import pyisolate as psi

job = json.loads(sys.argv[1])
base = job["base"].encode()


def real(name):
    if not name:
        return b""
    raw = urllib.parse.unquote_to_bytes(name)
    return raw if raw.startswith(b"/") else base + b"/" + raw


answers = []
with open(os.path.join(os.path.dirname(__file__), "ask.py"), encoding="utf-8") as file:
    source = file.read()
with psi.spawn("decisions", policy=job["policy"]) as sandbox:
    sandbox.exec(source, timeout=60)
    for case in job["cases"]:
        if case["do"] == "appears":
            with open(real(case["path"]), "w", encoding="utf-8") as made:
                made.write("x")
        second = case.get("to", "")
        if case["do"] in ("dirfd-read", "dirfd-create", "proc-cwd-read"):
            to = [urllib.parse.unquote_to_bytes(second)]
        else:
            to = [real(second)] if second else []
        paths = [real(case["path"])] + to
        sandbox.exec(f"post(ask({case['do']!r}, *{paths!r}))")
        answers.append(sandbox.recv(timeout=120))
    enforced = sandbox.enforced


async def refused():
    """What the kernel says that it refused, once the guest has ended."""
    paths, untold = [], 0
    while True:
        try:
            _, _, event = await asyncio.wait_for(psi.events.__anext__(), 1)
        except asyncio.TimeoutError:
            return paths, untold
        if event == "DENIED":
            untold += event.details["suppressed"]
            if "path" in event.details:
                raw = event.details.get("path_hex")
                path = bytes.fromhex(raw) if raw else event.details["path"].encode()
                paths.append(urllib.parse.quote(path.removeprefix(base + b"/")))


paths, untold = asyncio.run(refused())
print(json.dumps({"answers": answers, "enforced": enforced, "refused": paths, "untold": untold}))
