"""A bar chart as SVG, with nothing but text: the median of each thing, a mark at its 99th percentile, the target as a line."""

from __future__ import annotations

import statistics
from html import escape
from typing import List, Sequence, Tuple

from figures import Row, figure, percentile

_WIDTH, _LABEL, _BAR, _GAP, _TOP = 760, 250, 20, 10, 44


def svg(row: Row) -> str:
    """The chart of one figure."""
    bars: List[Tuple[str, Sequence[float]]] = [("psi", row.values), *row.peers.items()]
    target = _target(row)
    longest = max([percentile(values, 99) for _, values in bars] + ([target] if target else [])) or 1.0
    scale = (_WIDTH - _LABEL - 110) / longest
    height = _TOP + len(bars) * (_BAR + _GAP) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(row.name)} ({escape(row.unit)})</text>',
    ]
    for number, (name, values) in enumerate(bars):
        y = _TOP + number * (_BAR + _GAP)
        middle, high = statistics.median(values), percentile(values, 99)
        length = max(1.0, middle * scale)
        colour = "#2563a8" if number == 0 else "#b9c2cc"
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<line x1="{_LABEL + high * scale:.1f}" x2="{_LABEL + high * scale:.1f}" y1="{y + 3}" y2="{y + _BAR - 3}" stroke="#444444"/>',
            f'<text x="{_LABEL + max(length, high * scale) + 6:.1f}" y="{y + 15}">{figure(middle)}</text>',
        ]
    if target:
        x = _LABEL + target * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height - 24}" stroke="#c0392b" stroke-dasharray="4 3"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle" fill="#c0392b">target {escape(row.target)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _target(row: Row) -> float:
    """Where the target lies on the axis; 0 for none."""
    for bound in (row.at_most, row.at_least):
        if bound is not None:
            return bound
    for bound in (row.ratio_at_most, row.ratio_at_least):
        if bound is not None and row.peers:
            return bound * statistics.median(next(iter(row.peers.values())))
    return 0.0
