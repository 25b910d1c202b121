"""Bundles that once were published must load for ever: `tests/golden/bundle_v1` was made once and stays.

Never refresh it to make this test pass: a failure means that bundles in the field no longer load. When a new
schema version comes, leave this one, keep the reader of version 1, and add a directory beside it:

    python tests/policies/make_golden_bundle.py tests/golden/bundle_v2
"""

from pathlib import Path

import numpy as np
from policy_fixtures import tiny_observations, tiny_spec

from policies.exported import BundlePolicy

GOLDEN = Path(__file__).parents[1] / "golden" / "bundle_v1"


def test_the_version_1_bundle_loads_and_answers_as_on_its_first_day():
    policy = BundlePolicy.load(GOLDEN)  # verifies hashes and replays the golden samples
    assert policy.robot_spec == tiny_spec()
    assert (policy.frame_offsets, policy.action_horizon) == ((0,), 4)
    assert policy.provenance["exporter"]["opset"] == 20


def test_the_version_1_bundle_answers_fresh_observations_within_the_limits():
    policy = BundlePolicy.load(GOLDEN)
    actions = policy.predict(tiny_observations(5, seed=99))
    assert (np.abs(actions) <= np.maximum(policy.robot_spec.action_high, 0)).all()


def test_the_bundle_stays_small():
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 400_000
