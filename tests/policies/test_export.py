import dataclasses
import warnings

import numpy as np
import pytest
import torch
from policy_fixtures import tiny_observations, tiny_processor
from policy_models import tiny_model

import policies.export
import policies.export_graph
from policies.conformance import compare_policies
from policies.export import ParityError, export_bundle
from policies.exported import BundlePolicy
from policies.vla_policy import VLAPolicy
from vla.files import verify_manifest


def export(model, processor, out_dir, observations, **options):
    return export_bundle(
        model=model,
        processor=processor,
        provenance={"checkpoint_id": "1" * 64},
        out_dir=out_dir,
        golden_observations=observations,
        **options,
    )


def test_a_parallel_model_exports_to_an_equal_bundle(parallel_export, processor):
    policy, fresh = VLAPolicy(model=tiny_model(processor), processor=processor), tiny_observations(40, seed=7)
    comparison = compare_policies(policy, BundlePolicy.load(parallel_export.directory), fresh, batch_size=7)
    assert comparison.passed, comparison.table()
    assert comparison.num_tokens == 40 * 4 * 3
    assert len(np.unique(policy.answer(fresh)["bins"])) > 4, "a constant policy would prove nothing"


def test_an_autoregressive_model_with_history_exports_to_an_equal_bundle(tmp_path):
    processor = tiny_processor(frame_offsets=(4, 0))
    model = tiny_model(processor, head="autoregressive")
    golden = tiny_observations(4, num_frames=2)
    report = export(model, processor, tmp_path / "bundle", golden)
    policy, fresh = VLAPolicy(model=model, processor=processor), tiny_observations(30, num_frames=2, seed=8)
    comparison = compare_policies(policy, BundlePolicy.load(report.directory), fresh)
    assert comparison.passed, comparison.table()
    bins = policy.answer(fresh)["bins"]
    assert len(np.unique(bins.reshape(30, -1), axis=0)) > 10, "a constant policy would prove nothing"


@pytest.mark.parametrize("head", ["parallel", "autoregressive"])
def test_committed_actions_mean_the_same_to_model_and_bundle(tmp_path, head):
    processor = tiny_processor(max_committed=2)
    model = tiny_model(processor, head=head)
    report = export(model, processor, tmp_path / "bundle", tiny_observations(6))
    exported = BundlePolicy.load(report.directory)  # replays; half of the samples are committed
    policy, fresh = VLAPolicy(model=model, processor=processor), tiny_observations(20, seed=9)
    free = policy.predict(fresh)
    given = [
        dataclasses.replace(observation, committed=chunk[: i % 3])
        for i, (observation, chunk) in enumerate(zip(fresh, free[::-1], strict=True))
    ]
    comparison = compare_policies(policy, exported, given)
    assert comparison.passed, comparison.table()
    for observation, chunk in zip(given, exported.predict(given), strict=True):
        np.testing.assert_array_equal(chunk[: len(observation.committed)], observation.committed)
    assert (exported.predict(given) != free).any()


def test_a_bf16_model_is_exported_in_fp32_and_left_alone(tmp_path, processor, observations):
    model = tiny_model(processor).to(torch.bfloat16)
    report = export(model, processor, tmp_path / "bundle", observations)
    assert report.comparison.passed
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_report_says_what_was_measured(parallel_export):
    table = parallel_export.table()
    assert "equal tokens" in table
    assert str(parallel_export.directory) in table
    assert "yaw" in table
    assert parallel_export.comparison.max_action_difference == 0.0


def test_provenance_names_the_exporter_and_no_file_holds_a_local_path(parallel_export):
    provenance = verify_manifest(parallel_export.directory)["provenance"]
    assert provenance["checkpoint_id"] == "0" * 64
    assert provenance["exporter"]["torch"] == torch.__version__
    assert provenance["exporter"]["opset"] == 20
    for path in parallel_export.directory.iterdir():
        assert b"vla/model" not in path.read_bytes(), path.name


def test_a_graph_that_differs_is_not_published(tmp_path, processor, observations, monkeypatch):
    graph = policies.export.export_graph

    def export_other_model(model, **options):
        other = tiny_model(processor)
        with torch.no_grad():
            other.head.bin_logits.residual.bias[::16] += 100.0
        return graph(other, **options)

    monkeypatch.setattr(policies.export, "export_graph", export_other_model)
    with pytest.raises(ParityError, match="DIFFERENT"):
        export(tiny_model(processor), processor, tmp_path / "bundle", observations)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_not_overwritten_unasked(parallel_export, processor, observations):
    with pytest.raises(FileExistsError, match="exists"):
        export(tiny_model(processor), processor, parallel_export.directory, observations)


def test_observations_with_near_ties_are_left_out_of_the_golden_samples(tmp_path, processor, observations):
    model = tiny_model(processor)
    with torch.no_grad():
        model.head.bin_logits.residual.weight.zero_()
        model.head.bin_logits.residual.bias.zero_()
        model.head.bin_logits.mean.zero_()  # in the middle, between the two bins there
    with pytest.raises(ValueError, match="too close to call"):
        export(model, processor, tmp_path / "bundle", observations)
    with pytest.raises(ValueError, match="no golden observations"):
        export(model, processor, tmp_path / "bundle", [])


def test_warnings_of_our_own_code_still_pass_the_quiet_exporter():
    with pytest.raises(UserWarning, match="ours"), policies.export_graph._quiet_exporter():
        warnings.warn("ours", UserWarning, stacklevel=1)


def test_a_full_disk_leaves_nothing_behind(tmp_path, processor, observations, monkeypatch):
    def full_disk(*args, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policies.export, "export_graph", lambda *args, **options: b"graph")
    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(tiny_model(processor), processor, tmp_path / "bundle", observations)
    assert list(tmp_path.iterdir()) == []
