"""Draw the task graph of a plan as SVG, without any other program."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from stdist.graph.blocks import Blocks
from stdist.graph.compile import Binding, compile_rearrange, compile_stage
from stdist.graph.rearrange import MemoryMoves
from stdist.graph.stage import Loop, Program, Rearrange

SHOWN = 12
"""Tasks drawn per kind and stage; the rest are counted."""
BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW = 46, 18, 230, 26


def draw_graph(program: Program, block_length: int, path: Path) -> Path:
    """Write the graph of every stage, one column per stage, as an SVG file.

    Boxes are tasks (blocks, combinations, items); lines are the results they pass on. At most
    `SHOWN` tasks of a kind are drawn per stage.
    """
    parts: list[str] = []
    height = 0
    for column, (title, graph) in enumerate(_graphs(program, block_length)):
        left = 20 + column * COLUMN
        parts.append(_text(left, 24, title, 13, "bold"))
        parts.append(_text(left, 42, f"{len(graph)} tasks", 11))
        places: dict[Any, tuple[int, int]] = {}
        counts: dict[str, int] = {}
        for key in graph:
            kind = key[2]
            row = counts[kind] = counts.get(kind, 0) + 1
            if row <= SHOWN:
                depth = 1 if kind == "combine" else 0
                places[key] = (left + depth * 90, 60 + (row - 1) * ROW + depth * ROW // 2)
            elif row == SHOWN + 1:
                more = sum(1 for other in graph if other[2] == kind) - SHOWN
                depth = 1 if kind == "combine" else 0
                parts.append(_text(left + depth * 90, 60 + SHOWN * ROW + 12, f"+ {more}", 11))
        parts += [
            _line(places[argument], places[key])
            for key, (_, *arguments) in graph.items()
            for argument in arguments
            if isinstance(argument, tuple) and argument in places and key in places
        ]
        parts += [_box(place, str(key[-1])) for key, place in places.items()]
        height = max([height, *(y for _, y in places.values())])
    width = 20 + COLUMN * len(program.block_stages())
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 80}" '
        'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )
    return path


def _graphs(program: Program, block_length: int) -> list[tuple[str, dict[Any, tuple]]]:
    found = []
    for stage in program.stages:
        loop = isinstance(stage, Loop)
        for part in stage.body if isinstance(stage, Loop) else (stage,):
            blocks = Blocks(max(1, part.n_rows), block_length)
            binding = Binding(program.name, {})
            if isinstance(part, Rearrange):
                places = Blocks(part.places, block_length)
                steps = compile_rearrange(part, blocks, places, binding, MemoryMoves())
                found += [
                    (f"{part.name}: {step}", dict(graph))
                    for step, (graph, _) in zip(("out", "in"), steps, strict=True)
                ]
                continue
            graph, _ = compile_stage(part, blocks, binding)
            title = f"{stage.name} (each round): {part.name}" if loop else part.name
            found.append((title, dict(graph)))
    return found


def _text(x: int, y: int, text: str, size: int, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}">{escape(text)}</text>'


def _box(place: tuple[int, int], text: str) -> str:
    x, y = place
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4" fill="#e8f1fa" '
        f'stroke="#33658a"/><text x="{x + BOX_WIDTH // 2}" y="{y + 13}" font-size="10" '
        f'text-anchor="middle">{escape(text)}</text>'
    )


def _line(source: tuple[int, int], target: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = source, target
    right = x1 + BOX_WIDTH if x2 > x1 else x1 + BOX_WIDTH // 2
    return (
        f'<line x1="{right}" y1="{y1 + BOX_HEIGHT // 2}" x2="{x2}" y2="{y2 + BOX_HEIGHT // 2}" '
        'stroke="#999"/>'
    )
