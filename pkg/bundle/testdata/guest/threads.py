"""Threads, processes and everything that waits: all of it in the default limits."""
import asyncio
import concurrent.futures
import multiprocessing
import os
import queue
import signal
import socket
import threading

total = 0
lock = threading.Lock()


def add(n: int) -> None:
    global total
    with lock:
        total += n


threads = [threading.Thread(target=add, args=(i,)) for i in range(40)]
for t in threads:
    t.start()
for t in threads:
    t.join()
assert total == sum(range(40))

with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(lambda x: x * x, range(100))) == sum(x * x for x in range(100))


def child(q: "multiprocessing.Queue[int]", n: int) -> None:
    q.put(n * n)


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    results: "multiprocessing.Queue[int]" = context.Queue()
    children = [context.Process(target=child, args=(results, i)) for i in range(4)]
    for c in children:
        c.start()
    assert sorted(results.get(timeout=20) for _ in children) == [0, 1, 4, 9]
    for c in children:
        c.join()
        assert c.exitcode == 0

    seen = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: seen.set())
    os.kill(os.getpid(), signal.SIGUSR1)
    assert seen.wait(5)

    async def echo() -> bytes:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)
        far_reader, far_writer = await asyncio.open_connection(sock=there)
        writer.write(b"echo")
        far_writer.write(await far_reader.read(100))
        data = await reader.read(100)
        writer.close()
        far_writer.close()
        return data

    assert asyncio.run(echo()) == b"echo"

    q: "queue.Queue[int]" = queue.Queue()
    q.put(1)
    assert q.get(timeout=1) == 1
    print("threads fine")
