"""Parameters of Crescendo, and their checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
    genes: tuple[str, ...] | None = None
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
        ):
            value = getattr(self, name)
            if not low < value <= high:
                raise InputError(
                    "parameter-range",
                    f"{name} is {value}, not in ({low}, {high}]",
                    place="crescendo",
                    remedy=f"the default is {getattr(type(self), name)}",
                )
        if self.genes is not None:
            object.__setattr__(self, "genes", tuple(self.genes))

    def to_parameters(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self) | {"genes": None if self.genes is None else list(self.genes)}
