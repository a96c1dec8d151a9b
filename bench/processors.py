"""Who used the processors meanwhile: the client, its supervisor, the kernel's threads, and what is left: guests and zygotes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Dict, Tuple

from figures import figure

_TICKS = os.sysconf("SC_CLK_TCK")


class Processors:
    """Counts while it is entered. What processes that end meanwhile have used is in the rest."""

    def __enter__(self) -> "Processors":
        self._before = _busy(), time.process_time(), _used()
        return self

    def __exit__(self, *exc_info: object) -> None:
        busy, client, before = self._before
        self.all, self.used = _busy() - busy, {"client": time.process_time() - client, "supervisor": 0.0, "kernel threads": 0.0}
        for process, seconds in _used().items():
            self.used[process[0]] += seconds - before.get(process, 0.0)

    def each(self, count: int) -> str:
        """What one of count cycles took, in milliseconds."""
        used = {**self.used, "guest and its share of the zygote": self.all - sum(self.used.values())}
        parts = ", ".join(f"{who} {figure(used[who] * 1e3 / count)}" for who in sorted(used, key=lambda who: -used[who]))
        return f"one takes {figure(self.all * 1e3 / count)} ms of the {os.cpu_count()} processors: {parts}"


def _busy() -> float:
    """Seconds in which a processor was not idle."""
    # user, nice, system, then after idle and iowait: irq, softirq
    ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(ticks[:3]) + sum(ticks[5:7])) / _TICKS


def _used() -> Dict[Tuple[str, str], float]:
    """Seconds that each kernel thread and supervisor has run, those of its threads that have ended too."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if fields[1] == "2" or b"supervise" in arguments:
            who = "kernel threads" if fields[1] == "2" else "supervisor"
            found[who, process.name] = (int(fields[11]) + int(fields[12])) / _TICKS
    return found
