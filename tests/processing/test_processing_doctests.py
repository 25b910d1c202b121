import doctest
import importlib
from pathlib import Path

import pytest

import vla.processing

MODULES = sorted(
    path.stem for path in Path(vla.processing.__path__[0]).glob("*.py") if path.stem != "__init__"
)
WITH_EXAMPLES = {"quantile", "text", "uniform"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"vla.processing.{name}"))
    assert result.failed == 0
    assert (result.attempted > 0) == (name in WITH_EXAMPLES)
