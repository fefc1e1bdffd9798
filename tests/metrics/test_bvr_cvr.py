"""The public metric against lme4's glmer, and the same for a store and in memory."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

import stdist
from stdist.store import InputError


@pytest.fixture
def real(shared):
    """Ten genes of 2000 cells before and after the reference's correction, and glmer's fits."""
    folder = shared / "fixtures" / "crescendo"
    known = np.load(folder / "real_a.npz")
    adata = anndata.AnnData(known["counts"].astype(np.float32))
    adata.var_names = known["genes"].astype(str)
    adata.layers["after"] = known["draw_reference"].astype(np.float32)
    adata.obs["batch"] = known["batch"].astype(str)
    adata.obs["type"] = known["celltype"].astype(str)
    adata.obs["numi"] = known["numi"]
    fits = pd.read_csv(folder / "glmer_prepost_a.csv.gz")
    return adata, fits[fits["case"] == "real_a"]


def test_variances_are_those_of_glmer(real):
    adata, fits = real
    keys = {"batch_key": "batch", "label_key": "type", "depth_key": "numi", "layer": "after"}
    table = stdist.metrics.bvr_cvr(adata, **keys)
    assert len(fits)
    for when, which in (("before", "pre"), ("after", "post")):
        wanted = fits[fits["which"] == which].set_index("gene").loc[table.index]
        batch = wanted["var_batch"] + wanted["var_inter"]
        np.testing.assert_allclose(table[f"batch_variance_{when}"], batch, rtol=5e-3, atol=1e-6)
        np.testing.assert_allclose(
            table[f"type_variance_{when}"], wanted["var_celltype"], rtol=5e-3, atol=1e-6
        )


def test_store_and_memory_agree(real, tmp_path):
    adata, _ = real
    keys = {"batch_key": "batch", "label_key": "type", "depth_key": "numi", "layer": "after"}
    stdist.io.write(adata, tmp_path / "real.zarr")
    on_disk = stdist.metrics.bvr_cvr(tmp_path / "real.zarr", **keys)
    pd.testing.assert_frame_equal(on_disk, stdist.metrics.bvr_cvr(adata, **keys))


def test_gaussian_ratios_of_a_rescaled_layer(real, tmp_path):
    adata = real[0].copy()
    counts = np.asarray(adata.X, float)
    values = np.log1p(1e4 * counts / adata.obs["numi"].to_numpy(float)[:, None])
    adata.layers["log"] = values
    adata.layers["after"] = 0.5 * values + 3
    adata.layers["after"][:, 0] = values[:, 0]
    keys = {"batch_key": "batch", "label_key": "type", "before": "log", "layer": "after"}
    table = stdist.metrics.bvr_cvr(adata, family="gaussian", **keys)
    flat = table["no_batch_variance"].to_numpy()
    np.testing.assert_allclose(table["bvr"][~flat], np.r_[1, [0.25] * 9][~flat], rtol=1e-3)
    assert table["bvr"][flat].isna().all()
    total = values.var(axis=0, ddof=1)
    assert (table["batch_variance_before"][flat] < 2e-3 * total[flat]).all()
    stdist.io.write(adata, tmp_path / "real.zarr")
    on_disk = stdist.metrics.bvr_cvr(tmp_path / "real.zarr", family="gaussian", **keys)
    pd.testing.assert_frame_equal(on_disk, table)


def test_genes_at_the_floor_have_no_ratio():
    rng = np.random.default_rng(0)
    kind, batch = rng.integers(0, 4, 4000), rng.integers(0, 3, 4000)
    rates = np.column_stack([np.exp(0.4 * kind), np.exp(0.4 * kind + 0.8 * (batch == 1))])
    adata = anndata.AnnData(rng.poisson(rates).astype(np.float32))
    adata.obs["batch"], adata.obs["type"] = batch.astype(str), kind.astype(str)
    adata.obs["one"] = 1.0
    adata.layers["after"] = adata.X
    keys = {"batch_key": "batch", "label_key": "type", "layer": "after"}
    table = stdist.metrics.bvr_cvr(adata, depth_key="one", **keys)
    assert table["no_batch_variance"].tolist() == [True, False]
    assert np.isnan(table["bvr"].iloc[0])
    assert table["bvr"].iloc[1] == pytest.approx(1)
    assert not table["in_zone"].iloc[0]


def fractional(adata):
    adata.layers["after"] = adata.layers["after"] + 0.5


def unlabelled(adata):
    adata.obs["type"] = [None, *["x", "y"] * 999, "x"]


def nested(adata):
    adata.obs["type"] = adata.obs["batch"].to_numpy()


def one_batch(adata):
    adata.obs["batch"] = "one"


def test_the_family_is_checked(real):
    keys = {"batch_key": "batch", "label_key": "type", "layer": "after"}
    for options in ({"family": "binomial"}, {"family": "gaussian", "depth_key": "numi"}):
        with pytest.raises(InputError, match="family"):
            stdist.metrics.bvr_cvr(real[0], **keys, **options)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("counts-fractional", fractional),
        ("labels-missing", unlabelled),
        ("groups-unusable", nested),
        ("groups-too-few", one_batch),
    ],
)
def test_wrong_input_is_named(real, code, change):
    adata = real[0].copy()
    change(adata)
    with pytest.raises(InputError) as caught:
        stdist.metrics.bvr_cvr(adata, layer="after", batch_key="batch", label_key="type")
    assert caught.value.code == code
