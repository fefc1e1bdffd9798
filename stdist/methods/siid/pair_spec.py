"""Parameters of a pair of slides, whatever is done with it, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any, ClassVar

from stdist.kernels.spot_map import MAX_DISTANCE
from stdist.methods.checks import check_number, wrong_parameter
from stdist.store import InputError

MOST_STARTS = 1000


@dataclass(frozen=True, kw_only=True)
class PairSpec:
    """How two slides are read, and the number of factors; see `stdist.tl.siid` for each field.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    program: ClassVar[str] = "siid"

    n_factors: int
    layer: str | None = None
    spots_layer: str | None = None
    spatial_key: str = "spatial"
    spots_spatial_key: str = "spatial"
    transform: Sequence[float] | None = None
    max_distance: float = MAX_DISTANCE
    rng: int = 0

    def __post_init__(self) -> None:
        self._check(Integral, ("n_factors", 1, 1000), ("rng", 0, 2**32 - 1))
        self._check(Real, ("max_distance", 1e-9, 1e9))
        if self.transform is not None and len(self.matrix or ()) != 3:
            raise self._wrong("transform", "nine numbers, row by row, or a 3 x 3 matrix")

    def _check(self, kind: Any, *ranges: tuple[str, float, float]) -> None:
        for name, low, high in ranges:
            check_number(self.program, name, getattr(self, name), kind, (low, high))

    def _wrong(self, name: str, remedy: str) -> InputError:
        return wrong_parameter(self.program, name, getattr(self, name), remedy)

    @property
    def held(self) -> list[str]:
        """Names of the genes to hold out."""
        return []

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
        if not all(map(isfinite, numbers)):
            raise self._wrong("transform", "finite numbers")
        return [numbers[at : at + 3] for at in (0, 3, 6)] if len(numbers) == 9 else None

    @property
    def first_seed(self) -> int:
        """Seed of the first start: starts of two `rng` never share one."""
        return MOST_STARTS * self.rng

    def to_parameters(self) -> dict[str, Any]:
        """Return JSON-able keyword arguments that make this spec again."""
        return asdict(self) | {"transform": self.matrix}
