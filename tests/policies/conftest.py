import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # so that the tests of this folder share policy_fixtures

from policy_fixtures import tiny_observations, tiny_processor


@pytest.fixture(scope="session")
def processor():
    return tiny_processor()


@pytest.fixture(scope="session")
def observations():
    return tiny_observations(6)


@pytest.fixture(scope="session")
def parallel_export(processor, observations, tmp_path_factory):
    """The report of one export of the tiny parallel model; tests copy its directory before they damage it."""
    from policy_models import tiny_model  # here: a robot's computer has no torch, and runs the other tests

    from policies.export import export_bundle

    return export_bundle(
        model=tiny_model(processor),
        processor=processor,
        provenance={"checkpoint_id": "0" * 64, "git_revision": "none"},
        out_dir=tmp_path_factory.mktemp("exports") / "parallel",
        golden_observations=observations,
    )
