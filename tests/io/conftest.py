from __future__ import annotations

import pytest

ANNDATA_OWN = (
    "ignore:.*:FutureWarning:anndata",
    "ignore:.*:UserWarning:anndata",
    "ignore:.*:DeprecationWarning:anndata",
    "ignore:.*Consolidated metadata.*",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/io" in str(item.path):
            for rule in ANNDATA_OWN:
                item.add_marker(pytest.mark.filterwarnings(rule))
