"""What a bundle refuses: damage, other versions, contradictions between its files."""

import io
import json
import os
import resource
import shutil
import zipfile

import numpy as np
import onnx
import pytest

from policies.bundle import FILE_NAMES, BundleError, read_bundle
from policies.exported import BundlePolicy
from vla.files import MANIFEST_NAME, write_manifest


@pytest.fixture
def bundle(parallel_export, tmp_path):
    return shutil.copytree(parallel_export.directory, tmp_path / "bundle")


def seal(bundle, *, schema_version=1):
    """Write the manifest anew, as somebody would who changed a file on purpose."""
    (bundle / MANIFEST_NAME).unlink()
    write_manifest(bundle, {}, schema_version=schema_version)


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_golden(bundle, change):
    with np.load(bundle / "golden.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(arrays)
    np.savez(bundle / "golden.npz", **arrays)
    seal(bundle)


def test_a_bundle_holds_exactly_these_files(bundle):
    assert {path.name for path in bundle.iterdir()} == {*FILE_NAMES, MANIFEST_NAME}


def test_reading_returns_what_was_written(bundle, processor, observations):
    found = read_bundle(bundle)
    assert found.processor.to_json() == processor.to_json()
    assert found.golden.observations[1].instruction == observations[1].instruction
    assert found.golden.outputs["bins"].shape == (6, 4, 3)
    assert len(found.bundle_id) == 64


@pytest.mark.parametrize("name", FILE_NAMES)
def test_one_flipped_bit_is_found_in_every_file(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"damaged: {name} has sha256"):
        BundlePolicy.load(bundle)


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"missing: {name}"):
        BundlePolicy.load(bundle)


def test_extra_files_are_refused_listed_or_not(bundle):
    (bundle / "weights.pt").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra: weights\.pt"):
        BundlePolicy.load(bundle)
    seal(bundle)
    with pytest.raises(BundleError, match="a bundle has"):
        BundlePolicy.load(bundle)


def test_another_schema_version_is_refused_with_both_numbers(bundle):
    seal(bundle, schema_version=2)
    with pytest.raises(BundleError, match="schema version 2; this program reads version 1"):
        BundlePolicy.load(bundle)


def test_a_path_without_bundle_says_so(tmp_path):
    with pytest.raises(BundleError, match="no directory"):
        BundlePolicy.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        BundlePolicy.load(tmp_path)


def test_a_manifest_cannot_lead_out_of_the_directory(bundle):
    edit_json(
        bundle / MANIFEST_NAME, lambda data: data["files"].update({"../secret": {"sha256": "", "bytes": 0}})
    )
    with pytest.raises(BundleError, match="no plain relative path"):
        BundlePolicy.load(bundle)


def test_robot_spec_and_processor_must_agree(bundle):
    edit_json(bundle / "robot_spec.json", lambda data: data.update(control_hz=15.0))
    seal(bundle)
    with pytest.raises(BundleError, match=r"contradicts itself(.|\n)*control_hz: 15\.0 against 20\.0"):
        BundlePolicy.load(bundle)


@pytest.mark.parametrize("name", ["processor.json", "robot_spec.json"])
def test_unknown_and_missing_json_keys_are_refused(bundle, name):
    edit_json(bundle / name, lambda data: data.update(control_herz=15.0))
    seal(bundle)
    with pytest.raises(BundleError, match="control_herz"):
        BundlePolicy.load(bundle)
    (bundle / name).write_text("[]")
    seal(bundle)
    with pytest.raises(BundleError, match="not an object"):
        BundlePolicy.load(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("image.wrist"), r"lacks \[\'image.wrist\'\]"),
        (lambda arrays: arrays.update(more=np.zeros(1)), "more"),
        (lambda arrays: arrays.update(state=arrays["state"][:, :2]), "state is float32"),
        (lambda arrays: arrays.update(chunks=arrays["chunks"].astype(np.float64)), "chunks is float64"),
        (lambda arrays: arrays.update(bins=np.int64(3)), "bins is int64"),
        (
            lambda arrays: arrays.update({name: array[:0] for name, array in arrays.items()}),
            "lacks observations",
        ),
    ],
)
def test_golden_samples_of_another_form_are_refused(bundle, change, message):
    edit_golden(bundle, change)
    with pytest.raises(BundleError, match=message):
        BundlePolicy.load(bundle)


def test_pickles_are_never_loaded(bundle):
    edit_golden(bundle, lambda arrays: arrays.update(instruction=np.array(["a"] * 6, dtype=object)))
    with pytest.raises(BundleError, match="Object arrays cannot be loaded"):
        BundlePolicy.load(bundle)


def test_golden_samples_are_replayed_on_load(bundle):
    edit_golden(bundle, lambda arrays: arrays.update(bins=(arrays["bins"] + 1) % 16))
    with pytest.raises(BundleError, match="72 of 72 bins"):
        BundlePolicy.load(bundle)
    BundlePolicy.load(bundle, verify=False)


def test_a_graph_that_answers_with_no_bin_is_refused_as_any_other(bundle, monkeypatch):
    def undecodable(policy, observations):
        return {"bins": np.full((len(observations), 4, 3), -1)}

    monkeypatch.setattr(BundlePolicy, "answer", undecodable)
    with pytest.raises(BundleError, match="72 of 72 bins"):
        BundlePolicy.load(bundle)


