"""Every head: the bundle answers as the model does, with and without committed actions, and without torch."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from policy_fixtures import tiny_observations, tiny_processor
from policy_models import tiny_model

import policies.export
from policies.conformance import MAX_ACTION_DIFFERENCE, compare_policies
from policies.export import export_bundle
from policies.exported import BundlePolicy
from policies.vla_policy import VLAPolicy

ROOT = Path(__file__).parents[2]
CODECS = {
    "fast": {"kind": "fast", "scale": 3.0, "vocab_size": 64},
    "flow": {"kind": "continuous"},
}


def export(folder, head, *, max_committed):
    """A policy of random weights, and the bundle that it was exported to."""
    processor = tiny_processor(frame_offsets=(4, 0), max_committed=max_committed, codec=CODECS[head])
    model = tiny_model(processor, head=head)
    report = export_bundle(
        model=model,
        processor=processor,
        provenance={},
        out_dir=folder / "bundle",
        golden_observations=tiny_observations(6, num_frames=2),
    )
    return VLAPolicy(model=model, processor=processor), report.directory


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Each head once: an export takes ten seconds."""
    return {
        "fast": export(tmp_path_factory.mktemp("fast"), "fast", max_committed=0),
        "flow": export(tmp_path_factory.mktemp("flow"), "flow", max_committed=2),
    }


@pytest.mark.parametrize("head", list(CODECS))
def test_the_bundle_equals_the_model(exports, head):
    policy, directory = exports[head]
    bundle, fresh = BundlePolicy.load(directory), tiny_observations(20, num_frames=2, seed=9)
    free = policy.predict(fresh)
    assert len(np.unique(free.reshape(20, -1).round(6), axis=0)) > 5, "a constant policy would prove nothing"
    assert compare_policies(policy, bundle, fresh, batch_size=7).passed
    if head == "flow":
        given = [
            dataclasses.replace(observation, committed=chunk[: i % 3])
            for i, (observation, chunk) in enumerate(zip(fresh, free[::-1], strict=True))
        ]
        comparison = compare_policies(policy, bundle, given)
        assert comparison.passed, comparison.table()
        assert (policy.predict(given) != free).any(), "what is committed counts"


def test_flow_keeps_committed_actions_and_its_noise_is_seeded(exports):
    policy, directory = exports["flow"]
    (one,) = tiny_observations(1, num_frames=2)
    committed = policy.predict(tiny_observations(1, num_frames=2, seed=4))[0, :2]
    given = dataclasses.replace(one, committed=committed)
    np.testing.assert_allclose(policy.predict([given])[0, :2], committed, atol=1e-6)
    same, other = (
        BundlePolicy.load(directory, verify=False, noise_seed=seed).predict([one]) for seed in (0, 1)
    )
    span = policy.robot_spec.action_high - policy.robot_spec.action_low
    assert (np.abs(same - policy.predict([one])) / span).max() <= MAX_ACTION_DIFFERENCE
    assert (other != same).any()


@pytest.mark.parametrize("head", list(CODECS))
def test_a_bundle_of_any_head_needs_no_torch(exports, head):
    _, directory = exports[head]
    program = f"""
import sys
from policies.exported import BundlePolicy
policy = BundlePolicy.load({str(directory)!r})
assert not {{"torch", "onnx", "mujoco", "hydra"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_export_that_swaps_the_history_fails(tmp_path, monkeypatch):
    """The golden moments have two different frames, so that a graph with the frames swapped is found out."""
    whole = policies.export.export_graph

    def with_swapped_frames(model, *, processor, inputs):
        return whole(_swapped(copy.deepcopy(model)), processor=processor, inputs=inputs)

    monkeypatch.setattr(policies.export, "export_graph", with_swapped_frames)
    with pytest.raises(policies.export.ParityError, match="DIFFERENT"):
        export(tmp_path, "flow", max_committed=0)


def _swapped(model):
    order = [2, 3, 0, 1]
    prefill = model.backbone.prefill
    model.backbone.prefill = lambda inputs: prefill({**inputs, "images": inputs["images"][:, order]})
    return model
