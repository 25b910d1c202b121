"""Small charts as inline SVG and HTML, for pages that load nothing from anywhere.

It knows numbers and names, and nothing about what they mean.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLORS = ("#2457c5", "#d1741f", "#5b6472", "#1b8a5a", "#8a3ffc")
_WIDTH, _HEIGHT = 560, 280  # of the drawing, in SVG units
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 16, 44
_MAX_POINTS = 400
_MOST_DOTS = 20  # of a line; more are no longer seen one by one


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A named line; points that are not finite are left out."""

    name: str
    x: Sequence[float | int]
    y: Sequence[float | int]

    def points(self) -> list[tuple[float, float]]:
        """Return at most 400 of the points, the first and the last among them.

        Raises:
            ValueError: x and y differ in length.
        """
        pairs = [(float(x), float(y)) for x, y in zip(self.x, self.y, strict=True)]
        finite = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
        if len(finite) <= _MAX_POINTS:
            return finite
        step = (len(finite) - 1) / (_MAX_POINTS - 1)
        return [finite[round(index * step)] for index in range(_MAX_POINTS)]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that span [low, high].

    >>> nice_ticks(0.0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> nice_ticks(3.0, 3.0)
    [3.0, 3.2, 3.4, 3.6, 3.8, 4.0]
    """
    high = high if high > low else low + 1
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """Return an SVG of lines over common axes, with a legend when there are several.

    Raises:
        ValueError: no series has a point, or x and y differ in length.
    """
    lines = [(one.name, one.points()) for one in series]
    points = [point for _, line in lines for point in line]
    if not points:
        raise ValueError(f"nothing to draw: no finite points in {[one.name for one in series]}")
    x_ticks = nice_ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = nice_ticks(min(0.0, *(y for _, y in points)), max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    for tick in y_ticks:
        _, y = place(x_ticks[0], tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        anchor = "end" if x > _WIDTH - 2 * _RIGHT else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="{anchor}">'
            f"{_thousands(tick)}</text>"
        )
    for index, (_, line) in enumerate(lines):
        parts.append(_drawn([place(*point) for point in line], color=COLORS[index % len(COLORS)]))
    middle_y = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text class="label" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}">{html.escape(x_label)}</text>'
    )
    turned = f'transform="translate(10 {middle_y}) rotate(-90)"'
    parts.append(f'<text class="label" {turned}>{html.escape(y_label)}</text></svg>')
    return "".join(parts) + (_legend([name for name, _ in lines]) if len(lines) > 1 else "")


def _drawn(points: Sequence[tuple[float, float]], *, color: str) -> str:
    """Return a line, with a dot at each of its points where they are few; a single one would show nothing."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = points if len(points) <= _MOST_DOTS else []
    return f'<polyline points="{path}" stroke="{color}"/>' + "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in dots
    )


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _legend(names: Sequence[str]) -> str:
    items = (
        f'<span><i style="background:{COLORS[index % len(COLORS)]}"></i>{html.escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f'<div class="legend">{"".join(items)}</div>'


def rate_bar(rate: float, low: float, high: float, *, color: str, target: float | None = None) -> str:
    """Return a bar from 0 to 100 % with its interval as a whisker, and a mark at `target` if there is one."""
    mark = "" if target is None else f'<b style="left:{100 * target:.1f}%"></b>'
    return (
        f'<div class="bar"><i style="width:{100 * rate:.1f}%;background:{color}"></i>'
        f'<u style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></u>{mark}</div>'
    )
