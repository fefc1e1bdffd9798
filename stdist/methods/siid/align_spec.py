"""Parameters of the alignment of spots, and what its numbers allow to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from stdist.methods.siid.pair_spec import PairSpec

CERTAIN = 2.5
"""Standard errors that must fit into the tolerance."""
FEWEST_DRAWS = 0.95
"""Least share of the bootstrap's draws within the tolerance."""
LEAST_LEAD = 2.5
"""Standard errors by which the optimum must beat the best of the mirror images."""
FEWEST_BLOCKS = 6
"""Blocks of spots, below which a bootstrap over them says nothing."""


@dataclass(frozen=True, kw_only=True)
class AlignSpec(PairSpec):
    """What `stdist.tl.siid_align` does, beyond the data; see there for each field.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    program: ClassVar[str] = "siid_align"

    max_shift: float = 120.0
    max_angle: float = 1.0
    tolerance: float = 15.0
    sample_cells: int = 30_000
    n_starts: int = 3
    key_added: str = "siid_align"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(Integral, ("n_starts", 1, 100), ("sample_cells", 1024, 10**7))
        self._check(
            Real, ("max_shift", 1.0, 1e6), ("max_angle", 0.0, 45.0), ("tolerance", 1.0, 1e6)
        )


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