def test_golden_actions_are_compared_with_their_range(bundle):
    def nudge(arrays):
        arrays["chunks"][0, 0, 0] += 1e-6  # 2e-5 of the range of dx

    edit_golden(bundle, nudge)
    with pytest.raises(BundleError, match=r"differently here: actions by up to 2\.0e-05"):
        BundlePolicy.load(bundle)


def test_a_graph_for_another_robot_is_refused(bundle):
    proto = onnx.load(bundle / "policy.onnx")
    proto.graph.input[2].name = "joints"
    for node in proto.graph.node:
        node.input[:] = ["joints" if name == "state" else name for name in node.input]
    onnx.save(proto, bundle / "policy.onnx")
    seal(bundle)
    with pytest.raises(BundleError, match=r"joints.*export it again"):
        BundlePolicy.load(bundle)


def test_an_opset_newer_than_the_runtime_is_refused_with_instructions(bundle):
    proto = onnx.load(bundle / "policy.onnx")
    proto.opset_import[0].version = 99
    onnx.save(proto, bundle / "policy.onnx")
    seal(bundle)
    with pytest.raises(BundleError, match="Install a newer onnxruntime"):
        BundlePolicy.load(bundle)


def test_a_graph_that_is_no_onnx_is_refused(bundle):
    (bundle / "policy.onnx").write_bytes(b"not a graph")
    seal(bundle)
    with pytest.raises(BundleError, match="cannot run"):
        BundlePolicy.load(bundle)


def edit_manifest(bundle, change):
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    change(manifest)
    del manifest["sha256"]  # as somebody would who changed it on purpose
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))


def test_changed_provenance_is_refused_and_old_manifests_are_read(bundle):
    path = bundle / MANIFEST_NAME
    path.write_text(path.read_text().replace('"exporter"', '"exporteur"'))
    with pytest.raises(BundleError, match="damaged: its content has another hash"):
        BundlePolicy.load(bundle)
    edit_manifest(bundle, lambda manifest: None)
    BundlePolicy.load(bundle)


def test_a_bundle_with_what_downloads_leave_is_loaded(bundle):
    (bundle / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (bundle / "README.md").write_text("# A policy\n")
    BundlePolicy.load(bundle)


def test_a_bundle_of_links_is_refused_with_the_command_that_mends_it(bundle, tmp_path):
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in bundle.iterdir():
        (linked / path.name).symlink_to(path)
    with pytest.raises(BundleError, match=f"cp -rL {linked} {linked}-copy"):
        BundlePolicy.load(linked)


@pytest.mark.parametrize("name", ["processor.json", "golden.npz"])
def test_a_pipe_is_refused_before_it_is_read(bundle, name):
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    edit_manifest(bundle, lambda manifest: manifest["files"][name].update(bytes=0))
    with pytest.raises(BundleError, match=f"no regular file: {name}"):
        BundlePolicy.load(bundle)


def write_archive(path, header, content):
    """Write an .npz of one array whose header may lie."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("state.npy", "w") as file:
        file.write(member.getvalue())
        for part in content:
            file.write(part)


@pytest.mark.parametrize(
    ("count", "content", "message"),
    [
        (10**12, [b"\0" * 64], "an array of 4000000000000 bytes is announced, 64 are there"),
        (
            2**28 + 1,
            [bytes(2**20)] * 1024 + [bytes(4)],
            "it unpacks to 10737[0-9]* bytes; at most 1073741824",
        ),
    ],
)
def test_archives_that_unpack_to_more_than_they_may_take_no_memory(bundle, count, content, message):
    path = bundle / "golden.npz"
    write_archive(path, {"descr": "<f4", "fortran_order": False, "shape": (count,)}, content)
    assert path.stat().st_size < 2e6
    seal(bundle)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=message):
        BundlePolicy.load(bundle)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["codec"].update(num_bins=10**9),
        lambda data: data["codec"].update(action_horizon=10**9),
        lambda data: data["codec"].update(action_horizon="4"),
        lambda data: data["codec"].update(kind=["uniform"]),
        lambda data: data.update(frame_offsets=None),
        lambda data: data.update(inputs=[1]),
        lambda data: data["robot_spec"].update(cameras=[3]),
        lambda data: data["robot_spec"]["cameras"][0].update(height=10**9),
        lambda data: data["robot_spec"].update(control_hz=float("inf")),
        lambda data: data["inputs"]["text"].update(max_tokens=10**9),
        lambda data: data["inputs"]["state"].update(normalizer=None),
    ],
)
def test_processors_of_another_form_or_size_are_refused_in_words(bundle, change):
    edit_json(bundle / "processor.json", change)
    seal(bundle)
    with pytest.raises(BundleError, match="export it again"):
        BundlePolicy.load(bundle)


def test_json_that_is_too_deep_is_refused_in_words(bundle):
    (bundle / "processor.json").write_text('{"a":' * 100_000)
    seal(bundle)
    with pytest.raises(BundleError, match=r"processor\.json is damaged, it is no JSON"):
        BundlePolicy.load(bundle)
