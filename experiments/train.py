"""Trains a policy on a dataset and evaluates it; records the dataset first if asked to.

    python -m experiments.train experiment=tabletop out_dir=outputs/train/tabletop
    torchrun --nproc-per-node=4 -m experiments.train experiment=tabletop      (as many processes as GPUs)

The same command continues an interrupted run.
"""

import contextlib
import dataclasses
import hashlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.evaluation.results import Evaluation, format_table
from envs.registry import make_env, probe_env
from experiments.collect import collect_dataset
from experiments.config import cli, schema
from experiments.config.control_setup import evaluation_limits
from experiments.config.plugins import recorded_plugins
from experiments.config.robot_file import read_robot_file
from experiments.config.simulation import env_configs
from experiments.config.trained_setting import SETTING
from experiments.development import DevelopmentRollouts
from experiments.evaluate import compare_with_recording, evaluate_instruction_modes, load_policy
from experiments.objective import HELD_OUT, objective, require_metric, success_rates
from experiments.recorded_seeds import require_unseen_scenes, with_seeds_of
from experiments.recorded_setting import recorded_setting
from experiments.reports.training import write_training_page
from vla.data.demonstrations import DemonstrationSource
from vla.data.origin import read_extra_info
from vla.data.registry import SOURCES
from vla.data.source import Source
from vla.files import DirectoryLock
from vla.model.checkpoint import list_checkpoints, read_model_json, read_state, resolve_checkpoint
from vla.model.vla import ModelConfig, VLAModel
from vla.plugins import PLUGINS
from vla.processing.processor import Processor
from vla.processing.text import equal_instructions
from vla.provenance import software_versions
from vla.registry import SettingError
from vla.spec import RobotSpec, SpecMismatch
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
from vla.training.settings import INTERRUPTED, TrainingResult, out_of_time_message
from vla.training.trainer import Trainer
from vla.training.warm_start import Start, open_start, require_same_family, with_statistics_of

if TYPE_CHECKING:
    from experiments.wandb_sink import WandbSink

schema.register("train")

BYTES_A_WEIGHT = 16  # fp32: weight, gradient and two moments


def open_data(run: schema.TrainRun) -> tuple[Source, Source]:
    """Return a source for training and one that is held out.

    Raises:
        DatasetError: a dataset is missing, empty or damaged.
        ValueError: a setting of `data` is wrong, or a camera was not recorded.
    """
    return SOURCES.build(
        run.data,
        where="data",
        dataset=run.dataset,
        action_horizon=run.processor.action_horizon,
        frame_offsets=run.processor.frame_offsets,
        robot_spec=None if run.robot_file is None else read_robot_file(run.robot_file).spec,
    )


def datasets(run: schema.TrainRun) -> list[str]:
    """Return the directories of all recordings that a run trains on."""
    return [run.dataset, *(run.data.get("more_datasets") or ())]


def is_simulated(run: schema.TrainRun, spec: RobotSpec) -> bool:
    """Tell whether the policy will be rolled out, after training or meanwhile, and check that it can be.

    It will if the recordings are of the environment's robot; else its actions are compared with held-out
    recorded ones.

    Args:
        run: the run.
        spec: the robot of the recordings, with the cameras that the policy sees.

    Raises:
        ValueError: the environment has that robot, but shows other cameras or draws in another quality.
        SpecMismatch: it differs in something else.
        NoOpenGL: nothing can draw here.
    """
    is_rolled_out = bool(run.evaluation.instruction_modes) or run.trainer.rollout_every_samples is not None
    if not is_rolled_out or run.robot_file is not None:
        return False
    configs = env_configs(run.env, run.tasks)
    env = make_env(next(iter(configs.values())))
    shown = env.robot_spec
    env.close()
    if spec.name != shown.name:
        return False
    quality_shown = run.env.get("render_quality")
    for root in datasets(run):
        recorded_by_us = read_extra_info(Path(root)).get("env", {})
        quality = recorded_by_us.get("render_quality", quality_shown)
        if quality != quality_shown:
            raise ValueError(
                f"{root} was drawn with render_quality={quality}, the evaluation after training would draw "
                f"with {quality_shown}. Give env.render_quality={quality}, or skip the evaluation "
                "with evaluation.instruction_modes=[]"
            )
    if spec.camera_names != shown.camera_names:
        raise ValueError(
            f"the policy would learn from cameras {list(spec.camera_names)}, but the evaluation after it "
            f"shows {list(shown.camera_names)}. Choose with data.cameras and env.cameras, or skip the "
            "evaluation with evaluation.instruction_modes=[]"
        )
    spec.require_same(shown, mine=f"the recording {run.dataset}", theirs="the environment of the evaluation")
    probe_env(configs)
    return True


