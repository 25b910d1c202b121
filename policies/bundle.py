"""A bundle: one directory with all that a robot computer needs to run a policy, and proof that it is whole.

    policy.onnx       graph in fp32, from what the processor encodes (and noise) to what it decodes
    processor.json    input encoders, action codec, frame offsets: everything around the graph
    robot_spec.json   cameras, state, action, units, limits, rate
    golden.npz        observations with what the policy answered and meant when it was exported
    manifest.json     schema version, size and sha256 of each file, provenance

It reads and writes the directory; it runs no graph and imports neither torch nor onnxruntime. No pickles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla.errors import VLAError
from vla.files import (
    MANIFEST_NAME,
    ManifestError,
    atomic_write_bytes,
    atomic_write_json,
    read_json_object,
    sha256_file,
    verify_manifest,
    write_manifest,
)
from vla.interface import Arrays, Observation, ObservationError
from vla.plugins import missing_plugin, require_versions
from vla.processing.golden import observation_arrays, observations_from, read_arrays, write_observations
from vla.processing.processor import Processor
from vla.registry import UnknownPart
from vla.spec import RobotSpec, SpecMismatch

SCHEMA_VERSION = 1
GRAPH_NAME, PROCESSOR_NAME, SPEC_NAME, GOLDEN_NAME = (
    "policy.onnx",
    "processor.json",
    "robot_spec.json",
    "golden.npz",
)
FILE_NAMES = (GRAPH_NAME, PROCESSOR_NAME, SPEC_NAME, GOLDEN_NAME)


class BundleError(VLAError):
    """A directory is no bundle that this program can trust and run; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenSamples:
    """Observations and what the policy answered to them when the bundle was made."""

    observations: Sequence[Observation]
    outputs: Arrays  # of the graph, by the names of the codec's specs; noise had the seed 0
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
    write_observations(
        directory / GOLDEN_NAME, golden.observations, {**golden.outputs, "chunks": golden.actions}
    )
    write_manifest(directory, provenance, schema_version=SCHEMA_VERSION)


def read_bundle(directory: Path) -> Bundle:
    """Verify a bundle directory and return its content.

    Raises:
        BundleError: a file is damaged, missing or extra, the schema version is another one, or the files do
            not fit one another; the message lists what is wrong.
        PluginError: a plug-in that it needs was not passed, or has another version.
    """
    try:
        manifest = verify_manifest(directory, schema_version=SCHEMA_VERSION)
    except ManifestError as error:
        raise BundleError(f"no usable bundle: {error}") from error
    if set(manifest["files"]) != set(FILE_NAMES):
        raise BundleError(f"{directory} lists {sorted(manifest['files'])}; a bundle has {sorted(FILE_NAMES)}")
    require_versions(manifest["provenance"], source=directory)
    try:
        processor = Processor.from_json(read_json_object(directory / PROCESSOR_NAME))
        spec = RobotSpec.from_json(read_json_object(directory / SPEC_NAME))
        spec.require_same(processor.robot_spec, mine=SPEC_NAME, theirs=PROCESSOR_NAME)
    except UnknownPart as error:
        raise missing_plugin(error, manifest["provenance"], source=directory) from error
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


def _read_golden(path: Path, processor: Processor) -> GoldenSamples:
    spec, targets = processor.robot_spec, processor.specs().targets
    try:
        arrays = _with_committed(read_arrays(path))
        observations = observations_from(
            arrays, spec=spec, num_frames=len(processor.frame_offsets), source=path
        )
    except ObservationError as error:
        raise BundleError(f"{error}; export the bundle again") from error
    chunk = (len(observations), processor.action_horizon, len(spec.action))
    forms = {name: (target.dtype, (chunk[0], *target.shape)) for name, target in targets.items()}
    unknown = sorted(set(arrays) - {*forms, "chunks"} - set(observation_arrays(spec)))
    if unknown:
        raise BundleError(f"{path} holds {unknown}, which nothing reads; export the bundle again")
    for name, (kind, shape) in {**forms, "chunks": ("float32", chunk)}.items():
        found = "no array" if name not in arrays else f"{arrays[name].dtype}{list(arrays[name].shape)}"
        if found != f"{kind}{list(shape)}":
            raise BundleError(f"{path}: {name} is {found} instead of {kind}{list(shape)}")
    return GoldenSamples(
        observations=observations, outputs={name: arrays[name] for name in targets}, actions=arrays["chunks"]
    )


def _with_committed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a bundle in today's form: before, what was committed was cut off its chunks."""
    if "actions" not in arrays or "committed" in arrays:
        return arrays
    chunks = arrays.pop("actions")
    nothing = np.zeros(len(chunks), dtype=np.int64)
    return {
        **arrays,
        "chunks": chunks,
        "committed": chunks,
        "num_committed": arrays.get("num_committed", nothing),
    }
