"""Parameters of Harmony, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from stdist.kernels.harmony_settings import FLAVOURS, Settings, Strata, make_settings
from stdist.methods.checks import check_number, wrong_parameter
from stdist.store import InputError

CELLS_PER_CLUSTER, MOST_CLUSTERS = 30, 100
UPDATES = ("jacobi", "blocks")
CLUSTERS_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class HarmonySpec:
    """What `stdist.pp.harmony` does, beyond the data; see there for the meaning of each field.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    batch_key: str | Sequence[str]
    use_rep: str = "X_pca"
    key_added: str = "X_pca_harmony"
    flavour: str = "harmony2"
    theta: Sequence[float] | float = 2.0
    sigma: float = 0.1
    lamb: Sequence[float] | float | None = None
    tau: float = 0.0
    n_clusters: int | None = None
    max_iterations: int = 10
    inner_rounds: int | None = None
    epsilon_cluster: float | None = None
    epsilon_harmony: float | None = None
    update: str = "jacobi"
    damping: float | None = None
    keep_clusters: str | None = None
    clusters_dtype: str = "float32"
    rng: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("flavour", tuple(FLAVOURS)),
            ("update", UPDATES),
            ("clusters_dtype", CLUSTERS_DTYPES),
        ):
            if getattr(self, name) not in choices:
                raise self._wrong(name, f"one of {', '.join(choices)}")
        for name, low, high in (
            ("sigma", 1e-3, 1e3),
            ("tau", 0, 1e12),
            ("epsilon_cluster", -1, 1),
            ("epsilon_harmony", -1, 1),
            ("damping", 0, 0.999),
        ):
            if getattr(self, name) is not None:
                check_number("harmony", name, getattr(self, name), Real, (low, high))
        for name, low, high in (
            ("n_clusters", 1, 2**15),
            ("max_iterations", 1, 1000),
            ("inner_rounds", 1, 100),
            ("rng", 0, 2**32 - 1),
        ):
            if getattr(self, name) is not None:
                check_number("harmony", name, getattr(self, name), Integral, (low, high))
        if not self.keys or len(set(self.keys)) < len(self.keys):
            raise self._wrong("batch_key", "one or more different columns of obs")
        if len(self.thetas) != len(self.keys):
            raise self._wrong("theta", "one number, or one for each batch variable")
        for theta in self.thetas:
            check_number("harmony", "theta", theta, Real, (0, 1e6))
        if self.lambs is not None and len(self.lambs) != len(self.keys):
            raise self._wrong("lamb", "one number, or one for each batch variable")
        for lamb in self.lambs or ():
            check_number("harmony", "lamb", lamb, Real, (1e-12, 1e12))
        if self.keep_clusters == self.key_added:
            raise self._wrong("keep_clusters", "a key of its own")

    def _wrong(self, name: str, remedy: str) -> InputError:
        return wrong_parameter("harmony", name, getattr(self, name), remedy)

    @property
    def keys(self) -> list[str]:
        """Columns of ``obs``."""
        return [self.batch_key] if isinstance(self.batch_key, str) else list(self.batch_key)

    @property
    def thetas(self) -> list[float]:
        """Diversity penalty of each variable."""
        return self._numbers("theta")

    @property
    def lambs(self) -> list[float] | None:
        """Ridge penalty of each variable."""
        return None if self.lamb is None else self._numbers("lamb")

    def _numbers(self, name: str) -> list[float]:
        """One number for each variable; the command line gives them as text."""
        value = getattr(self, name)
        given = [value] if isinstance(value, Real) else list(value)
        try:
            numbers = [float(value) for value in given]
        except (TypeError, ValueError):
            raise self._wrong(name, "numbers") from None
        return numbers * len(self.keys) if len(numbers) == 1 else numbers

    def cluster_number(self, n_cells: int) -> int:
        """Return the number of clusters for so many cells.

        Raises
        ------
        InputError
            If there are more clusters than cells.
        """
        if self.n_clusters is None:
            return max(1, min(round(n_cells / CELLS_PER_CLUSTER), MOST_CLUSTERS))
        if self.n_clusters > n_cells:
            raise self._wrong("n_clusters", f"at most the number of cells, {n_cells}")
        return self.n_clusters

    def settings(self, strata: Strata, n_clusters: int) -> Settings:
        """Return the parameters as the kernels take them."""
        return make_settings(
            self.flavour,
            strata,
            n_clusters,
            theta=self.thetas,
            tau=self.tau,
            sigma=self.sigma,
            ridge=self.lambs,
            damping=self.damping,
            inner_rounds=self.inner_rounds,
            inner_tolerance=self.epsilon_cluster,
            tolerance=self.epsilon_harmony,
        )

    def to_parameters(self) -> dict[str, Any]:
        """Return JSON-able keyword arguments that make this spec again."""
        keys, thetas, lambs = self.keys, self.thetas, self.lambs
        one = len(keys) == 1
        return asdict(self) | {
            "batch_key": keys[0] if one else keys,
            "theta": thetas[0] if one else thetas,
            "lamb": lambs[0] if one and lambs else lambs,
        }
