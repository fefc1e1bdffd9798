"""Parameters of Crescendo, and their checks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from stdist.kernels.cluster_merge import MERGE_THRESHOLD
from stdist.store import InputError

MEAN_FACTOR = 0.05
"""Lambda over a gene's mean count, for ``lam="mean"``."""
RELEASED = {
    "lam": None,
    "lam_rule": "reference",
    "penalize": "all",
    "marginal": "reference",
    "main_effects": "drop",
    "match": "reference",
    "margin": "poisson",
    "source_offset": "final",
    "target_offset": "median",
    "fit_cells": None,
    "min_cells": 50,
    "merge_threshold": MERGE_THRESHOLD,
    "skip_unaffected": False,
    "quasi_poisson": False,
    "skip_absent": False,
    "impute_missing": False,
    "keep": None,
    "interval": None,
}
"""What ``compat="reference"`` sets."""
RELEASED_PROP = 0.1
"""Share of the cells that the released program fits to, whatever share other than 1 is asked."""


@dataclass(frozen=True)
class CrescendoSpec:
    """What `stdist.tl.crescendo` does, beyond the data; see there for the meaning of each field.

    Raises
    ------
    InputError
        If a value is out of its range, or two parameters exclude each other.
    """

    batch_key: str
    clusters: str
    layer: str | None = None
    depth_key: str | None = None
    genes: Sequence[str] | None = None
    key_added: str = "crescendo"
    prior_sd: float = 1.0
    cluster_penalty: float = 0.01
    lam: str | float | None = None
    lam_rule: str | None = None
    penalize: str = "all"
    keep: Sequence[str] | None = None
    keep_interactions: bool = False
    fit_cells: int | None = 20_000
    prop: float | None = None
    min_cells: int = 100
    merge_threshold: float = 0.99
    main_effects: str = "fold"
    marginal: str = "interquartile"
    source_offset: str = "observed"
    target_offset: str | float = "observed"
    match: str = "pit"
    margin: str = "poisson"
    cap_outliers: bool = True
    interval: float | None = None
    skip_unaffected: bool = True
    quasi_poisson: bool = True
    skip_absent: bool = False
    impute_missing: bool = False
    use_rep: str = "X_pca_harmony"
    n_neighbors: int = 30
    compat: str | None = None
    rng: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("prior_sd", 0.0, 100.0),
            ("cluster_penalty", 0.0, 1e6),
            ("fit_cells", 0, 10**9),
            ("prop", 0.0, 1.0),
            ("min_cells", 0, 10**9),
            ("n_neighbors", 0, 1000),
            ("merge_threshold", 0.0, float("inf")),
            ("rng", -1, 2**63),
        ):
            value = getattr(self, name)
            if value is None and name in ("fit_cells", "prop"):
                continue
            if not isinstance(value, Real) or isinstance(value, bool) or not low < value <= high:
                raise _wrong(name, value, f"a number in ({low}, {high}]")
        if not isinstance(self.rng, Integral):
            raise _wrong("rng", self.rng, "a whole number: randomness is keyed, not drawn")
        if self.interval is not None and not (_is_number(self.interval) and 0 < self.interval < 1):
            raise _wrong("interval", self.interval, "a number in (0, 1)")
        for name, choices in (
            ("lam_rule", (None, "exact", "reference")),
            ("penalize", ("all", "batch")),
            ("main_effects", ("drop", "fold")),
            ("marginal", ("interquartile", "arithmetic", "reference")),
            ("source_offset", ("observed", "final")),
            ("match", ("pit", "reference")),
            ("margin", ("poisson", "negative_binomial")),
            ("compat", (None, "reference")),
        ):
            if getattr(self, name) not in choices:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(map(repr, choices))}")
        for name, thing in (("genes", "gene names"), ("keep", "columns of obs")):
            value = getattr(self, name)
            if value is not None:
                if isinstance(value, str) or not len(value):
                    raise _wrong(name, value, f"a list of {thing}")
                object.__setattr__(self, name, tuple(dict.fromkeys(map(str, value))))
        if self.compat is not None:
            self._take_released()
        object.__setattr__(self, "target_offset", _plain(self.target_offset))
        object.__setattr__(self, "lam", _plain(self.lam))
        self._check_lambda()
        self._check_offset()
        self._check_conflicts()

    def _take_released(self) -> None:
        """Set what the released program does; refuse to be told otherwise."""
        prop_wanted = self.prop in (None, 1.0, RELEASED_PROP)
        for name, value in RELEASED.items():
            if getattr(self, name) not in (_DEFAULTS[name], value):
                raise _conflict(
                    f"compat='reference' sets {name} to {value!r}, not {getattr(self, name)!r}",
                    f"leave out {name}, or compat",
                )
            object.__setattr__(self, name, value)
        if not prop_wanted:
            raise _conflict(
                f"the released program fits to all cells or to {RELEASED_PROP} of them, whatever "
                f"the share; prop is {self.prop}",
                f"leave out prop, give prop={RELEASED_PROP}, or leave out compat",
            )

    def _check_lambda(self) -> None:
        if self.lam is None:
            return
        if isinstance(self.lam, str):
            if self.mean_factor is None:
                raise _wrong("lam", self.lam, "a positive number, 'mean' or 'NUMBER*mean'")
        elif not _is_number(self.lam) or not 0 < self.lam < float("inf"):
            raise _wrong("lam", self.lam, "a positive number, 'mean' or 'NUMBER*mean'")

    def _check_offset(self) -> None:
        target = self.target_offset
        if isinstance(target, str):
            if not target or target == "batch:":
                wanted = "'observed', 'median', 'batch:NAME', a number or a column of obs"
                raise _wrong("target_offset", target, wanted)
        elif not _is_number(target) or not 0 < target < 2.0**31:
            raise _wrong("target_offset", target, "a positive depth in UMI (no logarithm)")

    def _check_conflicts(self) -> None:
        ridge = self.lam is not None or self.lam_rule is not None
        for found, problem, remedy in (
            (
                self.lam is not None and self.lam_rule is not None,
                "lam gives lambda, lam_rule finds it",
                "leave out one of them",
            ),
            (
                self.penalize == "batch" and self.lam is None,
                "penalize='batch' weighs the penalty of a given lambda",
                "give lam: a number or 'mean'",
            ),
            (
                ridge and self.prior_sd != _DEFAULTS["prior_sd"],
                "prior_sd is a penalty of its own, in place of lambda",
                "leave out prior_sd, or lam and lam_rule",
            ),
            (
                self.prop is not None and self.fit_cells not in (None, _DEFAULTS["fit_cells"]),
                "prop and fit_cells both say how many cells to fit to",
                "leave out one of them",
            ),
            (
                self.keep_interactions and not self.keep,
                "keep_interactions has no columns to keep",
                "name them in keep",
            ),
            (
                bool(set(self.keep or ()) & {self.batch_key, self.clusters}),
                "keep names the batches or the clusters",
                "keep other columns: clusters are kept in any case, batches removed",
            ),
            (
                self.interval is not None and (self.match, self.margin) != ("pit", "poisson"),
                "an interval is defined for match='pit' between Poisson distributions",
                "leave out interval, or match and margin",
            ),
            (
                self.impute_missing and (self.skip_absent or self.interval is not None),
                "impute_missing gives counts to genes that a batch lacks, and no interval",
                "leave out skip_absent and interval, or impute_missing",
            ),
            (
                self.margin != "poisson" and self.match != "pit",
                "the released rule matches Poisson distributions",
                "leave out margin or match",
            ),
        ):
            if found:
                raise _conflict(problem, remedy)

    @property
    def mean_factor(self) -> float | None:
        """Lambda over the mean count of a gene, where `lam` says so."""
        if not isinstance(self.lam, str):
            return None
        match = re.fullmatch(r"(?:([0-9.eE+-]+)\s*\*\s*)?mean", self.lam.strip())
        factor = _plain(match[1] or MEAN_FACTOR) if match else None
        return factor if _is_number(factor) and 0 < factor < float("inf") else None

    @property
    def changes_depth(self) -> bool:
        """Whether counts are corrected to another depth than that of their cell."""
        return self.target_offset != "observed" and self.source_offset == "observed"

    @property
    def share(self) -> float | None:
        """Share of the cells to fit to; None where their number is given."""
        return self.prop if self.prop is not None else 1.0 if self.fit_cells is None else None

    @property
    def all_cells(self) -> bool:
        """Whether the normal prior is fitted to all cells, in passes (a ridge gathers them)."""
        return self.share == 1.0 and self._has_prior

    @property
    def tests_genes(self) -> bool:
        """Whether genes are tested for a batch effect before the fit."""
        return self.skip_unaffected or (self.quasi_poisson and self._has_prior)

    @property
    def _has_prior(self) -> bool:
        return self.lam is None and self.lam_rule is None

    def to_parameters(self) -> dict[str, Any]:
        """Return JSON-able values."""
        lists = {
            name: None if getattr(self, name) is None else list(getattr(self, name))
            for name in ("genes", "keep")
        }
        return asdict(self) | lists


_DEFAULTS = {
    field.name: field.default for field in fields(CrescendoSpec) if field.default is not MISSING
}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Text of a number, as the command line gives it, as that number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _wrong(name: str, value: Any, wanted: str) -> InputError:
    return InputError(
        "parameter-range",
        f"{name} is {value!r}, not {wanted}",
        place="crescendo",
        remedy=f"the default is {_DEFAULTS[name]}",
    )


def _conflict(problem: str, remedy: str) -> InputError:
    return InputError("parameter-conflict", problem, place="crescendo", remedy=remedy)
