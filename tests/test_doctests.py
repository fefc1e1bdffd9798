"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import stdist

# stdist.graph is found twice: as a package of stdist and behind the symlink; once is enough
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(stdist.__path__, "stdist.")
    if not module.name.endswith(("__main__", "poisson_match_cuda"))
)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.failed == 0
