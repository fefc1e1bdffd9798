"""The look that all figures share: palette, axes, sheets measured in inches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stdist.store import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stdist.plots.figure import PlotFigure

INK, SOFT, FAINT = "#1f2933", "#66727f", "#d9dee4"
TISSUE = "#e3e6ea"
BEFORE, AFTER, ZONE = "#c2703d", "#1f6f9c", "#e4f1ea"
GROUPS = (
    "#1f6f9c",
    "#d98032",
    "#3c8d5a",
    "#b0568f",
    "#58a6c9",
    "#a33d32",
    "#8a7a2f",
    "#6c63a6",
)
"""Colours of up to eight batches."""
EXPRESSION = ("#f9b384", "#ee6d5c", "#c32d6d", "#7d1a72", "#33104f")
"""Colours of expression, light to dark; the lightest still stands out from the tissue."""
WIDTH = 10.5
"""Width of a figure in inches: a report's column."""


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib.

    Raises
    ------
    InputError
        With code extra-missing and the command that installs it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise InputError(
            "extra-missing",
            f"figures need matplotlib, which cannot be imported ({error})",
            place="stdist.pl",
            remedy="pip install 'stdist[viz]'",
        ) from error


class Sheet:
    """A figure on which axes are placed in inches from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        require_matplotlib()
        from stdist.plots.figure import PlotFigure

        self.width, self.height = width, height
        self.figure: PlotFigure = PlotFigure(width, height)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Place axes."""
        bottom = 1 - (top + height) / self.height
        place = (left / self.width, bottom, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def text(self, left: float, top: float, text: Any, **options: Any) -> None:
        """Write text whose upper left corner is there (unless `options` align it otherwise)."""
        look: dict[str, Any] = {"fontsize": 9, "color": INK, "va": "top", "ha": "left"} | options
        self.figure.text(left / self.width, 1 - top / self.height, literal(text), **look)


def clean(axes: Axes, *, grid: str | None = None) -> Axes:
    """Give axes thin edges at the left and bottom only, and a faint grid along `grid`."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(which="both", color=FAINT, labelcolor=SOFT, labelsize=8, length=3)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=FAINT, linewidth=0.6)  # type: ignore[arg-type]
    return axes


def literal(text: Any) -> str:
    """Text as it is: a dollar sign in a name begins no formula."""
    return str(text).replace("$", r"\$")


def short(text: Any, length: int = 22) -> str:
    """Text cut to a length."""
    text = str(text)
    return text if len(text) <= length else text[: length - 1] + "…"
