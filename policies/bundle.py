"""A bundle: one directory with all that a robot computer needs to run a policy, and proof that it is whole.

    policy.onnx       graph in fp32: images uint8, text_ids int64, state float32 (normalised) -> bins int64
    processor.json    tokenizers, normalisation, horizon, frame offsets: everything around the graph
    robot_spec.json   cameras, state, action, units, limits, rate
    golden.npz        observations with the tokens and actions that the policy answered when it was exported
    manifest.json     schema version, size and sha256 of each file, provenance

It reads and writes the directory; it runs no graph and imports neither torch nor onnxruntime. No pickles.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from vla.files import (
    MANIFEST_NAME,
    ManifestError,
    atomic_write_bytes,
    atomic_write_json,
    sha256_file,
    verify_manifest,
    write_manifest,
)
from vla.interface import Observation
from vla.processing.processor import Processor
from vla.spec import RobotSpec, SpecMismatch

SCHEMA_VERSION = 1
GRAPH_NAME, PROCESSOR_NAME, SPEC_NAME, GOLDEN_NAME = (
    "policy.onnx",
    "processor.json",
    "robot_spec.json",
    "golden.npz",
)
FILE_NAMES = (GRAPH_NAME, PROCESSOR_NAME, SPEC_NAME, GOLDEN_NAME)
IMAGE_PREFIX = "image."  # golden.npz holds the frames of camera c under image.c


class BundleError(ValueError):
    """A directory is no bundle that this program can trust and run; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenSamples:
    """Observations and what the policy answered to them, bins and actions, when the bundle was made."""

    observations: Sequence[Observation]  # what is committed are the first of the actions
    bins: Int64[np.ndarray, "sample time action"]
    actions: Float32[np.ndarray, "sample time action"]  # in the units of RobotSpec.action


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """The verified content of a bundle directory."""

    directory: Path
    processor: Processor
    golden: GoldenSamples
    provenance: Mapping[str, Any]  # checkpoint_id, git revision, exporter versions, date
    bundle_id: str  # sha256 of the manifest, hence of everything

    @property
    def graph_path(self) -> Path:
        """Where the ONNX graph lies."""
        return self.directory / GRAPH_NAME


def write_bundle(
    directory: Path,
    *,
    graph: bytes,
    processor: Processor,
    golden: GoldenSamples,
    provenance: Mapping[str, Any],
) -> None:
    """Fill an empty directory, the manifest last; publishing it is left to the caller.

    Raises:
        OSError: the disk is full or read-only.
    """
    atomic_write_bytes(directory / GRAPH_NAME, graph)
    atomic_write_json(directory / PROCESSOR_NAME, processor.to_json())
    atomic_write_json(directory / SPEC_NAME, processor.robot_spec.to_json())
    arrays = {
        f"{IMAGE_PREFIX}{name}": np.stack([observation.images[name] for observation in golden.observations])
        for name in processor.robot_spec.camera_names
    }
    arrays["state"] = np.stack([observation.state for observation in golden.observations])
    arrays["instruction"] = np.array([observation.instruction for observation in golden.observations])
    arrays["bins"], arrays["actions"] = golden.bins, golden.actions
    if processor.max_committed:
        counts = [len(observation.committed) for observation in golden.observations]
        arrays["num_committed"] = np.array(counts, dtype=np.int64)
    with (directory / GOLDEN_NAME).open("xb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    write_manifest(directory, provenance, schema_version=SCHEMA_VERSION)


def read_bundle(directory: Path) -> Bundle:
    """Verify a bundle directory and return its content.

    Raises:
        BundleError: a file is damaged, missing or extra, the schema version is another one, or the files do
            not fit one another; the message lists what is wrong.
    """
    try:
        manifest = verify_manifest(directory, schema_version=SCHEMA_VERSION)
    except ManifestError as error:
        raise BundleError(f"no usable bundle: {error}") from error
    if set(manifest["files"]) != set(FILE_NAMES):
        raise BundleError(f"{directory} lists {sorted(manifest['files'])}; a bundle has {sorted(FILE_NAMES)}")
    try:
        processor = Processor.from_json(_read_json(directory / PROCESSOR_NAME))
        spec = RobotSpec.from_json(_read_json(directory / SPEC_NAME))
        spec.require_same(processor.robot_spec, mine=SPEC_NAME, theirs=PROCESSOR_NAME)
    except SpecMismatch as error:
        raise BundleError(f"bundle {directory} contradicts itself; export it again: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(
            f"bundle {directory} holds JSON of another form; export it again: {error}"
        ) from error
    return Bundle(
        directory=directory,
        processor=processor,
        golden=_read_golden(directory / GOLDEN_NAME, processor),
        provenance=manifest["provenance"],
        bundle_id=sha256_file(directory / MANIFEST_NAME),
    )


def _read_json(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} holds a {type(data).__name__}, not an object")
    return data


def _read_golden(path: Path, processor: Processor) -> GoldenSamples:
    spec = processor.robot_spec
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} cannot be read; export the bundle again: {error}") from error
    num_samples = len(arrays["bins"]) if "bins" in arrays and arrays["bins"].ndim else 0
    chunk = (num_samples, processor.action_horizon, len(spec.action))
    frames = (num_samples, len(processor.frame_offsets), *processor.image_size, 3)
    forms = {
        "bins": ("int64", chunk),
        "actions": ("float32", chunk),
        "state": ("float32", (num_samples, len(spec.state))),
        "instruction": ("str", (num_samples,)),
        **{IMAGE_PREFIX + name: ("uint8", frames) for name in spec.camera_names},
    }
    if processor.max_committed:
        forms["num_committed"] = ("int64", (num_samples,))
    if set(arrays) != set(forms):
        raise BundleError(f"{path} holds {sorted(arrays)}; robot {spec.name!r} needs {sorted(forms)}")
    for name, (kind, shape) in forms.items():
        array = arrays[name]
        found = "str" if array.dtype.kind == "U" else str(array.dtype)
        if (found, array.shape) != (kind, shape) or not num_samples:
            raise BundleError(f"{path}: {name} is {found}{list(array.shape)} instead of {kind}{list(shape)}")
    counts = arrays.get("num_committed", np.zeros(num_samples, dtype=np.int64))
    observations = [
        Observation(
            images={name: arrays[IMAGE_PREFIX + name][i] for name in spec.camera_names},
            state=arrays["state"][i],
            instruction=str(arrays["instruction"][i]),
            committed=arrays["actions"][i, : counts[i]],
            stamp=0.0,
        )
        for i in range(num_samples)
    ]
    return GoldenSamples(observations=observations, bins=arrays["bins"], actions=arrays["actions"])
