"""Harmony against the programs it reimplements, and as a program over blocks."""

from __future__ import annotations

import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stdist
from stdist.graph import InProcess, make_plan, resume
from stdist.graph.executors import Resources
from stdist.methods.registry import build
from stdist.store import InputError, PlanRefused, RunStopped, StdistWarning, Store

KEY = "X_pca_harmony"


def simulated(n_cells=5000, n_dims=6, n_batches=3, seed=0):
    rng = np.random.default_rng(seed)
    batch, donor = rng.integers(0, n_batches, n_cells), rng.integers(0, 2, n_cells)
    types = rng.integers(0, 5, n_cells)
    values = rng.normal(0, 4, (5, n_dims))[types] + rng.normal(0, 1.5, (n_batches, n_dims))[batch]
    values += rng.normal(0, 1.5, (2, n_dims))[donor] + rng.normal(0, 1, (n_cells, n_dims))
    return anndata.AnnData(
        1 + rng.poisson(1.0, (n_cells, 3)).astype(np.float32),
        pd.DataFrame(
            {
                "batch": [f"b{i}" for i in batch],
                "donor": [f"d{i}" for i in donor],
                "cell_type": [f"t{i}" for i in types],
            },
            index=[f"c{i}" for i in range(n_cells)],
        ),
        obsm={"X_pca": values.astype(np.float32)},
    )


@pytest.fixture(scope="module")
def small_base(tmp_path_factory):
    path = tmp_path_factory.mktemp("harmony") / "small.zarr"
    stdist.io.write(simulated(), path)
    return path


@pytest.fixture
def small(small_base, tmp_path):
    return shutil.copytree(small_base, tmp_path / "small.zarr")


def bare(values, **obs):
    return anndata.AnnData(
        np.zeros((len(values), 1), np.float32),
        pd.DataFrame(obs, index=[str(i) for i in range(len(values))]),
        obsm={"X_pca": values},
    )


def rows(path, key=KEY):
    element = Store(path).element(f"obsm/{key}")
    return element.read(0, element.shape[0])


def agreement(found, expected):
    """Relative L2 distance, and the smallest correlation of a dimension."""
    pairs = zip(found.T, expected.T, strict=True)
    correlation = min(np.corrcoef(mine, other)[0, 1] for mine, other in pairs)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected), correlation


@pytest.mark.parametrize(
    ("flavour", "reference", "update"),
    [
        ("harmony2", "harmonypy_2_1_0_Z_corr", "jacobi"),
        ("harmony2", "harmonypy_2_1_0_Z_corr", "blocks"),
        ("harmony1", "R_reference_Z_corr", "jacobi"),
        pytest.param("harmony1", "R_reference_Z_corr", "blocks", marks=pytest.mark.slow),
    ],
)
def test_equals_the_published_results(shared, flavour, reference, update):
    golden = np.load(shared / "fixtures/sysvi/harmony_pbmc3500.npz")
    adata = bare(golden["Z"], batch=golden["batch"])
    stdist.pp.harmony(adata, batch_key="batch", flavour=flavour, update=update)
    distance, correlation = agreement(adata.obsm[KEY], golden[reference])
    assert distance < 0.05
    assert correlation > 0.995


