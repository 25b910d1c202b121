"""Trains a policy on a dataset and evaluates it; records the dataset first if asked to.

    python -m experiments.train experiment=tabletop out_dir=outputs/train/tabletop
    torchrun --nproc-per-node=4 -m experiments.train experiment=tabletop      (as many processes as GPUs)

The same command continues an interrupted run.
"""

import dataclasses
import hashlib
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.evaluation.results import format_table
from experiments.collect import collect_dataset
from experiments.config import cli, schema
from experiments.config.control_setup import evaluation_limits
from experiments.evaluate import evaluate_conditions, load_policy
from vla.data.augment import ImageAugmentation
from vla.data.layout import read_info
from vla.data.lock import DirectoryLock
from vla.data.windows import Windows, open_windows
from vla.model.sizes import ModelSizes
from vla.model.vla import VLAModel
from vla.processing.processor import Processor
from vla.provenance import software_versions
from vla.spec import SpecMismatch
from vla.training.checkpoint import read_state, resolve_checkpoint
from vla.training.distributed import (
    ALONE,
    Ranks,
    join_ranks,
    leave_ranks,
    local_device,
    text_of_main,
    wait_for_ranks,
)
from vla.training.metrics import MetricSink
from vla.training.settings import INTERRUPTED, TrainerSettings, TrainingResult
from vla.training.trainer import Trainer

schema.register()


def open_data(run: schema.TrainRun) -> tuple[Windows, Windows]:
    """Return training and validation windows, which share no episode.

    Raises:
        DatasetError: a dataset is missing, empty or damaged.
        ValueError: a camera of data.cameras was not recorded.
    """
    windows = open_windows(
        [run.dataset, *run.data.more_datasets],
        cache_dir=run.data.cache_dir,
        action_horizon=run.processor.action_horizon,
        frame_offsets=run.processor.frame_offsets,
        future_offsets=run.data.future_offsets,
    )
    if run.data.cameras is not None:
        windows = windows.seen_by(run.data.cameras)
    train, validation = windows.split_by_episode(validation_share=run.data.validation_share, seed=run.seed)
    if run.data.max_windows is not None:
        train = train.subset(np.arange(min(run.data.max_windows, train.num_windows)))
        validation = train
    return train, validation


def describe_data(train: Windows, validation: Windows) -> str:
    """Return a sentence that counts windows and episodes."""
    held_out = (
        "none" if validation is train else f"{validation.num_windows} of {validation.num_episodes} episodes"
    )
    return f"training on {train.num_windows} windows of {train.num_episodes} episodes; held out: {held_out}"


def require_pictures_of_evaluation(run: schema.TrainRun, cameras: Sequence[str]) -> None:
    """Check before training that the policy can be evaluated after it, on pictures like those it learns from.

    Raises:
        ValueError: the environment shows other cameras, or draws in another quality.
    """
    if not run.evaluation.conditions:
        return
    for root in (run.dataset, *run.data.more_datasets):
        recorded_by_us = read_info(Path(root)).get("vla", {}).get("extra_info", {}).get("env", {})
        quality = recorded_by_us.get("render_quality", run.env.render_quality)
        if quality != run.env.render_quality:
            raise ValueError(
                f"{root} was drawn with render_quality={quality}, the evaluation after training would draw "
                f"with {run.env.render_quality}. Give env.render_quality={quality}, or skip the evaluation "
                "with evaluation.conditions=[]"
            )
    if list(cameras) != list(run.env.cameras):
        raise ValueError(
            f"the policy would learn from cameras {list(cameras)}, but the evaluation after it shows "
            f"{list(run.env.cameras)}. Choose with data.cameras and env.cameras, or skip the evaluation with "
            "evaluation.conditions=[]"
        )


def build_processor(run: schema.TrainRun, train: Windows) -> Processor:
    """Fit tokenizers and normalisation on the training windows."""
    return Processor.fit(
        robot_spec=train.robot_spec,
        states=train.states[train.moments],
        actions=train.actions[train.moments],
        instructions=train.instructions,
        action_horizon=run.processor.action_horizon,
        action_tokenizer=run.action_tokenizer.kind,
        num_bins=run.action_tokenizer.num_bins,
        frame_offsets=run.processor.frame_offsets,
        max_committed=run.processor.max_committed,
        max_text_tokens=run.processor.max_text_tokens,
        text_vocab_size=run.processor.text_vocab_size,
        constant_state_dims=run.processor.constant_state_dims,
    )


def build_model(
    model: schema.ModelConfig, processor: Processor, *, num_future_states: int, seed: int
) -> VLAModel:
    """Return a model with random weights whose sizes fit the processor.

    Raises:
        ValueError: the images are not square, or sizes do not divide.
    """
    height, width = processor.image_size
    if height != width:
        raise ValueError(f"camera frames are {height} x {width} pixels; the image tokenizer wants squares")
    torch.manual_seed(seed)
    return VLAModel(
        ModelSizes(
            vocab_size=processor.vocabulary.size,
            num_bins=processor.action_tokenizer.num_bins,
            action_offset=processor.vocabulary.action_offset,
            bins_per_dim=processor.bins_per_dim,
            action_horizon=processor.action_horizon,
            num_images=processor.num_images,
            image_size=height,
            state_dim=len(processor.robot_spec.state),
            max_text_tokens=processor.max_text_tokens,
            max_committed=processor.max_committed,
            num_future_states=num_future_states,
            **dataclasses.asdict(model),
        )
    )


def trainer_settings(trainer: schema.TrainerConfig, *, seed: int) -> TrainerSettings:
    """Return the trainer's settings, with the augmentation built."""
    values = {field.name: getattr(trainer, field.name) for field in dataclasses.fields(trainer)}
    augmentation: schema.AugmentationConfig | None = values.pop("augmentation")
    return TrainerSettings(
        **values,
        seed=seed,
        augmentation=None if augmentation is None else ImageAugmentation(**dataclasses.asdict(augmentation)),
    )