def build_processor(run: schema.TrainRun, train: Source, start: Start | None = None) -> Processor:
    """Fit input encoders and action codec on the training samples, or take their constants from a start."""
    demonstrations = train.demonstrations()
    processor = Processor.fit(
        demonstrations,
        codec=run.codec,
        inputs=run.processor.inputs,
        frame_offsets=run.processor.frame_offsets,
        max_committed=run.processor.max_committed,
    )
    if start is None or run.init_statistics == "data":
        return processor
    return with_statistics_of(
        processor,
        Processor.from_json(start.processor_json),
        instructions=demonstrations.instructions,
        source=Path(start.given),
    )


def recorded_scenes(source: Source) -> set[tuple[str, str, int]]:
    """Return environment family, task and seed of the episodes of a source that a simulator recorded."""
    return source.windows.recorded_scenes() if isinstance(source, DemonstrationSource) else set()


def setting(
    run: schema.TrainRun, train: Source, validation: Source, spec: RobotSpec
) -> dict[str, dict[str, Any]]:
    """Return what provenance keeps of the environment of the demonstrations; nothing for other recordings."""
    names = {
        name
        for source in (train, validation)
        if isinstance(source, DemonstrationSource)
        for name in source.task_names
    }
    found = recorded_setting(
        datasets(run) if isinstance(train, DemonstrationSource) else (),
        tasks=sorted(names),
        cameras=spec.camera_names,
        env=run.env,
        recording_same_color_share=run.collect.recording_same_color_share,
    )
    return {} if found is None else {SETTING: found.to_json()}


def note_on_tasks(train: Source, tasks: Sequence[str]) -> str | None:
    """Return a line about recorded tasks that are trained on besides those that will be evaluated."""
    recorded = train.task_names if isinstance(train, DemonstrationSource) else []
    others = [name for name in recorded if name not in tasks]
    if not others or len(others) == len(recorded):
        return None
    return (
        f"tasks={list(tasks)} are those to record and evaluate; {len(others)} more are trained on, such as "
        f"{others[0]!r}. data.tasks chooses among them"
    )


def note_on_instructions(train: Source) -> str | None:
    """Return a line about instructions that a policy cannot tell apart because only their writing differs."""
    _, pairs = equal_instructions(train.demonstrations().instructions)
    if not pairs:
        return None
    one, other = pairs[0]
    return (
        f"{len(pairs)} pairs of instructions differ in writing alone and count as one, such as {one!r} and "
        f"{other!r}"
    )


def build_model(model: schema.ModelConfig, processor: Processor, *, seed: int) -> VLAModel:
    """Return a model with random weights for what the processor encodes.

    Raises:
        ValueError: a setting is wrong, parts do not fit one another, or the model does not fit into memory;
            the message says which.
    """
    config = ModelConfig.complete(backbone=model.backbone, head=model.head, auxiliaries=model.auxiliaries)
    specs = processor.specs()
    with torch.device("meta"):  # takes no memory
        num_weights = VLAModel(specs=specs, config=config).num_parameters()
    needed_gb = num_weights * BYTES_A_WEIGHT / 1e9
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if needed_gb > memory_gb:
        raise ValueError(
            f"model has {num_weights:,} weights, which take {needed_gb:.0f} GB to train, and this machine "
            f"has {memory_gb:.0f} GB of memory; lower width, expert_width, depth or mlp_ratio in model"
        )
    torch.manual_seed(seed)
    return VLAModel(specs=specs, config=config)


def require_settings(run: schema.TrainRun) -> None:
    """Check before anything is recorded that the model's parts go together, and the evaluation's runtime.

    Raises:
        CheckpointError: `init_from` has no checkpoint, or one of another model family or size.
        ValueError: they do not, or the runtime has no limits for the environment.
    """
    evaluation_limits(run.evaluation, run.env["family"])
    require_metric(
        run.metric,
        modes=run.evaluation.instruction_modes,
        losses=["action_loss", "loss", "token_accuracy", *(f"loss/{name}" for name in run.model.auxiliaries)],
    )
    model = run.model
    config = ModelConfig.complete(backbone=model.backbone, head=model.head, auxiliaries=model.auxiliaries)
    if run.init_from is None and run.init_statistics != "data":
        raise SettingError(
            "init_statistics=checkpoint needs init_from, the checkpoint that they are taken from"
        )
    if run.init_from is not None and not list_checkpoints(Path(run.out_dir)):
        directory = resolve_checkpoint(Path(run.init_from))
        require_same_family(config, read_model_json(directory)[1], source=directory)


