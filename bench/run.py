#!/usr/bin/env python3
"""Measure psi against its peers on this machine, in one run, and report ratios.

    make bench          writes build/bench/report.md, report.json and a chart per figure
    make bench-quick    the same with few runs, in less than a minute

The parts: cold, programs, warm, sustained, alive, messages, access, network, kernel, engines, vm. Python's own API is all that is used, so
that the figures are those of a user.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List

import place
import access  # noqa: E402
import cold  # noqa: E402
import engines  # noqa: E402
import kernel  # noqa: E402
import messages  # noqa: E402
import network  # noqa: E402
import report  # noqa: E402
import warm  # noqa: E402
from figures import Row, command, interleaved, progress


def engine_runs(runs: int, work: Path) -> List[Row]:
    """Each engine's `run --rm` of a script that prints 1, with psi-runtime and with runc in turn."""
    rows: List[Row] = []
    with engines.commands(work, place.RUNTIME, place.ROOTFS) as commands:
        for name, with_psi, with_runc in commands:
            times = interleaved(runs, {"psi-runtime": command(*with_psi), "runc": command(*with_runc)})
            rows.append(Row("engines", f"{name}, psi-runtime", "ms", times["psi-runtime"], {"runc": times["runc"]}, ratio_at_most=1.0))
    return rows


def parts(options: argparse.Namespace, work: Path) -> Dict[str, Callable[[], List[Row]]]:
    runs, quick = options.runs, options.quick
    seconds = 2.0 if quick else 10.0
    return {
        "cold": lambda: cold.starts(runs, work, not quick),
        "programs": lambda: cold.programs(runs),
        "warm": lambda: [*warm.spawns(runs if quick else 100, work), *warm.from_nothing(runs, work)],
        "sustained": lambda: warm.sustained(seconds, work, (1, 8) if quick else (1, 8, 64)),
        "alive": lambda: warm.alive(options.guests, work),
        "messages": lambda: [
            *messages.round_trip(runs), *messages.posts(runs if quick else 10),
            *messages.large(3 if quick else 10, work, quick), *messages.flooded_client(),
        ],
        "access": lambda: access.costs(runs, work),
        "network": lambda: [] if quick else network.proxied(runs),
        "kernel": lambda: [] if quick else kernel.rows(runs),
        "engines": lambda: [] if quick else engine_runs(runs, work),
        "vm": lambda: [] if quick else cold.second_kernel(),
    }  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=place.ROOT / "build" / "bench", help="directory of the report")
    parser.add_argument("--quick", action="store_true", help="few runs of everything but the engines: less than a minute")
    parser.add_argument("--runs", type=int, help="counted runs of most figures (30; quick: 5)")
    parser.add_argument("--guests", type=int, help="how many guests are alive at once (1000; quick: 20)")
    parser.add_argument("--only", metavar="PART,…", help="some parts alone")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of Markdown")
    options = parser.parse_args()
    options.runs = options.runs or (5 if options.quick else 30)
    options.guests = options.guests or (20 if options.quick else 1000)
    return options


def main() -> int:
    options = parse()
    if os.geteuid() != 0:
        print("bench: containers are started: run it as root", file=sys.stderr)
        return 1
    place.more_files()
    rows: List[Row] = []
    work = Path(tempfile.mkdtemp(prefix="psi-bench-"))
    os.chmod(work, 0o755)  # runc, unlike psi, reads the root as the guest's own user
    started = time.monotonic()
    try:
        chosen = parts(options, work)
        wanted = options.only.split(",") if options.only else list(chosen)
        for unknown in set(wanted) - set(chosen):
            print(f"bench: no part {unknown!r}; there are {', '.join(chosen)}", file=sys.stderr)
            return 2
        for name in wanted:
            progress.begin(name)
            rows.extend(chosen[name]())
    finally:
        progress.end()
        shutil.rmtree(work, ignore_errors=True)
        report.write(rows, options.output)  # of what there is, if a part has failed
    print(json.dumps(report.as_json(rows), ensure_ascii=False) if options.json else report.markdown(rows))
    print(f"bench: {time.monotonic() - started:.0f} s; the report is in {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
