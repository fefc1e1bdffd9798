"""A matplotlib figure that notebooks show without pyplot; imported only when something is drawn."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class PlotFigure(Figure):
    """Figure on an Agg canvas, unknown to pyplot and its global state."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=110, facecolor="white")
        FigureCanvasAgg(self)

    def png(self, dpi: float = 110) -> bytes:
        """Return the figure as a PNG file."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi, pil_kwargs={"optimize": True})
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()
