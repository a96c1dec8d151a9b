"""The first example of API.md: one guest, one line of code, one result.

    sudo PYTHONPATH=python python3 examples/hello.py
"""

import time

import pyisolate as psi


def main() -> None:
    started = time.perf_counter()
    sb = psi.spawn("guest42", policy="defaults")
    spawned = time.perf_counter()
    sb.exec("from math import sqrt; post(sqrt(2))")
    result = sb.recv(timeout=0.1)
    received = time.perf_counter()

    print("hello from a container")
    print(f"  sqrt(2), computed by the guest    {result:.10f}")
    print(f"  supervisor and guest started in   {(spawned - started) * 1e3:.1f} ms")
    print(f"  code sent, result received in     {(received - spawned) * 1e3:.2f} ms")

    sb.exec("import os, sys; post((os.getpid(), os.getuid(), os.listdir('/'), sys.version.split()[0]))")
    pid, uid, root, version = sb.recv(timeout=5)
    print(f"  who it thinks it is               Python {version}, process {pid}, user {uid}")
    print(f"  what it sees of the file system   {' '.join(sorted(root))}")

    with_rule = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=2)"
    sb.exec(with_rule)
    try:
        sb.recv(timeout=5)
    except OSError as error:
        print(f"  what it reaches of the network    nothing: {error}")

    stats = sb.stats
    print(f"  what it used                      {stats.cpu_ms:.0f} ms of cpu, {stats.mem_bytes / 2**20:.1f} MiB of memory")
    print("  what holds it there")
    for each in sb.enforced:
        print(f"    {each['rule']:<14} {each['by']}")
    sb.close()


if __name__ == "__main__":
    main()