def make_sink(run: schema.TrainRun, run_dir: Path) -> "WandbSink | None":
    """Return where metrics go besides the JSON lines that the trainer always writes, if anywhere.

    Raises:
        ValueError: wandb is not installed.
    """
    if run.logger == "jsonl":
        return None
    try:
        from experiments.wandb_sink import WandbSink
    except ModuleNotFoundError as error:
        raise ValueError("logger=wandb needs wandb: run .venv/bin/pip install -e '.[wandb]'") from error
    run_id = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]  # a resumed run is the same run
    return WandbSink(
        run_dir=run_dir,
        settings=run.wandb,
        config=cli.config_with_paths(run, cli.portable_path),
        run_id=run_id,
    )


def provenance(
    run: schema.TrainRun, train: Source, validation: Source, start: Start | None
) -> dict[str, Any]:
    """Return what a checkpoint should tell of its origin; it was trained on what its start was trained on."""
    before = [] if start is None else start.provenance.get("episodes", {}).get("trained", [])
    trained = list(dict.fromkeys([*train.fingerprints(), *before]))
    begun = (
        {} if start is None else {"init_from": {**start.to_json(), "given": cli.portable_path(start.given)}}
    )
    return {
        **begun,
        "command": cli.typed_command("train"),
        "config": cli.config_with_paths(run, cli.portable_path),
        "versions": software_versions(),
        PLUGINS: recorded_plugins(run.plugins),
        "episodes": {
            "trained": trained,
            "held_out": [one for one in validation.fingerprints() if one not in set(before)],
        },
    }


def rollouts_of(
    run: schema.TrainRun, processor: Processor, *, seeds: Mapping[str, Any], simulated: bool
) -> DevelopmentRollouts | None:
    """Return what measures success while the run trains, if it is to be measured."""
    if run.trainer.rollout_every_samples is None:
        return None
    return DevelopmentRollouts(run, processor, seeds=seeds, is_simulated=simulated)


