"""Figures of what the kernel decides: tables, matches, reloads, and instructions of an open."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Dict, List, Tuple

from figures import Row

ROOT = Path(__file__).resolve().parent.parent
TAGS = "seccomp,netgo,osusergo,urfave_cli_no_docs"

# benchmark → the name of the figure, its unit, how many of the benchmark's make one, and the bound
Figure = Tuple[str, str, float, str, float]
BENCHMARKS: Dict[str, Tuple[str, Dict[str, Figure]]] = {
    "./internal/attend": ("BenchmarkReload", {
        "BenchmarkReload ns/op": ("another policy for 1,000 guests: programs and proxy", "ms", 1e6, "≤ 200 ms", 200.0),
    }),
    "./internal/enforce": ("BenchmarkMatch|BenchmarkTableOfThousandRules", {
        "BenchmarkTableOfThousandRules ns/op": ("1,000 file rules to a kernel table", "ms", 1e6, "≤ 100 ms", 100.0),
        "BenchmarkMatch/30_bytes ns/match": ("match of a path of 30 bytes against 1,000 rules", "ns", 1, "", 0.0),
        "BenchmarkMatch/200_bytes ns/match": ("match of a path of 200 bytes against 1,000 rules", "ns", 1, "", 0.0),
    }),
}


def benchmarks(runs: int) -> List[Tuple[Figure, List[float]]]:
    """The Go benchmarks' figures, as far as this kernel can give them."""
    out: List[Tuple[Figure, List[float]]] = []
    for package, (pattern, figures) in BENCHMARKS.items():
        text = subprocess.run(
            ["go", "test", "-tags", TAGS, "-run", "^$", "-bench", pattern, "-benchtime", "5x", "-count", str(runs), package],
            cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        values: Dict[str, List[float]] = {}
        for line in text.splitlines():
            fields = line.split()
            if not fields or not fields[0].startswith("Benchmark"):
                continue
            name = re.sub(r"-\d+$", "", fields[0])
            for value, unit in zip(fields[2::2], fields[3::2]):
                values.setdefault(f"{name} {unit}", []).append(float(value))
        for key, figure in figures.items():
            out.append((figure, [value / figure[2] for value in values[key]]))
    return out


def instructions() -> List[Tuple[str, float, float]]:
    """Instructions of open and close on the second kernel: the path, with a policy and without."""
    text = subprocess.run(
        ["go", "run", "-tags", TAGS, "./tests/vm", "-count", "-work", "build/vm-count", "-run", "TestFileCost$", "internal/enforce"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.findall(r"(\d+) bytes: ([\d.]+)µs held, ([\d.]+)µs not", text)
    return [(f"open and close of a path of {n} bytes", float(held) * 1e3, float(free) * 1e3) for n, held, free in found]


def rows(runs: int) -> List[Row]:
    """What the kernel decides: reloads, tables and matches here, instructions on the second kernel."""
    found = [
        Row("kernel", name, unit, values, at_most=bound or None) for (name, unit, _, _, bound), values in benchmarks(min(runs, 5))
    ]
    for (name, held, free), bound in zip(instructions(), (1.2, 1.5)):
        found.append(Row("kernel", f"{name}, with a policy", "instructions", [held], {"without": [free]}, ratio_at_most=bound))
    return found
