"""Parameters of SIID, and their checks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from stdist.kernels.poisson_factors import Settings
from stdist.methods.siid.pair_spec import MOST_STARTS, PairSpec
from stdist.store import StdistWarning

ROUNDS = 3
"""E-steps while a tile is in memory: measured, a third of the passes for the same loss."""
EXPONENT = 1.8
"""Largest over-relaxation of the factors."""
N_FACTORS = 20
"""Factors where no number is given: those of the breast pair in the paper."""
MOST_SPOTS = 4
"""Spots that a cell may belong to."""

MOST_UPDATES = 64
"""Of the factors in a pass: the statistics of as many parts are kept."""
LARGEST_LOG_WEIGHT = 700
"""Beyond it the weight of entropy is too large for a number."""
EM_ONLY = (
    *("passes", "convergence_passes", "entropy", "entropy_passes"),
    *("updates_per_pass", "spots_model", "spot_scale", "shrink"),
)
ADAM_ONLY = ("learning_rate", "epochs", "entropy_schedule")
"""Parameters that only one of the solvers has."""


@dataclass(frozen=True, kw_only=True)
class SiidSpec(PairSpec):
    """What `stdist.tl.siid` does, beyond the data; see there for the meaning of each field.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    n_spots_per_cell: int = 1
    held_out: Sequence[str] | None = None
    controls: bool = True
    deconvolve: bool = True
    n_solutions: int = 6
    n_restarts: int = 8
    sample_cells: int = 10_000
    passes: int = 20
    updates_per_pass: int = 1
    convergence_passes: int = 500
    entropy: float = 20.0
    entropy_passes: int = 100
    solver: str = "em"
    learning_rate: float = 0.05
    epochs: int = 5001
    entropy_schedule: float = 1000.0
    spots_model: str = "poisson"
    spot_scale: str = "free"
    platform_scaling: bool = True
    shrink: bool = True
    l2: float | None = None
    key_added: str = "siid"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            Integral,
            ("n_spots_per_cell", 1, MOST_SPOTS),
            ("n_solutions", 1, 100),
            ("n_restarts", 1, MOST_STARTS),
            ("sample_cells", 1024, 10**7),
            ("passes", 1, 10**5),
            ("updates_per_pass", 1, MOST_UPDATES),
            ("convergence_passes", 1, 10**6),
            ("entropy_passes", 1, 10**5),
            ("epochs", 2, 10**6),
        )
        self._check(
            Real,
            ("entropy", 0, 1e6),
            ("learning_rate", 1e-9, 1e3),
            ("entropy_schedule", self.epochs / LARGEST_LOG_WEIGHT, 1e9),
            *((("l2", 0, 1e3),) if self.l2 is not None else ()),
        )
        for name, choices in (
            ("solver", ("em", "adam")),
            ("spots_model", ("poisson", "negative_binomial")),
            ("spot_scale", ("free", "tied")),
        ):
            if getattr(self, name) not in choices:
                raise self._wrong(name, f"one of {', '.join(map(repr, choices))}")
        for name in ADAM_ONLY if self.solver == "em" else EM_ONLY:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise self._wrong(name, f"the default: solver {self.solver!r} has no {name}")
        if self.n_solutions > self.n_restarts:
            raise self._wrong("n_solutions", f"at most n_restarts, {self.n_restarts}")
        if isinstance(self.held_out, str) or len(set(self.held)) < len(self.held):
            raise self._wrong("held_out", "a list of genes, each once")

    @property
    def held(self) -> list[str]:
        """Names of the genes to hold out."""
        return [] if self.held_out is None else [str(name) for name in self.held_out]

    @property
    def weight_l2(self) -> float:
        """Weight of squares; that of the paper is part of its solver."""
        if self.l2 is not None:
            return float(self.l2)
        return 1e-5 if self.solver == "adam" else 0.0

    def settings(self, entropy: float = 0.0) -> Settings:
        """How rows move in a pass."""
        tied = self.spot_scale == "tied"
        return Settings(rounds=ROUNDS, entropy=float(entropy), l2=self.weight_l2, tied=tied)

    def to_parameters(self) -> dict[str, Any]:
        """Return JSON-able keyword arguments that make this spec again."""
        return super().to_parameters() | {"held_out": self.held or None}


def number_of_factors(given: int | None) -> int:
    """Return the number that is given, or the default, and warn that it is one."""
    if given is not None:
        return given
    warnings.warn(
        f"[factors-default] n_factors is not given and {N_FACTORS}: more impute a little better, "
        "types in the spots want as many as there are (see siid_choose_factors)",
        StdistWarning,
        stacklevel=3,
    )
    return N_FACTORS
