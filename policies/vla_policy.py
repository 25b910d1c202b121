"""A torch model and its processor as a `Policy`: devices and tensors."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from policies.model_policy import ModelPolicy
from policies.pretrained_names import policy_path, require_pretrained
from vla.interface import Arrays, Observation
from vla.model.attention import fuse_attention
from vla.model.checkpoint import CheckpointError, ModelCheckpoint, load_checkpoint
from vla.model.vla import VLAModel
from vla.plugins import missing_plugin
from vla.processing.golden import observations_from, read_arrays
from vla.processing.processor import Processor
from vla.registry import UnknownPart


class VLAPolicy(ModelPolicy):
    """Chunks from a `VLAModel`, in its own precision, on one device.

    The model is moved to `device` and put into evaluation mode in place.

    Args:
        model: what predicts.
        processor: that it was trained with.
        device: `cpu`, `cuda` or another of torch's.
        noise_seed: of what a head draws.
        num_threads: of torch while the model runs on a CPU; None: as many as torch uses otherwise.

    Raises:
        ValueError: the model and the processor were not made for each other, or a weight is not finite.
    """

    def __init__(
        self,
        *,
        model: VLAModel,
        processor: Processor,
        device: str = "cpu",
        noise_seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        _require_fitting(model, processor)
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ValueError(f"weight {name!r} holds NaN or infinity; use an earlier checkpoint")
        noise = model.noise_specs(training=False)
        super().__init__(processor=processor, noise=noise, noise_seed=noise_seed)
        self.model, self._device = model.to(device).eval(), torch.device(device)
        self._num_threads = num_threads
        fuse_attention(model, self._device)

    @classmethod
    def load(
        cls, path: Path | str, *, device: str = "cpu", head: Mapping[str, Any] | None = None
    ) -> "VLAPolicy":
        """Load the policy of a checkpoint, or of the newest one of a training run.

        Args:
            path: of either, or `pretrained/<name>`.
            device: `cpu`, `cuda` or another of torch's.
            head: settings of the head that no weight depends on, in place of those of training.

        Raises:
            CheckpointError: there is none at `path`, it is of another version, or its weights do not fit.
            ManifestError: a file of it is damaged.
            ValueError: a setting in `head` does not exist, or weights depend on it.
        """
        loaded = load_policy_checkpoint(path, head=head)
        return cls(model=loaded.model, processor=loaded.processor, device=device)

    def run_model(self, inputs: Arrays) -> Arrays:
        """Run the model on its device."""
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
        with torch.inference_mode(), _threads(self._num_threads):
            return {name: tensor.cpu().numpy() for name, tensor in self.model.sample(tensors).items()}


def threads_beside(num_processes: int) -> int:
    """Return how many of torch's threads a policy should use beside processes that simulate: those left.

    Threads that wait for one another make an inference several times slower where cores are taken.
    """
    return max(1, torch.get_num_threads() - num_processes)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads for a while."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class PolicyCheckpoint:
    """All of a checkpoint that a policy or an export needs.

    Attributes:
        model: in evaluation mode.
        processor: the one that it was trained with.
        golden: held-out moments with their true history.
        provenance: JSON-ready origin.
        checkpoint_id: sha256 of the weights file.
        path: of the checkpoint directory.
    """

    model: VLAModel
    processor: Processor
    golden: list[Observation]
    provenance: dict[str, Any]
    checkpoint_id: str
    path: Path


def load_policy_checkpoint(path: Path | str, *, head: Mapping[str, Any] | None = None) -> PolicyCheckpoint:
    """Load a checkpoint, or the newest one of a run directory.

    Args:
        path: of either, or `pretrained/<name>`.
        head: settings of the head that no weight depends on, in place of those of training.

    Raises:
        NoPretrainedPolicy: no pretrained policy has that name.
        CheckpointError: there is none at `path`, it is of another version, or its weights do not fit.
        ManifestError: a file of it is damaged.
        PluginError: a plug-in that it needs was not passed, or has another version.
        ValueError: a setting in `head` does not exist, or weights depend on it.
    """
    place = Path(policy_path(str(path)))
    require_pretrained(place)
    loaded: ModelCheckpoint = load_checkpoint(place, head=head)
    try:
        processor = Processor.from_json(loaded.processor_json)
        _require_fitting(loaded.model, processor)
    except UnknownPart as error:
        raise missing_plugin(error, loaded.provenance, source=loaded.path) from error
    except ValueError as error:
        raise CheckpointError(f"the processor of {loaded.path} cannot be used: {error}") from error
    golden = observations_from(
        read_arrays(loaded.golden_path),
        spec=processor.robot_spec,
        num_frames=len(processor.frame_offsets),
        source=loaded.golden_path,
    )
    return PolicyCheckpoint(
        model=loaded.model,
        processor=processor,
        golden=golden,
        provenance=loaded.provenance,
        checkpoint_id=loaded.checkpoint_id,
        path=loaded.path,
    )


def _require_fitting(model: VLAModel, processor: Processor) -> None:
    """Refuse a model that was built for other inputs or targets than the processor makes."""
    mine, theirs = model.specs.to_json(), processor.specs().to_json()
    faults = [
        f"{group} {name}: {mine[group].get(name)} against {theirs[group].get(name)}"
        for group in mine
        for name in sorted({*mine[group], *theirs[group]})
        if mine[group].get(name) != theirs[group].get(name)
    ]
    if faults:
        listing = "\n  ".join(faults)
        raise ValueError(f"the model does not fit the processor (model against processor):\n  {listing}")
