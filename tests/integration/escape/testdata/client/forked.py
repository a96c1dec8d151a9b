"""Runs scripts of attempts in guests that a zygote has forked, and one that is for them alone.

The scripts are those that other guests are given; what they print is passed on. Forked guests are told by who made
their user namespace: not root.
"""

import fcntl
import struct
import sys
import time
from pathlib import Path

import pyisolate as psi
from channel import processes

TESTDATA = Path(__file__).resolve().parent.parent
NS_GET_OWNER_UID = 0xB704


def is_forked(sandbox):
    with open(f"/proc/{processes(sandbox.id)[0]}/ns/user", "rb") as namespace:
        return struct.unpack("=I", fcntl.ioctl(namespace, NS_GET_OWNER_UID, bytes(4)))[0] != 0


def forked():
    for _ in range(100):
        sandbox = psi.spawn("forked", policy={"pids": 200})
        if is_forked(sandbox):
            return sandbox
        sandbox.close()
        time.sleep(0.1)
    sys.exit("no guest was forked by a zygote")


def main():
    count = 0
    for script in sys.argv[1:]:
        source = (TESTDATA / "lib.py").read_text() + "\nclear()\n" + (TESTDATA / "attempts" / f"{script}.py").read_text()
        printed = []
        with forked() as sandbox:
            sandbox.exec(source, timeout=300, on_stdout=printed.append)
        text = "".join(each if isinstance(each, str) else each.decode() for each in printed)
        lines = text.splitlines()
        if not lines or not lines[-1].startswith("done: "):
            sys.exit(f"{script} did not come to its end:\n{text}")
        for line in lines[:-1]:
            kind, _, rest = line.partition(": ")
            print(f"{kind}: {script}: {rest}", flush=True)
        count += len(lines) - 1
    print(f"done: {count} attempts")


main()
