"""Who used the processors meanwhile: the client, its supervisor, the kernel's threads, and what is left: guests and zygotes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Dict

from figures import figure


class Processors:
    """Counts while it is entered. Figures of processes that end meanwhile are in none but the rest."""

    def __enter__(self) -> "Processors":
        self._before = _used()
        return self

    def __exit__(self, *exc_info: object) -> None:
        after = _used()
        self.used = {who: after[who] - self._before[who] for who in after}

    def each(self, count: int) -> str:
        """What one of count cycles took, in milliseconds."""
        used = {who: seconds * 1e3 / max(count, 1) for who, seconds in self.used.items()}
        everything = used.pop("all")
        used["guest and its share of the zygote"] = everything - sum(used.values())
        parts = ", ".join(f"{who} {figure(used[who])}" for who in sorted(used, key=lambda who: -used[who]))
        return f"one takes {figure(everything)} ms of the {os.cpu_count()} processors: {parts}"


def _used() -> Dict[str, float]:
    """Seconds of processor time so far."""
    # user, nice, system, then after idle and iowait: irq, softirq
    ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    found = {"all": (sum(ticks[:3]) + sum(ticks[5:7])) / os.sysconf("SC_CLK_TCK"), "client": time.process_time()}
    found["supervisor"] = found["kernel threads"] = 0.0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if parent == "2":
                found["kernel threads"] += _ran(process / "schedstat")
            elif b"supervise" in (process / "cmdline").read_bytes().split(b"\0"):
                found["supervisor"] += sum(_ran(thread / "schedstat") for thread in (process / "task").iterdir())
        except OSError:
            pass  # it has ended
    return found


def _ran(path: Path) -> float:
    return int(path.read_text().split()[0]) / 1e9