def mixing(values, batch, labels=None):
    """Share of other batches, and of cells whose label their 30 neighbours vote for."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=31).fit(values).kneighbors(return_distance=False)[:, :30]
    mixed = (batch[index] != batch[:, None]).mean()
    if labels is None:
        return np.array([mixed])
    votes = np.array([np.bincount(near).argmax() for near in labels[index]])
    return np.array([mixed, (votes == labels).mean()])


@pytest.mark.parametrize(
    "name",
    [
        "starmap_visp_2rep",
        pytest.param("mousebrain_st_hippo1to4", marks=pytest.mark.slow),
        pytest.param("pbmc_ifn_kang", marks=pytest.mark.slow),
    ],
)
def test_equals_harmonypy_within_the_noise_of_its_seeds(shared, name):
    harmonypy = pytest.importorskip("harmonypy", minversion="2.1", reason="needs harmonypy")
    from sklearn.decomposition import PCA

    adata = anndata.read_h5ad(shared / "data" / f"{name}.h5ad")
    counts = adata.X.toarray()
    normal = np.log1p(counts * 1e3 / np.maximum(1, counts.sum(axis=1, keepdims=True)))
    values = PCA(20, random_state=0).fit_transform(normal).astype(np.float32)
    batch = pd.Categorical(adata.obs["batch"].astype(str)).codes
    labels = None
    if "cell_type" in adata.obs:
        labels = pd.Categorical(adata.obs["cell_type"].astype(str)).codes.astype(int)
    expected = [
        harmonypy.run_harmony(
            values, pd.DataFrame({"batch": batch}), "batch", verbose=False, random_state=seed
        ).Z_corr
        for seed in range(3)
    ]
    mine = bare(values, batch=batch)
    stdist.pp.harmony(mine, batch_key="batch")
    found = mine.obsm[KEY]
    between = [agreement(expected[i], expected[j])[0] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert np.mean([agreement(found, one)[0] for one in expected]) < 1.2 * max(between)
    scores = np.array([mixing(one, batch, labels) for one in expected])
    spread = scores.max(axis=0) - scores.min(axis=0)
    score = mixing(found, batch, labels)
    assert (score > scores.min(axis=0) - spread).all()
    assert (score < scores.max(axis=0) + spread).all()
    assert score[0] > mixing(values, batch)[0] + 0.2


def test_two_variables_equal_harmonypy(shared):
    harmonypy = pytest.importorskip("harmonypy", minversion="2.1", reason="needs harmonypy")
    adata = simulated()
    stdist.pp.harmony(adata, batch_key=["batch", "donor"], theta=[2.0, 1.0])
    expected = [
        harmonypy.run_harmony(
            adata.obsm["X_pca"],
            adata.obs,
            ["batch", "donor"],
            theta=[2.0, 1.0],
            verbose=False,
            random_state=seed,
        ).Z_corr
        for seed in range(2)
    ]
    distance, correlation = agreement(adata.obsm[KEY], expected[0])
    assert distance < max(1.2 * agreement(*expected)[0], 0.01)
    assert correlation > 0.995
    facts = adata.uns[KEY]
    assert list(facts["levels"]) == [
        "batch:b0",
        "batch:b1",
        "batch:b2",
        "donor:d0",
        "donor:d1",
    ]
    np.testing.assert_allclose(facts["observed"][:3].sum(), 5000, rtol=1e-6)
    np.testing.assert_allclose(facts["expected"].sum(axis=1), [*facts["observed"].sum(axis=1)])


@pytest.mark.parametrize("flavour", ["harmony1", "harmony2"])
def test_the_same_bits_for_any_blocks_and_workers(small, client, flavour):
    adata = simulated()
    options = {"batch_key": "batch", "keep_clusters": "R", "flavour": flavour}
    options |= {"max_iterations": 2, "inner_rounds": 4 if flavour == "harmony2" else 7}
    stdist.pp.harmony(adata, **options)
    for block_length, where in ((1024, None), (4096, None), (1024, client)):
        stdist.pp.harmony(small, block_length=block_length, client=where, overwrite=True, **options)
        np.testing.assert_array_equal(rows(small), adata.obsm[KEY])
        np.testing.assert_array_equal(rows(small, "R"), adata.obsm["R"])
    facts = Store(small).uns(KEY)
    np.testing.assert_array_equal(facts["objective"], adata.uns[KEY]["objective"])
    assert len(facts["inner_objective"]) == 1 + facts["rounds"].sum()
    weights = adata.obsm["R"]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    onehot = pd.get_dummies(adata.obs["batch"]).to_numpy(float)
    np.testing.assert_allclose(facts["observed"], onehot.T @ weights, rtol=1e-4, atol=1e-3)


def test_a_stopped_run_resumes_to_the_same_bits(small, small_base, tmp_path, monkeypatch):
    from stdist.preprocess import harmony_rounds

    whole = shutil.copytree(small_base, tmp_path / "whole.zarr")
    stdist.pp.harmony(whole, batch_key="batch", block_length=1024)
    calls = []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) > 33:  # in a round of the second iteration
            raise OSError(28, "no space left")
        return real(*arguments)

    real = harmony_rounds.round_pass
    monkeypatch.setattr(harmony_rounds, "round_pass", dies)
    with pytest.raises(RunStopped, match="disk-full"):
        stdist.pp.harmony(small, batch_key="batch", block_length=1024)
    monkeypatch.undo()
    resume(small, build, InProcess())
    np.testing.assert_array_equal(rows(small), rows(whole))
    for name in ("objective", "inner_objective", "rounds"):
        np.testing.assert_array_equal(Store(small).uns(KEY)[name], Store(whole).uns(KEY)[name])


def test_clusters_are_what_crescendo_takes(small):
    stdist.pp.harmony(
        small, batch_key="batch", n_clusters=20, keep_clusters="soft", clusters_dtype="float16"
    )
    assert rows(small, "soft").dtype == np.float16
    stdist.tl.crescendo(small, batch_key="batch", clusters="soft")
    assert Store(small).element("layers/crescendo").shape == (5000, 3)


def test_one_batch_is_copied_with_a_warning():
    adata = simulated(300)
    adata.obs["batch"] = "only"
    with pytest.warns(StdistWarning, match="one-batch"):
        stdist.pp.harmony(adata, batch_key="batch", keep_clusters="R")
    np.testing.assert_array_equal(adata.obsm[KEY], adata.obsm["X_pca"])
    np.testing.assert_allclose(adata.obsm["R"].sum(axis=1), 1, rtol=1e-6)


def test_few_cells_and_coinciding_rows_are_defined():
    values = np.repeat([[1.0, 0.0], [0.0, 1.0]], 20, axis=0)
    adata = bare(values, batch=np.tile(["a", "b"], 20))
    stdist.pp.harmony(adata, batch_key="batch", n_clusters=8)
    np.testing.assert_allclose(adata.obsm[KEY], values, atol=1e-5)
    lonely = bare(np.array([[1.0, 2.0], [2.0, 1.0]]), batch=["a", "b"])
    stdist.pp.harmony(lonely, batch_key="batch")
    assert np.isfinite(lonely.obsm[KEY]).all()


def broken(kind):
    adata = simulated(300)
    if kind == "labels-missing":
        adata.obs["batch"] = adata.obs["batch"].where(np.arange(300) != 7)
    elif kind == "embedding-nonfinite":
        adata.obsm["X_pca"][11, 2] = np.nan
    elif kind == "embedding-shape":
        adata.obsm["X_pca"] = sparse.csr_matrix(adata.obsm["X_pca"])
    return adata


@pytest.mark.parametrize("update", ["jacobi", "blocks"])
@pytest.mark.parametrize(
    ("code", "place"),
    [("labels-missing", "row 7"), ("embedding-nonfinite", "row 11"), ("embedding-shape", "X_pca")],
)
def test_wrong_data_are_refused(code, place, update):
    adata = broken(code)
    with pytest.raises(InputError) as caught:
        stdist.pp.harmony(adata, batch_key="batch", update=update)
    assert caught.value.code == code
    assert place in caught.value.place
    assert KEY not in adata.obsm


@pytest.mark.parametrize(
    "wrong",
    [
        {"flavour": "harmony3"},
        {"update": "sequential"},
        {"n_clusters": 301},
        {"n_clusters": 2.5},
        {"theta": [2.0, 1.0]},
        {"theta": -1.0},
        {"theta": "strong"},
        {"sigma": 0.0},
        {"sigma": float("nan")},
        {"lamb": 0.0},
        {"damping": 1.0},
        {"batch_key": []},
        {"batch_key": ["batch", "batch"]},
        {"keep_clusters": KEY},
        {"clusters_dtype": "int8"},
        {"inner_rounds": 0},
    ],
    ids=str,
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))) as caught:
        stdist.pp.harmony(simulated(300), **{"batch_key": "batch", **wrong})
    assert caught.value.code == "parameter-range"


@pytest.mark.parametrize("wrong", [{"batch_key": "sample"}, {"use_rep": "X_scvi"}])
def test_unknown_keys_are_refused(wrong):
    with pytest.raises(InputError) as caught:
        stdist.pp.harmony(simulated(300), **{"batch_key": "batch", **wrong})
    assert caught.value.code == "element-unknown"


def test_sequential_updates_of_too_many_cells_are_refused(small):
    worker = Resources(1, 400 * 2**20, 1, 150 * 2**20)
    program = build("harmony", {"data": str(small), "batch_key": "batch", "update": "blocks"})
    with pytest.raises(PlanRefused, match="harmony"):
        make_plan(program, worker)
    make_plan(build("harmony", {"data": str(small), "batch_key": "batch"}), worker)
