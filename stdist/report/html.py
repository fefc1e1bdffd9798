"""Pieces of a self-contained HTML page: everything escaped, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from stdist.plots.style import AFTER, FAINT, INK, SOFT, WIDTH

STYLE = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0; background: #f4f6f8; color: {INK}; line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 36px 28px 48px; }}
header p {{ color: {SOFT}; margin: 2px 0; }}
h1 {{ font-size: 27px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }}
h2 {{ font-size: 18px; margin: 0 0 12px; }}
section {{ background: white; border: 1px solid {FAINT}; border-radius: 8px;
  padding: 22px 26px; margin-top: 20px; }}
.cards {{ display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 14px; }}
.card {{ background: white; border: 1px solid {FAINT}; border-radius: 8px;
  padding: 11px 16px; flex: 1 1 118px; }}
section .card {{ background: #f7f9fa; }}
section .cards {{ margin-top: 0; }}
.card b {{ display: block; font-size: 21px; line-height: 1.3; white-space: nowrap;
  font-variant-numeric: tabular-nums; }}
.card span {{ color: {SOFT}; font-size: 13px; line-height: 1.35; display: block; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }}
table.wide {{ width: 100%; }}
th, td {{ padding: 5px 12px 5px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid {FAINT}; }}
th {{ color: {SOFT}; font-weight: 600; }}
th.number, td.number {{ text-align: right; padding: 5px 6px; white-space: nowrap; }}
th.group {{ text-align: right; padding: 5px 6px; border-bottom: 0; color: {INK}; }}
tbody tr:last-child td {{ border-bottom: 0; }}
img {{ max-width: 100%; height: auto; display: block; margin: 14px 0 0; }}
p {{ margin: 8px 0; max-width: 78ch; }}
p.note {{ color: {SOFT}; font-size: 13px; }}
ul.warnings {{ margin: 0; padding: 0; list-style: none; }}
ul.warnings li {{ border-left: 3px solid #d98032; background: #fdf5ec; padding: 7px 12px;
  margin: 6px 0; font-size: 14px; }}
code, pre {{ font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 13px; }}
pre {{ background: #f4f6f8; border-radius: 6px; padding: 12px 14px; overflow-x: auto; }}
nav {{ margin-top: 14px; font-size: 14px; }}
nav a {{ color: {AFTER}; text-decoration: none; margin-right: 18px; }}
@media print {{ body {{ background: white; }} section {{ break-inside: avoid; }} }}
"""


def page(title: str, header: str, sections: Iterable[tuple[str, str]]) -> str:
    """Lay out a page of titled sections; sections without content are left out."""
    kept = [(name, body) for name, body in sections if body]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name, _ in kept)
    bodies = "".join(
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{body}</section>\n'
        for name, body in kept
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><header>{header}<nav>{links}</nav></header>\n{bodies}</main></body></html>\n"
    )


def _anchor(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def cards(facts: Iterable[tuple[str, Any]]) -> str:
    """Key figures: ``(meaning, value)``."""
    shown = (
        f"<div class='card'><b>{escape(str(v))}</b><span>{escape(n)}</span></div>" for n, v in facts
    )
    return f'<div class="cards">{"".join(shown)}</div>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    text: int = 1,
    groups: Sequence[tuple[str, int]] = (),
) -> str:
    """Table whose first `text` columns are text and the others numbers, right-aligned.

    `groups` are titles above the head: text and number of columns.
    """

    def cells(tag: str, values: Sequence[Any]) -> str:
        return "".join(
            f"<{tag}{' class=number' if at >= text else ''}>{escape(str(value))}</{tag}>"
            for at, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    above = "".join(f'<th class=group colspan="{n}">{escape(name)}</th>' for name, n in groups)
    above = f"<tr>{above}</tr>" if above else ""
    top = f"<thead>{above}<tr>{cells('th', head)}</tr></thead>" if any(head) else ""
    wide = ' class="wide"' if len(head) > 2 else ""
    return f'<div class="scroll"><table{wide}>{top}<tbody>{body}</tbody></table></div>'


def picture(figure: Any, meaning: str) -> str:
    """Figure as a PNG inside the page, at the scale that all figures share."""
    data = base64.b64encode(figure.png(dpi=150)).decode()
    share = min(1.0, figure.get_figwidth() / WIDTH)
    return (
        f'<img alt="{escape(meaning)}" style="width:{share:.0%}" '
        f'src="data:image/png;base64,{data}">'
    )


def paragraph(text: str, *, note: bool = False) -> str:
    """Paragraph of plain text."""
    return f"<p{' class=note' if note else ''}>{escape(text)}</p>"


def warnings_list(texts: Iterable[str]) -> str:
    """Warnings, one line each."""
    return f'<ul class="warnings">{"".join(f"<li>{escape(t)}</li>" for t in texts)}</ul>'


def commands(lines: Iterable[str]) -> str:
    """Lines for a shell."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def in_bytes(value: float) -> str:
    """Bytes with a binary unit.

    Examples
    --------
    >>> in_bytes(0), in_bytes(1536), in_bytes(float("nan"))
    ('0', '1.5 KiB', '–')
    """
    if value != value:
        return "–"
    unit = 0
    while abs(value) >= 1024 and unit < 5:
        value, unit = value / 1024, unit + 1
    name = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")[unit]
    return "0" if value == 0 else f"{value:.0f} {name}" if value >= 10 else f"{value:.2g} {name}"


def in_seconds(value: float) -> str:
    """Seconds, minutes or hours.

    Examples
    --------
    >>> in_seconds(0.01234), in_seconds(75.4), in_seconds(7300)
    ('0.012 s', '1 min 15 s', '2 h 01 min')
    """
    if value != value:
        return "–"
    if value < 60:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: float, digits: int = 3) -> str:
    """Number with few digits, thousands separated.

    Examples
    --------
    >>> number(0.12345), number(1234567), number(float("nan")), number(3e-22)
    ('0.123', '1,234,567', '–', '< 0.0001')
    """
    if value != value:
        return "–"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return "< 0.0001" if 0 < value < 1e-4 else f"{value:.{digits}g}"
