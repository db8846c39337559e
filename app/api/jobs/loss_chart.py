"""Draws a loss curve as an SVG picture: axes, ticks, both losses. Pure; uses no plotting library."""

import math
from collections.abc import Sequence
from html import escape

from app.api.jobs.schemas import LossPointRead

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 64, 48
_COLOURS = {"train": "#2563eb", "eval": "#ea580c"}
_LABELS = {"train": "training loss", "eval": "evaluation loss"}
_MAX_POINTS = 1000


def draw(points: Sequence[LossPointRead], *, title: str) -> str:
    """An SVG document. Points without a finite loss are left out; without points it holds a message."""
    finite = [point for point in points if math.isfinite(point.loss)]
    body = _plot(finite) if finite else [_text(WIDTH / 2, HEIGHT / 2, "No loss has been logged yet.")]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="#374151" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="14" font-weight="600">{escape(title)}</text>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


class _Scale:
    """Maps values to pixels along one axis, with ticks at round numbers."""

    def __init__(self, low: float, high: float, start: float, end: float, *, whole: bool = False) -> None:
        step = _round_step((high - low) / 5 or abs(high) or 1.0)
        step = max(1.0, step) if whole else step
        self.low, self.high = math.floor(low / step) * step, math.ceil(high / step) * step
        if self.high == self.low:
            self.high = self.low + step
        self._start, self._end = start, end
        count = round((self.high - self.low) / step)
        self.ticks = [self.low + index * step for index in range(count + 1)]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)


def _plot(points: Sequence[LossPointRead]) -> list[str]:
    losses = [point.loss for point in points]
    x = _Scale(0, max(point.step for point in points), LEFT, WIDTH - RIGHT, whole=True)
    y = _Scale(min(losses), max(losses), HEIGHT - BOTTOM, TOP)
    kinds = [kind for kind in _COLOURS if any(point.kind == kind for point in points)]
    curves = [_curve([point for point in points if point.kind == kind], x, y) for kind in kinds]
    return [*_grid(x, y), *curves, *_legend(kinds)]


def _grid(x: _Scale, y: _Scale) -> list[str]:
    bottom = HEIGHT - BOTTOM
    lines = []
    for tick in y.ticks:
        lines.append(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        lines.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", anchor="end"))
    for tick in x.ticks:
        lines.append(f'<path d="M{x(tick):.1f} {bottom}v5" stroke="#9ca3af"/>')
        lines.append(_text(x(tick), bottom + 18, f"{tick:g}"))
    lines.append(f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="#9ca3af"/>')
    lines.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "optimizer step"))
    middle = (TOP + bottom) / 2
    lines.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">loss</text>'
    )
    return lines


def _curve(points: Sequence[LossPointRead], x: _Scale, y: _Scale) -> str:
    # More points than pixels add nothing but bytes; the last one always stays.
    stride = math.ceil(len(points) / _MAX_POINTS)
    shown = [*points[:-1:stride], points[-1]]
    places = [(x(point.step), y(point.loss)) for point in shown]
    colour = _COLOURS[points[0].kind]
    line = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
    dots = "".join(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3"/>' for left, top in places)
    marks = f'<g fill="{colour}">{dots}</g>' if len(places) <= 60 else ""
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>{marks}'


def _legend(kinds: Sequence[str]) -> list[str]:
    lines = []
    for place, kind in enumerate(reversed(kinds)):
        left = WIDTH - RIGHT - 130 * (place + 1)
        lines.append(f'<path d="M{left} 42h20" stroke="{_COLOURS[kind]}" stroke-width="3"/>')
        lines.append(_text(left + 26, 46, _LABELS[kind], anchor="start"))
    return lines


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
