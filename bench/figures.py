"""What a figure is, and how one is taken.

Machines differ and drift, so nothing here is an absolute promise: what is compared is taken in turn (A B A B ...) and
the ratio of the medians is what counts.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple


class Row:
    """One figure: values in a unit, and what they are compared with.

    ``at_most`` and ``at_least`` bound the median, ``p99_at_most`` the 99th percentile, the others the ratio to the first peer.
    """

    def __init__(
        self,
        group: str,
        name: str,
        unit: str,
        values: Sequence[float],
        peers: Optional[Mapping[str, Sequence[float]]] = None,
        *,
        at_most: Optional[float] = None,
        at_least: Optional[float] = None,
        p99_at_most: Optional[float] = None,
        ratio_at_most: Optional[float] = None,
        ratio_at_least: Optional[float] = None,
        note: str = "",
    ) -> None:
        self.group, self.name, self.unit, self.values = group, name, unit, sorted(values)
        self.peers = {peer: sorted(found) for peer, found in (peers or {}).items() if found}
        self.at_most, self.at_least, self.p99_at_most = at_most, at_least, p99_at_most
        self.ratio_at_most, self.ratio_at_least = ratio_at_most, ratio_at_least
        self.note = note

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        return percentile(self.values, 99)

    @property
    def ratios(self) -> Dict[str, float]:
        return {peer: self.median / statistics.median(found) for peer, found in self.peers.items()}

    @property
    def target(self) -> str:
        return ", ".join(text for text, _ in self._bounds())

    @property
    def met(self) -> Optional[bool]:
        bounds = self._bounds()
        return all(held for _, held in bounds) if bounds else None

    def _bounds(self) -> List[Tuple[str, bool]]:
        ratio = next(iter(self.ratios.values()), 0.0)
        found = (
            ("≤ {} " + self.unit, self.at_most, self.median, 1), ("≥ {} " + self.unit, self.at_least, self.median, -1),
            ("p99 ≤ {} " + self.unit, self.p99_at_most, self.p99, 1),
            ("≤ {} ×", self.ratio_at_most, ratio, 1), ("≥ {} ×", self.ratio_at_least, ratio, -1),
        )  # fmt: skip
        return [(text.format(figure(bound)), sign * value <= sign * bound) for text, bound, value, sign in found if bound is not None]

    def as_dict(self) -> Dict[str, object]:
        return {
            "group": self.group, "name": self.name, "unit": self.unit, "median": self.median, "p99": self.p99, "runs": len(self.values),
            "peers": {peer: {"median": statistics.median(found), "p99": percentile(found, 99)} for peer, found in self.peers.items()},
            "ratios": self.ratios, "target": self.target, "met": self.met, "note": self.note,
        }  # fmt: skip


def percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def figure(value: float) -> str:
    """A number as a person reads it."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def timed(action: Callable[[], object]) -> float:
    """Seconds that the action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def interleaved(runs: int, actions: Mapping[str, Callable[[], object]], scale: float = 1e3, warm: bool = True) -> Dict[str, List[float]]:
    """Time the actions in turn, each as often first as any other, after one warm-up of each; milliseconds by default."""
    for action in actions.values():
        if warm:
            action()
    times: Dict[str, List[float]] = {name: [] for name in actions}
    for number in range(runs):
        progress.step(number, runs)
        names = list(actions)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(timed(actions[name]) * scale)
    return times


def rest(times: Mapping[str, List[float]]) -> Dict[str, List[float]]:
    """All but the first of what was taken in turn: its peers."""
    return dict(list(times.items())[1:])


def first(times: Mapping[str, List[float]]) -> List[float]:
    return next(iter(times.values()))


def command(*args: str) -> Callable[[], object]:
    """A program to be run to its end, as an action."""

    def run() -> None:
        done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"bench: {' '.join(args)} ended with {done.returncode}: {done.stderr[-2000:]}")

    return run


class _Progress:
    """One line on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self.part = ""
        self._shown = 0.0

    def begin(self, part: str) -> None:
        self.part = part
        self._write(part)

    def step(self, number: int, of: int) -> None:
        if time.monotonic() - self._shown > 0.2:
            self._write(f"{self.part} {number}/{of}")

    def end(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        self._shown = time.monotonic()
        if sys.stderr.isatty():
            print(f"\r\033[K{'bench: ' + text if text else ''}", end="", file=sys.stderr, flush=True)


progress = _Progress()
