"""What benchmarks/search.py has measured, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from pages import with_table

TEXTS = ("topics", "docstrings")
WIDTH, HEIGHT, LEFT, BOTTOM, RIGHT = 720, 360, 56, 40, 220
COLOURS = ("#2563c9", "#17803d", "#c0272d", "#a15c07", "#7c3aed", "#0e7490", "#667085", "#be185d", "#4d7c0f")


def means(seeds: Mapping[str, Any]) -> dict[str, float]:
    """Average a way's perplexities over its seeds."""
    found = {
        f"{windows} {text}": mean(each[windows][text] for each in seeds.values())
        for windows in ("all", "few")
        for text in TEXTS
    }
    return found | {"parameters": mean(each["parameters"] for each in seeds.values()), "draws": len(seeds)}


def table(results: Mapping[str, Any]) -> str:
    """List the ways to each size, the best on all windows first."""
    lines = ["| at most | way | draws | parameters | topics | docstrings | topics, 5 windows | docstrings, 3 windows |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|", row("", "dense", means({"": results["dense"]}))]
    for size, ways in sorted(results["sizes"].items(), key=lambda item: -float(item[0].removesuffix("M"))):
        found = {way: means(seeds) for way, seeds in ways.items()}
        ordered = sorted(found.items(), key=lambda item: item[1]["all topics"] + item[1]["all docstrings"])
        lines += [row(size, way, each) for way, each in ordered]
    return "\n".join([*lines, "", f"{results['versions']}.", ""])


def row(size: str, way: str, found: Mapping[str, float]) -> str:
    numbers = [f"{found[f'{windows} {text}']:,.2f}" for windows in ("all", "few") for text in TEXTS]
    draws = f"{found['draws']:.0f}" if size else ""
    return f"| {size} | {way} | {draws} | {found['parameters'] / 1e6:.1f}M | {' | '.join(numbers)} |"


def page(text: str, results: Mapping[str, Any]) -> str:
    """Put the table into the page."""
    return with_table(text, "search", table(results))


def plot(results: Mapping[str, Any], highest: float = 60.0) -> str:
    """Draw perplexity on all windows of the documentation over parameters, a line for each way."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for ways in results["sizes"].values():
        for way, seeds in ways.items():
            found = means(seeds)
            lines.setdefault(way, []).append((found["parameters"] / 1e6, found["all topics"]))
    dense = means({"": results["dense"]})
    end = dense["parameters"] / 1e6, dense["all topics"]
    points = [point for line in lines.values() for point in line if point[1] <= highest]
    low, high = min((x for x, _ in points), default=0) - 2, max((y for _, y in points), default=highest) * 1.05

    def place(x: float, y: float) -> str:
        across = LEFT + (x - low) / (end[0] - low) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - (min(y, high) - 10) / (high - 10) * (HEIGHT - 2 * BOTTOM):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">'
    ]
    for tick in range(10, int(high) + 1, 10):
        y = place(low, tick).split(",")[1]
        parts.append(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end" fill="#667085">{tick}</text>')
    for tick in range(int(low) // 10 * 10 + 10, int(end[0]) + 1, 10):
        x = place(tick, 10).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - 16}" text-anchor="middle" fill="#667085">{tick}M</text>')
    for number, (way, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in sorted([*line, end]) if y <= highest)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 16}" y="{BOTTOM + 18 * number}" fill="{colour}">{way}</text>')
    return "\n".join([*parts, "</svg>", ""])
