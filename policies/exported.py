"""A bundle as a `Policy`: numpy and onnxruntime, no torch. This is what runs on a robot computer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from jaxtyping import Int64
from onnxruntime.capi import (
    onnxruntime_pybind11_state as runtime_errors,  # pyright: ignore[reportAttributeAccessIssue]
)

from policies.bundle import Bundle, BundleError, read_bundle
from policies.conformance import MAX_ACTION_DIFFERENCE
from policies.token_policy import TokenPolicy
from vla.processing.processor import ModelInputs

PROVIDERS = ("CPUExecutionProvider",)
REPLAY_BATCH = 16  # golden samples a forward pass
LOAD_ERRORS = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.InvalidProtobuf,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
)


class BundlePolicy(TokenPolicy):
    """A verified bundle, ready to answer. Made by `load`; one may serve several threads."""

    def __init__(self, *, bundle: Bundle, session: onnxruntime.InferenceSession) -> None:
        super().__init__(processor=bundle.processor)
        self._bundle, self._session = bundle, session

    @classmethod
    def load(cls, path: Path | str, *, num_threads: int = 1, verify: bool = True) -> "BundlePolicy":
        """Open a bundle directory, check every hash and replay its golden samples.

        Args:
            path: the bundle directory.
            num_threads: cores that one forward pass may use.
            verify: false skips the replay (not the hashes), for a bundle replayed here before.

        Raises:
            BundleError: the bundle is damaged, of another schema version, needs a newer onnxruntime, or
                answers its golden samples differently from the policy that was exported.
        """
        bundle = read_bundle(Path(path))
        policy = cls(bundle=bundle, session=_open_session(bundle, num_threads=num_threads))
        _require_fitting(policy._session, bundle)
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

    def choose_bins(self, inputs: ModelInputs) -> Int64[np.ndarray, "batch time action"]:
        """Run the model and return the chosen bin of every action, in [0, num_bins)."""
        feed = {"images": inputs.images, "text_ids": inputs.text_ids, "state": inputs.state}
        if self.processor.max_committed:
            feed["committed"] = inputs.committed
        (bins,) = self._session.run(["bins"], feed)
        return np.asarray(bins).astype(np.int64)  # onnxruntime's is C's long long: another type, as wide


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
    processor = bundle.processor
    spec, (height, width) = processor.robot_spec, processor.image_size
    expected = {
        "images": ("tensor(uint8)", [processor.num_images, height, width, 3]),
        "text_ids": ("tensor(int64)", [processor.max_text_tokens]),
        "state": ("tensor(float)", [len(spec.state)]),
        "bins": ("tensor(int64)", [processor.action_horizon, len(spec.action)]),
    }
    if processor.max_committed:
        expected["committed"] = expected["bins"]
    found = {
        node.name: (node.type, node.shape[1:]) for node in (*session.get_inputs(), *session.get_outputs())
    }
    if found != expected:
        raise BundleError(
            f"the graph of bundle {bundle.directory} has (batch axis left out) {found}, but its processor "
            f"needs {expected}; export it again"
        )


def _replay(policy: BundlePolicy, bundle: Bundle) -> None:
    golden = bundle.golden
    bins = np.concatenate(
        [
            policy.predict_bins(golden.observations[start : start + REPLAY_BATCH])
            for start in range(0, len(golden.observations), REPLAY_BATCH)
        ]
    )
    num_different = int((bins != golden.bins).sum())
    if num_different:  # perhaps by tokens that decode to nothing
        raise _answers_differently(bundle, f"{num_different} of {bins.size} tokens")
    span = policy.robot_spec.action_high - policy.robot_spec.action_low
    difference = float((np.abs(policy.decode_bins(bins) - golden.actions) / span).max())
    if not difference <= MAX_ACTION_DIFFERENCE:
        raise _answers_differently(bundle, f"actions by up to {difference:.1e} of the range")


def _answers_differently(bundle: Bundle, what: str) -> BundleError:
    exporter = bundle.provenance.get("exporter")
    return BundleError(
        f"bundle {bundle.directory} answers its golden samples differently here: {what}. onnxruntime "
        f"{onnxruntime.__version__} on this machine does not compute what {exporter} computed; export it "
        "again here"
    )
