"""Draw how the folders of the package use one another, from their imports."""

from __future__ import annotations

import importlib
from html import escape
from itertools import pairwise
from statistics import fmean

import grimp
import networkx as nx

WIDTH, ACROSS, DOWN = 400, 128, 56
BOX = 108, 32
# What everything uses, and the package's own door.
GROUND = {"", "__main__", "_util", "_version", "errors", "types"}


def drawing() -> str:
    """Return an SVG in which an arrow leads from what is used to what uses it, unless a longer way does.

    It takes its color from the text around it, so it can be read on light and on dark pages.
    """
    uses = nx.transitive_reduction(_uses())
    row = _rows(uses)
    ways = [_way(used, user, row) for used, user in uses.edges]
    column = _columns(ways, row)
    at = {stop: (WIDTH / 2 + ACROSS * column[stop], DOWN * row[stop] + BOX[1]) for stop in row}
    lines = [_arrow([at[stop] for stop in way]) for way in ways]
    boxes = [_box(part, *at[part]) for part in uses]
    height = DOWN * max(row.values()) + 2 * BOX[1]
    told = "; ".join(f"{part} uses {', '.join(uses.pred[part])}" for part in uses if uses.pred[part])
    return "\n".join(
        [
            f'<svg role="img" viewBox="0 0 {WIDTH} {height}" fill="none" stroke="currentColor"'
            f' style="display: block; width: 100%; max-width: {WIDTH}px; margin: auto">',
            f"<title>{escape(told)}</title>",
            '<defs><marker id="arrowhead" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8"'
            ' markerHeight="8" orient="auto">'
            '<path d="M0 0 8 4 0 8z" fill="currentColor" stroke="none"/></marker></defs>',
            *lines,
            *boxes,
            "</svg>",
        ]
    )


def _uses() -> nx.DiGraph:
    """Read what each folder is used by; a folder's door, which imports for users, does not count."""
    graph = grimp.build_graph("clipretrieval", cache_dir=None)
    uses = nx.DiGraph()
    for module in sorted(graph.modules):
        if not graph.find_children(module):
            for imported in sorted(graph.find_modules_directly_imported_by(module)):
                user, used = (f"{name}.".split(".")[1] for name in (module, imported))
                if user != used and not {user, used} & GROUND:
                    uses.add_edge(used, user)
    return uses


def _rows(uses: nx.DiGraph) -> dict[str, int]:
    """Put each folder below all that it uses, and what uses nothing right above its first user."""
    row = {part: depth for depth, parts in enumerate(nx.topological_generations(uses)) for part in parts}
    return {
        part: min(row[user] for user in uses[part]) - 1 if not uses.pred[part] else row[part] for part in uses
    }


def _way(used: str, user: str, row: dict[str, int]) -> list[str]:
    """Name the stops of an arrow: its ends, and a gap of its own in each row that it passes."""
    gaps = {f"{used} {user} {passed}": passed for passed in range(row[used] + 1, row[user])}
    row.update(gaps)
    return [used, *gaps, user]


def _columns(ways: list[list[str]], row: dict[str, int]) -> dict[str, float]:
    """Place folders and gaps near what they are joined to, so that few arrows cross."""
    joined = nx.Graph(step for way in ways for step in pairwise(way))
    rows: dict[int, list[str]] = {}
    for stop, depth in row.items():
        rows.setdefault(depth, []).append(stop)
    column: dict[str, float] = {}
    for turn in range(8):
        for depth in sorted(rows, reverse=turn % 2 == 1):
            near = {
                stop: fmean([column[other] for other in joined[stop] if other in column] or [0.0])
                for stop in rows[depth]
            }
            rows[depth].sort(key=near.__getitem__)
            middle = (len(rows[depth]) - 1) / 2
            column.update((stop, place - middle) for place, stop in enumerate(rows[depth]))
    return column


def _arrow(stops: list[tuple[float, float]]) -> str:
    """Draw an arrow from the bottom of one box to the top of another, through the gaps between them."""
    (x, y), *rest = stops
    path = f"M{x:.0f} {y + BOX[1] / 2:.0f}"
    y += BOX[1] / 2
    for place, (to_x, to_y) in enumerate(rest, start=1):
        end = to_y - BOX[1] / 2 if place == len(rest) else to_y
        path += f"C{x:.0f} {(y + end) / 2:.0f} {to_x:.0f} {(y + end) / 2:.0f} {to_x:.0f} {end:.0f}"
        x, y = to_x, end
    return f'<path d="{path}" opacity="0.6" marker-end="url(#arrowhead)"/>'


def _box(part: str, x: float, y: float) -> str:
    """Draw a folder, with what it is for as a tooltip."""
    purpose = (importlib.import_module(f"clipretrieval.{part}").__doc__ or "").split("\n")[0]
    return (
        f"<g><title>{escape(purpose)}</title>"
        f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="5"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" font-size="15" fill="currentColor"'
        f' stroke="none">{part}</text></g>'
    )