def train_policy(
    run: schema.TrainRun, run_dir: Path, *, ranks: Ranks = ALONE, sinks: Sequence[MetricSink] = ()
) -> TrainingResult:
    """Train, or continue, in `run_dir`, alone or together with the other processes of `torchrun`.

    Metrics go to the sinks, of which the caller closes each, and into `metrics.jsonl`.

    Raises:
        DirectoryInUse: another live process trains there.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was saved, calling again continues.
        NonFiniteLossError: the loss diverged; the last good checkpoint is kept.
        SeedsWereRecorded: the evaluation after training would be on scenes that are trained on.
        ValueError: the evaluation after training would show other pictures, or the run is to return a
            held-out number and nothing is held out.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with DirectoryLock(run_dir) if ranks.is_main else contextlib.nullcontext():
        train, validation = open_data(run)
        if ranks.is_main:
            held_out = "none" if validation.num_samples == 0 else validation.describe()
            print(f"training on {train.describe()}; held out: {held_out}")
            for note in (note_on_tasks(train, run.tasks), note_on_instructions(train)):
                if note is not None:
                    print(note)
        if run.metric is not None and run.metric.startswith(HELD_OUT) and validation.num_samples == 0:
            raise ValueError(f"metric={run.metric}, but nothing is held out; raise data.validation_share")
        start = open_start(run_dir, run.init_from)
        processor = build_processor(run, train, start)
        seeds = with_seeds_of(
            {} if start is None else start.provenance, recorded_scenes(train) | recorded_scenes(validation)
        )
        simulated = is_simulated(run, processor.robot_spec)
        if simulated and run.evaluation.instruction_modes:  # refused before training, if at all
            require_unseen_scenes(
                seeds,
                family=run.env["family"],
                tasks=run.tasks,
                first_seed=run.evaluation.first_seed,
                num_episodes=run.evaluation.episodes_per_task,
            )
        trainer = Trainer(
            dataclasses.replace(run.trainer, seed=run.seed),
            model=build_model(run.model, processor, seed=run.seed),
            processor=processor,
            train=train,
            validation=validation,
            run_dir=run_dir,
            sinks=sinks,
            roll_out=rollouts_of(run, processor, seeds=seeds, simulated=simulated),
            start=start,
            provenance=provenance(run, train, validation, start)
            | seeds
            | setting(run, train, validation, processor.robot_spec),
        )
        with contextlib.closing(trainer):
            result = trainer.fit()
    if result.end == INTERRUPTED:
        raise cli.ENDED_BY[result.signal or signal.SIGINT]
    return result


def shortfall(run_dir: Path, *, budget: int) -> str | None:
    """Return a sentence for a run whose time ended before its budget of samples, else None.

    Raises:
        CheckpointError: there is no checkpoint in `run_dir`.
    """
    done = read_state(resolve_checkpoint(run_dir))["num_samples"]
    return None if done >= budget else out_of_time_message(done, budget=budget)


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
            f"{mismatch}\ngive record=false to train on what is there, or another dataset to record anew"
        ) from mismatch


def evaluate_checkpoint(
    run: schema.TrainRun, result: TrainingResult, run_dir: Path
) -> Mapping[str, Evaluation]:
    """Measure the policy, if the run names any instruction mode, print a table, and return it by mode.

    In simulation in each of these modes; on held-out episodes where the robot is in no simulator.
    """
    results: Mapping[str, Evaluation] = {}
    if not run.evaluation.instruction_modes:
        return results
    loaded = load_policy(
        "checkpoint", result.checkpoint, device=run.evaluation.device, num_workers=run.evaluation.num_workers
    )
    if is_simulated(run, loaded.policy.robot_spec):
        results = evaluate_instruction_modes(
            loaded.policy,
            policy_id=loaded.policy_id,
            provenance=loaded.provenance,
            env=run.env,
            tasks=run.tasks,
            settings=run.evaluation,
            run_dir=run_dir / "evaluation",
        )
        print(format_table(*results.values()))
        print(f"results in {run_dir / 'evaluation'}")
    elif loaded.provenance["episodes"]["held_out"]:
        compare_with_recording(
            loaded,
            dataset=Path(run.dataset),
            cache_dir=run.data["cache_dir"],
            execute_horizon=min(run.evaluation.execute_horizon, loaded.policy.action_horizon),
            out_dir=run_dir / "evaluation",
            title=f"Training on {run.dataset}",
            command=cli.typed_command("train"),
        )
    else:
        print("not evaluated: no simulator has this robot, and no episode is held out")
    missing = shortfall(run_dir, budget=run.trainer.num_samples)
    if missing is not None:
        print(missing)
    return results


def finish(
    run: schema.TrainRun, result: TrainingResult, run_dir: Path, *, sink: "WandbSink | None"
) -> float | None:
    """Write the page, evaluate, write the page again, and return what the run is to return.

    Raises:
        NoSuchMetric: the run did not measure that.
    """
    print(f"checkpoint {result.checkpoint}, {result.num_samples:,} samples, {result.elapsed_s / 60:.1f} min")
    page, command = run_dir / "report.html", cli.typed_command("train")
    write_training_page(page, result, run_dir=run_dir, results={}, command=command)
    results = evaluate_checkpoint(run, result, run_dir)
    write_training_page(page, result, run_dir=run_dir, results=results, command=command)
    print(f"report: {page}")
    if sink is not None and results:
        sink.log_evaluation(result.step, results)
    return objective(run.metric, {**result.metrics, **success_rates(results)})


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """Record if asked to, train, evaluate. Under torchrun, the first process alone records and evaluates.

    Returns:
        What `metric` names, for a sweeper.
    """
    run = schema.typed(config, schema.TrainRun)
    require_settings(run)
    device = local_device(run.trainer.device)
    ranks = join_ranks(device)
    run_dir = Path(text_of_main(HydraConfig.get().runtime.output_dir, ranks, device))
    try:
        if ranks.is_main:
            record_if_asked(run)
            if not ranks.is_alone:
                open_data(run)  # decodes frames that are not decoded yet, for all
        wait_for_ranks(ranks)
        sink = make_sink(run, run_dir) if ranks.is_main else None
        with contextlib.nullcontext() if sink is None else contextlib.closing(sink):
            sinks = [] if sink is None else [sink]
            result = train_policy(run, run_dir, ranks=ranks, sinks=sinks)
            leave_ranks(ranks)
            return finish(run, result, run_dir, sink=sink) if ranks.is_main else None
    finally:
        leave_ranks(ranks)


if __name__ == "__main__":
    cli.run(main)
