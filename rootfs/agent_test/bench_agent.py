"""Measures the agent without a container: a 1 kB echo, and the time to READY.

    python3 rootfs/agent_test/bench_agent.py [PYTHON]

The bare figures are the same bytes between two Python processes, and the first
byte of an empty program, measured in turns with the agent's.
"""

from __future__ import annotations

import pathlib
import py_compile
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOTFS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOTFS))

from agent import frames  # noqa: E402
from agent.codec import decode, encode  # noqa: E402

PYTHON = sys.argv[1] if len(sys.argv) > 1 else "/usr/bin/python3.11"


def start(*command: str) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        return ours, subprocess.Popen([PYTHON, "-I", "-S", *command], stdin=fd, stdout=fd)


def compile_agent(directory: str) -> str:
    for source in (ROOTFS / "agent").glob("*.py"):
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(source), f"{directory}/{source.name}c", doraise=True, invalidation_mode=mode)
    return f"{directory}/agent.pyc"


def echo_bare(channel: socket.socket, size: int) -> float:
    data = b"x" * size
    begin = time.perf_counter()
    channel.sendall(data)
    got = 0
    while got < size:
        got += len(channel.recv(65536))
    return time.perf_counter() - begin


def echo_agent(channel: socket.socket, value: object) -> float:
    begin = time.perf_counter()
    payload = encode(value)
    assert isinstance(payload, bytes)
    channel.sendall(frames.HEADER.pack(len(payload), frames.POST, 0, 0, 0) + payload)
    data = channel.recv(65536)
    size = frames.HEADER_SIZE + frames.HEADER.unpack_from(data)[0]
    while len(data) < size:
        data += channel.recv(65536)
    found = decode(data[frames.HEADER_SIZE :])
    took = time.perf_counter() - begin
    assert found == value
    return took


BARE_ECHO = "import socket\ns = socket.socket(fileno=0)\nwhile 1:\n d = s.recv(65536)\n if not d: break\n s.sendall(d)"


def measure_echo(agent: str) -> None:
    values = {"str": "x" * 1000, "bytes": b"x" * 1000, "dict": {"id": 1, "list": [1, 2, 3], "text": "x" * 960}}
    bare, bare_process = start("-c", BARE_ECHO)
    channel, process = start(agent)
    channel.recv(65536)
    source = b"while True: post(recv())"
    channel.sendall(frames.HEADER.pack(len(source), frames.EXEC, 0, 0, 1) + source)
    times: dict[str, list[float]] = {name: [] for name in ("bare", *values)}
    for _ in range(40):
        times["bare"] += [echo_bare(bare, 1013) for _ in range(300)]
        for name, value in values.items():
            times[name] += [echo_agent(channel, value) for _ in range(300)]
    base = statistics.median(times["bare"])
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"1 kB echo, {name:5}  {middle * 1e6:6.1f} us  {middle / base:.2f} x")
    bare.close()
    channel.close()
    bare_process.wait()
    process.wait()


def time_to_first_byte(*command: str) -> float:
    begin = time.perf_counter()
    channel, process = start(*command)
    channel.recv(65536)
    took = time.perf_counter() - begin
    channel.close()
    process.wait()
    return took


def measure_start(agent: str) -> None:
    bare, ready = [], []
    for _ in range(40):
        bare.append(time_to_first_byte("-c", "import posix; posix.write(1, b'x')"))
        ready.append(time_to_first_byte(agent))
    print(f"python3 -I -S, first byte  {statistics.median(bare) * 1e3:5.1f} ms")
    print(f"agent to READY             {statistics.median(ready) * 1e3:5.1f} ms")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        agent = compile_agent(directory)
        measure_echo(agent)
        measure_start(agent)
