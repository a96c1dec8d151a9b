"""The report: Markdown for people, JSON for programs, a chart per figure."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Dict, List

import chart
from figures import Row, figure


def as_json(rows: List[Row]) -> Dict[str, object]:
    return {"taken": time.strftime("%Y-%m-%d"), "kernel": os.uname().release, "cpus": os.cpu_count(), "rows": [row.as_dict() for row in rows]}


def markdown(rows: List[Row]) -> str:
    lines = [
        "# psi benchmarks", "",
        f"Taken {time.strftime('%Y-%m-%d')} on Linux {os.uname().release}, {os.cpu_count()} cores, Python {sys.version.split()[0]}, load "
        f"{os.getloadavg()[0]:.1f} at the end. What is compared was taken in turn; medians; the ratio is what to look at.", "",
        "| figure | median | p99 | against (median, ratio) | target | met |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        ratios = row.ratios
        against = "; ".join(f"{peer} {figure(statistics.median(found))}, {ratios[peer]:.2f} ×" for peer, found in row.peers.items())
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        lines.append(f"| {row.name} | {figure(row.median)} {row.unit} | {figure(row.p99)} | {against} | {row.target} | {met} |")
    notes = [f"* {row.name}: {row.note}" for row in rows if row.note]
    charts = [f"![{row.name}]({file_of(row)})" for row in rows]
    return "\n".join([*lines, *([""] + notes if notes else []), "", *charts]) + "\n"


def file_of(row: Row) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{row.group} {row.name}".lower()).strip("-") + ".svg"


def write(rows: List[Row], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.svg"):
        old.unlink()
    for row in rows:
        (directory / file_of(row)).write_text(chart.svg(row))
    (directory / "report.json").write_text(json.dumps(as_json(rows), indent=2, ensure_ascii=False) + "\n")
    (directory / "report.md").write_text(markdown(rows))
