"""A tiny recorded dataset, a tiny model, and a short training run; shared by the tests of training."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.data.augment import ImageAugmentation
from vla.data.demonstrations import DemonstrationSource
from vla.data.windows import Windows, open_windows
from vla.data.writer import DatasetWriter
from vla.model.vla import ModelConfig, VLAModel
from vla.processing.processor import DEFAULT_INPUTS, Processor
from vla.spec import CameraSpec, Channel, RobotSpec
from vla.training.best import RollOut
from vla.training.settings import TrainerSettings, TrainingResult
from vla.training.trainer import Trainer
from vla.training.warm_start import open_start

SPEC = RobotSpec(
    name="toy",
    cameras=(CameraSpec(name="front", height=32, width=32),),
    state=(Channel(name="x", unit="m", low=-1.0, high=1.0), Channel(name="g", unit="1", low=0.0, high=1.0)),
    action=(Channel(name="x", unit="m", low=-0.1, high=0.1), Channel(name="g", unit="1", low=0.0, high=1.0)),
    control_hz=20.0,
    action_convention="end_effector_delta",
    gripper_sign="positive_opens",
)


AUGMENTATION = ImageAugmentation(max_shift=1, brightness=0.1, contrast=0.1, color=0.1)
HEAD_SETTINGS: dict[str, dict[str, float]] = {}


def record(root: Path) -> None:
    """Record six short episodes in which the action depends on state, picture and instruction."""
    rng = np.random.default_rng(0)
    with DatasetWriter(root, robot_spec=SPEC, storage="image", extra_info={}) as writer:
        for episode in range(6):
            color = episode % 2
            for _ in range(7):
                image = rng.integers(0, 60, size=(32, 32, 3), dtype=np.uint8)
                image[..., color] += 120
                state = rng.uniform(-1, 1, size=2).astype(np.float32)
                action = np.array([-0.1 * state[0] * (1 - 2 * color), color], dtype=np.float32)
                writer.add_frame({"front": image}, np.abs(state) * [1, 1], action)
            extra = {"seed": episode, "task_name": "toy", "success": True}
            writer.save_episode(["go left", "go right"][color], extra)


def make_windows(directory: Path) -> Windows:
    """Return windows of the toy dataset, recorded on first use."""
    root = directory / "dataset"
    if not root.exists():
        record(root)
    return open_windows([root], cache_dir=directory / "cache", action_horizon=3, progress=False)


def make_processor(
    source: DemonstrationSource, *, max_committed: int = 0, codec: str = "uniform", **settings: float
) -> Processor:
    """Fit a processor on the toy dataset."""
    if codec in ("uniform", "quantile"):
        settings = {"num_bins": 16, **settings}
    return Processor.fit(
        source.demonstrations(),
        codec={"kind": codec, **settings},
        inputs={**DEFAULT_INPUTS, "text": {"kind": "text", "max_tokens": 8, "vocab_size": 300}},
        max_committed=max_committed,
    )


def tiny_model(
    processor: Processor,
    *,
    width: int = 32,
    head: str = "parallel",
    auxiliaries: dict[str, dict[str, Any]] | None = None,
) -> VLAModel:
    """Return a seeded model that fits the processor."""
    torch.manual_seed(0)
    backbone = {"kind": "scene", "width": width, "depth": 2, "num_heads": 2, "stem_channels": [8, 16]}
    config = ModelConfig.complete(
        backbone=backbone, head={"kind": head, **HEAD_SETTINGS.get(head, {})}, auxiliaries=auxiliaries
    )
    return VLAModel(specs=processor.specs(), config=config)


def train_for(
    run_dir: Path,
    directory: Path,
    *,
    steps: int,
    now: int | None = None,
    width: int = 32,
    head: str = "parallel",
    codec: str = "uniform",
    max_committed: int = 0,
    validation_share: float = 0.2,
    augmentation: ImageAugmentation | None = AUGMENTATION,
    auxiliaries: dict[str, dict[str, Any]] | None = None,
    roll_out: RollOut | None = None,
    init_from: Path | None = None,
    **changes: float | str | Sequence[str] | dict[str, float] | None,
) -> TrainingResult:
    """Train in `run_dir` on the dataset in `directory`, in fp32 on one thread; resume if possible."""
    windows = make_windows(directory)
    train, validation = (
        DemonstrationSource(part, augmentation=augmentation)
        for part in windows.split_by_episode(validation_share=validation_share, seed=0)
    )
    processor = make_processor(DemonstrationSource(windows), max_committed=max_committed, codec=codec)
    settings = TrainerSettings(
        num_samples=8 * steps,
        batch_size=8,
        learning_rate=1e-3,
        optimizer="adamw",
        precision="fp32",
        compile="off",
        device="cpu",
        num_threads=1,
    )
    trainer = Trainer(
        dataclasses.replace(settings, **changes),  # type: ignore[arg-type]
        model=tiny_model(processor, width=width, head=head, auxiliaries=auxiliaries),
        processor=processor,
        train=train,
        validation=validation,
        run_dir=run_dir,
        roll_out=roll_out,
        start=open_start(run_dir, None if init_from is None else str(init_from)),
        provenance={"test": True},
    )
    try:
        return trainer.fit(max_steps_now=now)
    finally:
        trainer.close()
