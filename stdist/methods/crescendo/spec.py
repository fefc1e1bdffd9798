"""Parameters of Crescendo, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from stdist.store import InputError


@dataclass(frozen=True)
class CrescendoSpec:
    """What `stdist.tl.crescendo` does, beyond the data; see there for the meaning of each field.

    Raises
    ------
    InputError
        If a number is out of its range.
    """

    batch_key: str
    clusters: str
    layer: str | None = None
    depth_key: str | None = None
    genes: Sequence[str] | None = None
    key_added: str = "crescendo"
    prior_sd: float = 1.0
    cluster_penalty: float = 0.01
    fit_cells: int = 20_000
    min_cells: int = 100
    merge_threshold: float = 0.99
    cap_outliers: bool = True
    rng: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("prior_sd", 0.0, 100.0),
            ("cluster_penalty", 0.0, 1e6),
            ("fit_cells", 0, 10**9),
            ("min_cells", 0, 10**9),
            ("merge_threshold", 0.0, float("inf")),
            ("rng", -1, 2**63),
        ):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not low < value <= high:
                raise _wrong(name, value, f"a number in ({low}, {high}]")
        if not isinstance(self.rng, Integral):
            raise _wrong("rng", self.rng, "a whole number: randomness is keyed, not drawn")
        if self.genes is not None:
            if isinstance(self.genes, str) or not len(self.genes):
                raise _wrong("genes", self.genes, "a list of gene names")
            object.__setattr__(self, "genes", tuple(map(str, self.genes)))

    def to_parameters(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self) | {"genes": None if self.genes is None else list(self.genes)}


def _wrong(name: str, value: Any, wanted: str) -> InputError:
    return InputError(
        "parameter-range",
        f"{name} is {value!r}, not {wanted}",
        place="crescendo",
        remedy=f"the default is {getattr(CrescendoSpec, name)}",
    )
