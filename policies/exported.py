"""A bundle as a `Policy`: numpy and onnxruntime, no torch. This is what runs on a robot computer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import (
    onnxruntime_pybind11_state as runtime_errors,  # pyright: ignore[reportAttributeAccessIssue]
)

from policies.bundle import Bundle, BundleError, read_bundle
from policies.conformance import MAX_ACTION_DIFFERENCE
from policies.model_policy import ModelPolicy
from vla.interface import Arrays, ArraySpec

PROVIDERS = ("CPUExecutionProvider",)
REPLAY_BATCH = 16  # golden samples a forward pass
NOISE = "noise"  # how the names of inputs begin that hold noise
TENSOR_TYPES = {"float32": "float"}  # as onnxruntime calls them, where numpy does otherwise
LOAD_ERRORS = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.InvalidProtobuf,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
)


class BundlePolicy(ModelPolicy):
    """A verified bundle, ready to answer. Made by `load`; one may serve several threads."""

    def __init__(self, *, bundle: Bundle, session: onnxruntime.InferenceSession, noise_seed: int = 0) -> None:
        self._bundle, self._session = bundle, session
        self._outputs = tuple(bundle.processor.specs().targets)
        super().__init__(processor=bundle.processor, noise=_noise_of(session), noise_seed=noise_seed)

    @classmethod
    def load(
        cls, path: Path | str, *, num_threads: int = 1, verify: bool = True, noise_seed: int = 0
    ) -> "BundlePolicy":
        """Open a bundle directory, check every hash and replay its golden samples.

        Args:
            path: the bundle directory.
            num_threads: cores that one forward pass may use.
            verify: false skips the replay (not the hashes), for a bundle replayed here before.
            noise_seed: of the noise that a model may take, see `ModelPolicy`.

        Raises:
            BundleError: the bundle is damaged, of another schema version, needs a newer onnxruntime, or
                answers its golden samples differently from the policy that was exported.
        """
        bundle = read_bundle(Path(path))
        session = _open_session(bundle, num_threads=num_threads)
        _require_fitting(session, bundle)
        policy = cls(bundle=bundle, session=session, noise_seed=noise_seed)
        if verify:
            _replay(policy, bundle)
        return policy

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the bundle comes from: checkpoint, git revision, exporter versions, date."""
        return self._bundle.provenance

    @property
    def bundle_id(self) -> str:
        """Sha256 that covers every byte of the bundle, as 64 hexadecimal digits."""
        return self._bundle.bundle_id

    def run_model(self, inputs: Arrays) -> Arrays:
        """Run the graph."""
        answers = self._session.run(list(self._outputs), dict(inputs))
        # onnxruntime's int64 is C's long long: another type, as wide
        arrays = [np.asarray(answer) for answer in answers]
        arrays = [array.astype(np.int64) if array.dtype.kind == "i" else array for array in arrays]
        return dict(zip(self._outputs, arrays, strict=True))


def _noise_of(session: onnxruntime.InferenceSession) -> dict[str, ArraySpec]:
    """Return the noise that a graph takes: those of its inputs whose name begins so."""
    return {
        node.name: ArraySpec("float32", tuple(node.shape[1:]))
        for node in session.get_inputs()
        if node.name.startswith(NOISE)
    }


def _open_session(bundle: Bundle, *, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 3  # errors; they arrive as exceptions, too
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # idle threads leave the cores alone
    try:
        return onnxruntime.InferenceSession(bundle.graph_path, options, providers=list(PROVIDERS))
    except LOAD_ERRORS as error:
        made_with = bundle.provenance.get("exporter", "an unknown exporter")
        raise BundleError(
            f"onnxruntime {onnxruntime.__version__} cannot run {bundle.graph_path}, made with {made_with}. "
            f"Install a newer onnxruntime, or export again with a lower opset. It says: {error}"
        ) from error


def _require_fitting(session: onnxruntime.InferenceSession, bundle: Bundle) -> None:
    """Refuse a graph whose inputs or outputs are not those that the processor makes and reads."""
    specs = bundle.processor.specs()
    expected = {
        name: (f"tensor({TENSOR_TYPES.get(spec.dtype, spec.dtype)})", list(spec.shape))
        for name, spec in {**specs.inputs, **specs.targets}.items()
    }
    nodes = (*session.get_inputs(), *session.get_outputs())
    found = {node.name: (node.type, node.shape[1:]) for node in nodes if not node.name.startswith(NOISE)}
    if found != expected:
        raise BundleError(
            f"the graph of bundle {bundle.directory} has (batch axis left out) {found}, but its processor "
            f"needs {expected}; export it again"
        )


def _replay(policy: BundlePolicy, bundle: Bundle) -> None:
    golden = bundle.golden
    for start in range(0, len(golden.observations), REPLAY_BATCH):
        rows = slice(start, start + REPLAY_BATCH)
        answers = policy.answer(golden.observations[rows])
        for name, answer in answers.items():  # perhaps ids that decode to nothing
            wanted = golden.outputs[name][rows]
            different = int((answer != wanted).sum()) if answer.dtype.kind == "i" else 0
            if different:
                raise _answers_differently(bundle, f"{different} of {answer.size} {name}")
        span = policy.robot_spec.action_high - policy.robot_spec.action_low
        actions = policy.processor.decode(answers)
        difference = float((np.abs(actions - golden.actions[rows]) / span).max())
        if not difference <= MAX_ACTION_DIFFERENCE:
            raise _answers_differently(bundle, f"actions by up to {difference:.1e} of the range")


def _answers_differently(bundle: Bundle, what: str) -> BundleError:
    exporter = bundle.provenance.get("exporter")
    return BundleError(
        f"bundle {bundle.directory} answers its golden samples differently here: {what}. onnxruntime "
        f"{onnxruntime.__version__} on this machine does not compute what {exporter} computed; export it "
        "again here"
    )
