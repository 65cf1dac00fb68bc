"""The histograms and their fits as an SVG, written by hand: a plot needs no library that knapper does not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .estimate import Estimate, Histogram

WIDTH, HEIGHT, MARGIN = 420, 260, 46
STYLE = "text{font:12px sans-serif;fill:#333}.axis{stroke:#333}.counts{fill:#9ab8d6}.fit{fill:none;stroke:#c0392b;stroke-width:1.6}"


def svg(found: Mapping[str, Estimate]) -> str:
    """A row for each tube type: its charge spectrum, then its times."""
    panels = []
    for row, (name, e) in enumerate(found.items()):
        middle = float(np.average(e.times.edges[:-1], weights=e.times.counts))
        wide = max(6.0, 4 * e.tts.value)
        for column, (histogram, label, low, high) in enumerate(
            (
                (e.charges, f"{name}: charge, photo-electrons", 0.0, 2.5),
                (e.times, f"{name}: time, ns", middle - wide, middle + wide),
            )
        ):
            body = _panel(histogram, label, low, high)
            panels.append(f'<g transform="translate({column * WIDTH},{row * HEIGHT})">{body}</g>')
    size = f'width="{2 * WIDTH}" height="{len(found) * HEIGHT}"'
    back = '<rect width="100%" height="100%" fill="white"/>'
    body = "\n".join(panels)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>{back}\n{body}\n</svg>\n'


def _panel(h: Histogram, label: str, low: float, high: float) -> str:
    """One histogram between two values, with its fit and its axes."""
    shown = (h.edges[:-1] >= low) & (h.edges[1:] <= high)
    # The pedestal, if there is one, is cut: the scale is that of the fit.
    top = 1.15 * max(float(h.fitted[shown].max()), 1.0)

    def x(value: float) -> float:
        return MARGIN + (value - low) / (high - low) * (WIDTH - 1.5 * MARGIN)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - min(value / top, 1.05) * (HEIGHT - 1.8 * MARGIN)

    left, right, counts, fitted = (
        h.edges[:-1][shown],
        h.edges[1:][shown],
        h.counts[shown],
        h.fitted[shown],
    )
    bars = "".join(
        f'<rect class="counts" x="{x(a):.1f}" y="{y(n):.1f}" width="{x(b) - x(a):.1f}" height="{y(0) - y(n):.1f}"/>'
        for a, b, n in zip(left, right, counts, strict=True)
    )
    points = " ".join(
        f"{x(t):.1f},{y(n):.1f}" for t, n in zip((left + right) / 2, fitted, strict=True)
    )
    ends = f"M{x(low):.1f},{y(top):.1f}V{y(0):.1f}H{x(high):.1f}"
    ticks = "".join(
        f'<text x="{x(t):.1f}" y="{y(0) + 16:.1f}" text-anchor="middle">{t:g}</text>'
        for t in _ticks(low, high)
    )
    title = f'<text x="{x(low):.1f}" y="20">{label}</text><text x="4" y="{y(top / 1.15):.1f}">{top / 1.15:.0f}</text>'
    return f'{bars}<polyline class="fit" points="{points}"/><path class="axis" fill="none" d="{ends}"/>{ticks}{title}'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high, four to ten of them."""
    step = 10 ** np.floor(np.log10((high - low) / 2))
    while (high - low) / step > 10:
        step *= 2 if (high - low) / step <= 20 else 2.5
    first = np.ceil(low / step)
    return [float(round(i * step, 6)) for i in range(int(first), int(np.floor(high / step)) + 1)]
