"""Two pictures, as SVG: what each policy gets for what real-time pays, and one run over time.

Owns the drawing. Written by hand rather than with a plotting library: two pictures are no reason for a dependency of
50 MB, and a picture that is text can be reviewed and differs only where its figures do.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.colocation.arm import Arm
    from benchmarks.colocation.report import Row

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 40, 48
_INK, _FAINT, _OURS, _THEIRS, _REALTIME = "#333333", "#dddddd", "#1f77b4", "#888888", "#d62728"


def scatter(rows: Sequence[Row]) -> str:
    """Batch's share of the oracle from left to right, real-time's p99 from bottom to top, on a logarithmic scale."""
    shown = [row for row in rows if row.requests and row.of_oracle is not None]
    none = next(row for row in rows if row.requests and not row.arms[0].processes)
    values_s = [row.ttft_s(0.99) for row in (*shown, none)]
    low, high = math.floor(math.log10(min(values_s))), math.ceil(math.log10(max(values_s)))

    def x(share: float) -> float:
        return _LEFT + share / 1.1 * (_WIDTH - _LEFT - _RIGHT)

    def y(value_s: float) -> float:
        return _HEIGHT - _BOTTOM - (math.log10(value_s) - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    traffic = rows[0].arms[0].traffic.name
    parts = [_text(_LEFT, 22, f"{traffic}: what batch gets, and what real-time waits", size=15)]
    for power in range(low, high + 1):
        value_s = 10.0**power
        parts += [_line(_LEFT, y(value_s), _WIDTH - _RIGHT, y(value_s), _FAINT)]
        parts += [_text(_LEFT - 6, y(value_s) + 4, f"{1000 * value_s:g} ms", anchor="end")]
    for tenth in range(0, 11, 2):
        parts += [_text(x(tenth / 10), _HEIGHT - _BOTTOM + 18, f"{10 * tenth} %", anchor="middle")]
    parts += [_text(_WIDTH / 2, _HEIGHT - 8, "batch tokens, of the oracle's", anchor="middle")]
    parts += [_line(_LEFT, y(none.ttft_s(0.99)), _WIDTH - _RIGHT, y(none.ttft_s(0.99)), _REALTIME, dash="4 4")]
    parts += [_text(_LEFT + 4, y(none.ttft_s(0.99)) - 5, "p99 of the time to the first token without batch", _REALTIME)]
    for row in shown:
        share, value_s = row.of_oracle or 0.0, row.ttft_s(0.99)
        ink = _OURS if row.name.startswith("ours") else _THEIRS
        parts += [f'<circle cx="{x(share):.1f}" cy="{y(value_s):.1f}" r="5" fill="{ink}"/>']
        right = share > 0.75
        parts += [
            _text(x(share) - 9 if right else x(share) + 9, y(value_s) + 4, row.name, ink, "end" if right else "start")
        ]
    return _svg(parts)


def timeline(arm: Arm, *, from_s: float = 0.0, to_s: float = 60.0) -> str:
    """Real-time's requests in the server, batch's, and their time to the first token, over a minute of one run."""
    to_s = min(to_s, arm.duration_s)
    half = (_HEIGHT - _TOP - _BOTTOM) / 2

    def x(at_s: float) -> float:
        return _LEFT + (at_s - from_s) / (to_s - from_s) * (_WIDTH - _LEFT - _RIGHT)

    def slots_y(number: float) -> float:
        return _TOP + half - number / (1.25 * arm.slots) * (half - 10)

    worst_s = max([0.1, *arm.ttft_s()])

    def wait_y(value_s: float) -> float:
        return _HEIGHT - _BOTTOM - value_s / worst_s * (half - 20)

    parts = [_text(_LEFT, 22, f"{arm.traffic.name}, policy {arm.policy.name}: one run over time", size=15)]
    for phase in arm.traffic.phases:
        if phase.name in {"burst", "herd", "high", "busy"} and phase.from_s < to_s and phase.to_s > from_s:
            left, right = x(max(from_s, phase.from_s)), x(min(to_s, phase.to_s))
            parts.append(
                f'<rect x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{2 * half:.1f}" fill="#f4f4f4"/>'
            )
    parts += [_line(_LEFT, slots_y(arm.slots), _WIDTH - _RIGHT, slots_y(arm.slots), _FAINT)]
    parts += [_text(_LEFT - 6, slots_y(arm.slots) + 4, f"{arm.slots} slots", anchor="end")]
    times = [from_s + step * (to_s - from_s) / 600 for step in range(601)]
    realtime = [sum(1 for each in arm.realtime if each.from_s <= at_s < each.to_s) for at_s in times]
    batch = [sum(1 for of in arm.batch for each in of if each.from_s <= at_s < each.to_s) for at_s in times]
    parts += [_path([(x(t), slots_y(n)) for t, n in zip(times, batch, strict=True)], _OURS)]
    parts += [_path([(x(t), slots_y(n)) for t, n in zip(times, realtime, strict=True)], _REALTIME)]
    parts += [_text(_LEFT + 4, _TOP + 12, "batch in the server (answers that ended)", _OURS)]
    parts += [_text(_LEFT + 280, _TOP + 12, "real-time in the server", _REALTIME)]
    parts += [_line(_LEFT, wait_y(0), _WIDTH - _RIGHT, wait_y(0), _FAINT)]
    parts += [_text(_LEFT - 6, wait_y(worst_s) + 4, f"{1000 * worst_s:.0f} ms", anchor="end")]
    parts += [_text(_LEFT + 4, _TOP + half + 14, "time to the first token of each real-time request", _REALTIME)]
    for sample in arm.samples:
        if sample.ttft_s is not None and from_s <= sample.sent_s < to_s:
            at = x(sample.sent_s)
            parts.append(_line(at, wait_y(0), at, wait_y(sample.ttft_s), _REALTIME))
    for at_s in range(int(from_s), int(to_s) + 1, 10):
        parts += [_text(x(at_s), _HEIGHT - _BOTTOM + 18, f"{at_s} s", anchor="middle")]
    return _svg(parts)


def _svg(parts: Sequence[str]) -> str:
    return "\n".join(_lines(parts)) + "\n"


def _lines(parts: Sequence[str]) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12">'
    )
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>'
    yield from parts
    yield "</svg>"


def _text(x: float, y: float, words: str, ink: str = _INK, anchor: str = "start", *, size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{ink}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'
    )


def _line(x: float, y: float, to_x: float, to_y: float, ink: str, *, dash: str = "none") -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{ink}" stroke-dasharray="{dash}"/>'


def _path(points: Sequence[tuple[float, float]], ink: str) -> str:
    listed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{listed}" fill="none" stroke="{ink}" stroke-width="1.5"/>'
