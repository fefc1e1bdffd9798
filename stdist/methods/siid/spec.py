"""Parameters of SIID, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from stdist.kernels.poisson_factors import Settings
from stdist.kernels.spot_map import MAX_DISTANCE
from stdist.methods.checks import check_number, wrong_parameter
from stdist.store import InputError

ROUNDS = 3
"""E-steps while a tile is in memory: measured, a third of the passes for the same loss."""
EXPONENT = 1.8
"""Largest over-relaxation of the factors."""


@dataclass(frozen=True)
class SiidSpec:
    """What `stdist.tl.siid` does, beyond the data; see there for the meaning of each field.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    n_factors: int
    layer: str | None = None
    spots_layer: str | None = None
    spatial_key: str = "spatial"
    spots_spatial_key: str = "spatial"
    transform: Sequence[float] | None = None
    max_distance: float = MAX_DISTANCE
    held_out: Sequence[str] | None = None
    deconvolve: bool = True
    n_solutions: int = 6
    n_restarts: int = 8
    sample_cells: int = 10_000
    passes: int = 20
    convergence_passes: int = 500
    entropy: float = 11.0
    entropy_passes: int = 100
    platform_scaling: bool = True
    shrink: bool = True
    l2: float = 0.0
    key_added: str = "siid"
    rng: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n_factors", 1, 1000),
            ("n_solutions", 1, 100),
            ("n_restarts", 1, 1000),
            ("sample_cells", 1024, 10**7),
            ("passes", 1, 10**5),
            ("convergence_passes", 1, 10**6),
            ("entropy_passes", 1, 10**5),
            ("rng", 0, 2**32 - 1),
        ):
            check_number("siid", name, getattr(self, name), Integral, (low, high))
        for name, low, high in (
            ("max_distance", 1e-9, 1e9),
            ("entropy", 0, 1e6),
            ("l2", 0, 1e3),
        ):
            check_number("siid", name, getattr(self, name), Real, (low, high))
        if self.n_solutions > self.n_restarts:
            raise self._wrong("n_solutions", f"at most n_restarts, {self.n_restarts}")
        if self.transform is not None and len(self.matrix or ()) != 3:
            raise self._wrong("transform", "nine numbers, row by row, or a 3 x 3 matrix")

    def _wrong(self, name: str, remedy: str) -> InputError:
        return wrong_parameter("siid", name, getattr(self, name), remedy)

    @property
    def matrix(self) -> list[list[float]] | None:
        """The transform as rows; the command line gives it as text."""
        if self.transform is None:
            return None
        given = list(self.transform)
        if len(given) == 3:
            given = [value for row in given for value in row]  # type: ignore[attr-defined]
        try:
            numbers = [float(value) for value in given]
        except (TypeError, ValueError):
            raise self._wrong("transform", "numbers") from None
        return [numbers[at : at + 3] for at in (0, 3, 6)] if len(numbers) == 9 else None

    def settings(self, entropy: float = 0.0) -> Settings:
        """How rows move in a pass."""
        return Settings(rounds=ROUNDS, entropy=entropy, l2=self.l2)

    def to_parameters(self) -> dict[str, Any]:
        """Return JSON-able keyword arguments that make this spec again."""
        listed = None if self.held_out is None else list(self.held_out)
        return asdict(self) | {"transform": self.matrix, "held_out": listed}
