"""Parameters of the alignment of spots, and what its numbers allow to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from stdist.kernels.spot_map import MAX_DISTANCE
from stdist.methods.checks import check_number
from stdist.methods.siid.spec import SiidSpec

CERTAIN = 2.5
"""Standard errors that must fit into the tolerance."""
FEWEST_DRAWS = 0.95
"""Least share of the bootstrap's draws within the tolerance."""
LEAST_LEAD = 2.5
"""Standard errors by which the optimum must beat the best of the mirror images."""
FEWEST_BLOCKS = 6
"""Blocks of spots, below which a bootstrap over them says nothing."""


@dataclass(frozen=True)
class AlignSpec:
    """What `stdist.tl.siid_align` does, beyond the data; see there for each field.

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
    max_shift: float = 120.0
    max_angle: float = 1.0
    tolerance: float = 15.0
    sample_cells: int = 30_000
    n_starts: int = 3
    key_added: str = "siid_align"
    rng: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("n_starts", 1, 100), ("sample_cells", 1024, 10**7)):
            check_number("siid_align", name, getattr(self, name), Integral, (low, high))
        for name, low, high in (
            ("max_shift", 1.0, 1e6),
            ("max_angle", 0.0, 45.0),
            ("tolerance", 1.0, 1e6),
        ):
            check_number("siid_align", name, getattr(self, name), Real, (low, high))
        self.pair  # noqa: B018  (checks the other fields)

    @property
    def pair(self) -> SiidSpec:
        """How the slides are read."""
        return SiidSpec(
            n_factors=self.n_factors,
            layer=self.layer,
            spots_layer=self.spots_layer,
            spatial_key=self.spatial_key,
            spots_spatial_key=self.spots_spatial_key,
            transform=self.transform,
            max_distance=self.max_distance,
            rng=self.rng,
        )

    def to_parameters(self) -> dict[str, Any]:
        """Return JSON-able keyword arguments that make this spec again."""
        return asdict(self) | {"transform": self.pair.matrix}


def doubts(found: Mapping[str, Any], spec: AlignSpec, step: float) -> list[str]:
    """Why a move cannot be trusted; empty if it can.

    Parameters
    ----------
    found
        Of `stdist.methods.siid.align_fit.join_starts`.
    spec
        With the tolerance.
    step
        A move as near as this to the largest allowed one lies on the border, um.
    """
    error, move = float(found["standard_error"]), np.asarray(found["move"])
    tolerance, reasons = spec.tolerance, []
    if found["n_blocks"] < FEWEST_BLOCKS:
        reasons.append(f"only {int(found['n_spots'])} spots, too few for an error")
    if error > tolerance / CERTAIN:
        reasons.append(
            f"its standard error is {error:.1f} um, more than {tolerance / CERTAIN:g} um"
        )
    if found["share"] < FEWEST_DRAWS:
        reasons.append(
            f"{1 - float(found['share']):.0%} of the draws of spots have their optimum more than "
            f"{tolerance:g} um away"
        )
    if found["halves"] > tolerance:
        reasons.append(f"two halves of the genes differ by {float(found['halves']):.0f} um")
    if found["lead"] < LEAST_LEAD:
        reasons.append(
            f"it explains the spots hardly better than mirror images of the slide "
            f"({float(found['lead']):.1f} standard errors)"
        )
    turn = float(found["max_turn"])
    if np.hypot(*move[:2]) > spec.max_shift - step or 0 < turn <= abs(move[2]) + 1e-9:
        reasons.append("it lies on the border of the search")
    return reasons