def make_sinks(run: schema.TrainRun, run_dir: Path) -> list[MetricSink]:
    """Return the sinks beside the JSON lines that the trainer always writes.

    Raises:
        ValueError: `logger` is unknown, or wandb is not installed.
    """
    if run.logger == "jsonl":
        return []
    if run.logger != "wandb":
        raise ValueError(f"logger is {run.logger!r}; it must be 'jsonl' or 'wandb'")
    try:
        from experiments.wandb_sink import WandbSink
    except ModuleNotFoundError as error:
        raise ValueError("logger=wandb needs wandb: run .venv/bin/pip install -e '.[wandb]'") from error
    run_id = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]  # a resumed run is the same run
    return [WandbSink(run_dir=run_dir, project="vla-stack", config=dataclasses.asdict(run), run_id=run_id)]


def provenance(run: schema.TrainRun) -> dict[str, Any]:
    """Return what a checkpoint should tell of its origin."""
    return {
        "command": shlex.join(["python", "-m", "experiments.train", *sys.argv[1:]]),
        "config": dataclasses.asdict(run),
        "versions": software_versions(),
    }


def train_policy(run: schema.TrainRun, run_dir: Path, *, ranks: Ranks = ALONE) -> TrainingResult:
    """Train, or continue, in `run_dir`, alone or together with the other processes of `torchrun`.

    Raises:
        DirectoryInUse: another live process trains there.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was saved, calling again continues.
        NonFiniteLossError: the loss diverged; the last good checkpoint is kept.
        ValueError: the evaluation after training would show other pictures.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = DirectoryLock(run_dir) if ranks.is_main else None
    try:
        train, validation = open_data(run)
        if ranks.is_main:
            print(describe_data(train, validation))
        require_pictures_of_evaluation(run, train.robot_spec.camera_names)
        processor = build_processor(run, train)
        trainer = Trainer(
            trainer_settings(run.trainer, seed=run.seed),
            model=build_model(
                run.model, processor, num_future_states=len(run.data.future_offsets), seed=run.seed
            ),
            processor=processor,
            train=train,
            validation=validation,
            run_dir=run_dir,
            sinks=make_sinks(run, run_dir) if ranks.is_main else [],
            provenance=provenance(run),
        )
        try:
            result = trainer.fit()
        finally:
            trainer.close()
    finally:
        if lock is not None:
            lock.release()
    if result.end == INTERRUPTED:
        raise cli.Terminated if result.signal == signal.SIGTERM else KeyboardInterrupt
    return result


def shortfall(run_dir: Path, *, budget: int) -> str | None:
    """Return a sentence for a run whose time ended before its budget of samples, else None.

    Raises:
        CheckpointError: there is no checkpoint in `run_dir`.
    """
    done = read_state(resolve_checkpoint(run_dir))["num_samples"]
    if done >= budget:
        return None
    return (
        f"trainer.max_minutes ended this training after {done:,} of {budget:,} samples. The success that the "
        "recipe promises does not hold for it. To go on, run the same command with trainer.max_minutes=null"
    )


def record_if_asked(run: schema.TrainRun) -> None:
    """Record what is missing in the dataset, if the run asks for that.

    Raises:
        SpecMismatch: the dataset holds recordings of another robot, or of other cameras.
        DatasetError: as in `collect_dataset`.
    """
    if not run.record:
        return
    try:
        collect_dataset(root=Path(run.dataset), env=run.env, tasks=run.tasks, collect=run.collect)
    except SpecMismatch as mismatch:
        raise SpecMismatch(
            f"{mismatch}\nsay record=false to train on what is there, or give another dataset to record anew"
        ) from mismatch


def evaluate_checkpoint(run: schema.TrainRun, result: TrainingResult, run_dir: Path) -> None:
    """Evaluate under every condition of the run, if it names any, and print a table."""
    if not run.evaluation.conditions:
        return
    loaded = load_policy("checkpoint", result.checkpoint, device=run.evaluation.device)
    results = evaluate_conditions(
        loaded.policy,
        policy_id=loaded.policy_id,
        env=run.env,
        tasks=run.tasks,
        settings=run.evaluation,
        run_dir=run_dir / "evaluation",
    )
    print(format_table(*results.values()))
    missing = shortfall(run_dir, budget=run.trainer.num_samples)
    if missing is not None:
        print(missing)
    print(f"results in {run_dir / 'evaluation'}")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")
def main(config: DictConfig) -> None:
    """Record if asked to, train, evaluate. Under torchrun, the first process alone records and evaluates."""
    run = schema.typed(config, schema.TrainRun)
    trainer_settings(run.trainer, seed=run.seed)  # wrong ones are refused before anything is recorded,
    evaluation_limits(run.evaluation, run.env.family)  # as is a runtime that there is not
    device = local_device(run.trainer.device)
    ranks = join_ranks(device)
    run_dir = Path(text_of_main(HydraConfig.get().runtime.output_dir, ranks, device))
    try:
        if ranks.is_main:
            record_if_asked(run)
            if not ranks.is_alone:
                open_data(run)  # decodes frames that are not decoded yet, for all
        wait_for_ranks(ranks)
        result = train_policy(run, run_dir, ranks=ranks)
    finally:
        leave_ranks(ranks)
    if ranks.is_main:
        print(
            f"checkpoint {result.checkpoint}, {result.num_samples:,} samples, {result.elapsed_s / 60:.1f} min"
        )
        evaluate_checkpoint(run, result, run_dir)


if __name__ == "__main__":
    cli.run(main)
