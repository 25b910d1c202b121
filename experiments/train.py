"""Trains a policy on a dataset and evaluates it; records the dataset first if asked to.

    python -m experiments.train experiment=tabletop out_dir=outputs/train/tabletop
    torchrun --nproc-per-node=4 -m experiments.train experiment=tabletop      (as many processes as GPUs)

The same command continues an interrupted run.
"""

import contextlib
import dataclasses
import hashlib
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.evaluation.results import Evaluation, format_table
from experiments.collect import collect_dataset
from experiments.config import cli, schema
from experiments.config.control_setup import evaluation_limits
from experiments.config.found import CHECKPOINT, require_directory
from experiments.config.plugins import recorded_plugins
from experiments.config.run_record import given_overrides, write_record
from experiments.config.trained_setting import SETTING
from experiments.evaluate import (
    compare_with_recording,
    evaluate_instruction_modes,
    evaluation_plans,
    load_policy,
    require_same_evaluations,
)
from experiments.objective import objective, require_metric, success_rates
from experiments.recorded_setting import recorded_setting
from experiments.reports.training import write_training_page
from experiments.resumed_run import (
    BEGUN,
    CHANGES,
    EVALUATION,
    OVERRIDES,
    SAMPLES,
    TRAINED,
    Resumption,
    begin,
    newest_weights,
    require_resumable,
    require_same_episodes,
    resumption,
)
from experiments.training_parts import (
    build_model,
    build_processor,
    datasets,
    episodes_of,
    is_simulated,
    open_data,
    require_held_out,
    require_trainable,
    require_unseen,
    rollouts_of,
    samples_before,
    seeds_of,
    trained_before,
)
from vla.data.demonstrations import DemonstrationSource
from vla.data.source import Source
from vla.files import DirectoryLock
from vla.model.checkpoint import list_checkpoints, read_model_json, read_state, resolve_checkpoint
from vla.model.vla import ModelConfig
from vla.plugins import PLUGINS
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
from vla.training.warm_start import Start, open_start, require_same_family

if TYPE_CHECKING:
    from experiments.wandb_sink import WandbSink

schema.register("train")


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


def require_settings(run: schema.TrainRun, *, run_dir: Path | None = None) -> None:
    """Check before anything is recorded that the model's parts go together, and the evaluation's runtime.

    Args:
        run: the run.
        run_dir: where it trains; None for its `out_dir`.

    Raises:
        CheckpointError: `init_from` has no checkpoint, or one of another model family or size.
        SettingError: there is nothing at `init_from`.
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
    if run.init_from is not None and not list_checkpoints(run_dir or Path(run.out_dir)):
        require_directory("init_from", Path(run.init_from), CHECKPOINT)
        directory = resolve_checkpoint(Path(run.init_from))
        require_same_family(config, read_model_json(directory)[1], source=directory)


def resumed_by(run: schema.TrainRun, run_dir: Path) -> Resumption | None:
    """Return what a run continues, after checking what it changes; None if it is new.

    Raises:
        CheckpointError: it changes what shapes what is learned, unasked, or begins with something else.
    """
    found = resumption(run_dir, cli.config_with_paths(run, cli.portable_path))
    if found is not None:
        open_start(run_dir, run.init_from)
        may_override = run.trainer.resume == "override"
        require_resumable(found, run_dir, may_override=may_override, records=run.record)
    return found


def continue_run(run: schema.TrainRun, run_dir: Path, found: Resumption, trainer: Trainer) -> None:
    """Print and record what a continued run changes, unless its evaluation could not be continued.

    Raises:
        EvaluationMismatch: nothing is left to train, and these weights were evaluated in another way.
    """
    trains_on = trainer.step < trainer.num_steps
    evaluation, weights = run_dir / EVALUATION, newest_weights(run_dir)
    if not trains_on and weights is not None and is_simulated(run, trainer.processor.robot_spec):
        plans = evaluation_plans(env=run.env, tasks=run.tasks, settings=run.evaluation)
        require_same_evaluations(evaluation, plans, policy_id=weights)
    begin(found, run_dir, command=cli.typed_command("train"), trains_on=trains_on)


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
    run: schema.TrainRun,
    train: Source,
    validation: Source,
    *,
    start: Start | None,
    resumed: Resumption | None,
) -> dict[str, Any]:
    """Return what a checkpoint should tell of its origin."""
    command = cli.typed_command("train")
    begun = {}
    if start is not None:
        given = cli.portable_path(start.given)
        told = {TRAINED: trained_before(start), SAMPLES: samples_before(start)}
        begun = {BEGUN: {**start.to_json(), "given": given, **told}}
    return {
        **begun,
        "command": command,
        OVERRIDES: given_overrides(),
        CHANGES: [] if resumed is None else resumed.history(command),
        "config": cli.config_with_paths(run, cli.portable_path),
        "versions": software_versions(),
        PLUGINS: recorded_plugins(run.plugins),
        "episodes": episodes_of(train, validation, start),
    }


def describe_data(run: schema.TrainRun, train: Source, validation: Source) -> None:
    """Print what is trained on, and what may be unexpected about it."""
    held_out = "none" if validation.num_samples == 0 else validation.describe()
    print(f"training on {train.describe()}; held out: {held_out}")
    for note in (note_on_tasks(train, run.tasks), note_on_instructions(train)):
        if note is not None:
            print(note)


def train_policy(
    run: schema.TrainRun,
    run_dir: Path,
    *,
    ranks: Ranks = ALONE,
    sinks: Sequence[MetricSink] = (),
    when_accepted: Callable[[], None] = lambda: None,
) -> TrainingResult:
    """Train, or continue, in `run_dir`, alone or together with the other processes of `torchrun`.

    Metrics go to the sinks, of which the caller closes each, and into `metrics.jsonl`; `when_accepted` is
    called when all has been compared with what is in `run_dir`, before the first step.

    Raises:
        CheckpointError: `run_dir` was trained with other settings or on other episodes.
        DirectoryInUse: another live process trains there.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was saved, calling again continues.
        NonFiniteLossError: the loss diverged; the last good checkpoint is kept.
        SeedsWereRecorded: an evaluation would be on scenes that are trained on.
        ValueError: the evaluation after training would show other pictures, or the run is to return a
            held-out number and nothing is held out.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with DirectoryLock(run_dir) if ranks.is_main else contextlib.nullcontext():
        resumed, start = resumed_by(run, run_dir), open_start(run_dir, run.init_from)
        train, validation = open_data(run)
        if ranks.is_main:
            describe_data(run, train, validation)
        require_held_out(run, validation)
        if resumed is not None:
            may_override, episodes = run.trainer.resume == "override", episodes_of(train, validation, start)
            require_same_episodes(resumed, run_dir, episodes, may_override=may_override)
        processor = build_processor(run, train, start)
        seeds = seeds_of(start, train, validation)
        is_played = is_simulated(run, processor.robot_spec)
        if is_played:  # refused before training, if at all
            require_unseen(run, seeds)
        trainer = Trainer(
            dataclasses.replace(run.trainer, seed=run.seed),
            model=build_model(run.model, processor, seed=run.seed),
            processor=processor,
            train=train,
            validation=validation,
            run_dir=run_dir,
            sinks=sinks,
            roll_out=rollouts_of(run, processor, seeds=seeds, simulated=is_played),
            start=start,
            provenance=provenance(run, train, validation, start=start, resumed=resumed)
            | seeds
            | setting(run, train, validation, processor.robot_spec),
        )
        with contextlib.closing(trainer):
            if resumed is not None and ranks.is_main:
                continue_run(run, run_dir, resumed, trainer)
            when_accepted()
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
            run_dir=run_dir / EVALUATION,
        )
        print(format_table(*results.values()))
        print(f"results in {run_dir / 'evaluation'}")
    elif loaded.provenance["episodes"]["held_out"]:
        compare_with_recording(
            loaded,
            dataset=Path(run.dataset),
            cache_dir=run.data["cache_dir"],
            execute_horizon=min(run.evaluation.execute_horizon, loaded.policy.action_horizon),
            out_dir=run_dir / EVALUATION,
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
    require_settings(run, run_dir=Path(HydraConfig.get().runtime.output_dir))
    device = local_device(run.trainer.device)
    ranks = join_ranks(device)
    run_dir = Path(text_of_main(HydraConfig.get().runtime.output_dir, ranks, device))
    try:
        if ranks.is_main:
            if resumed_by(run, run_dir) is None:
                require_trainable(run, run_dir=run_dir)
            record_if_asked(run)
            if not ranks.is_alone:
                open_data(run)  # decodes frames that are not decoded yet, for all
        wait_for_ranks(ranks)
        sink = make_sink(run, run_dir) if ranks.is_main else None
        with contextlib.nullcontext() if sink is None else contextlib.closing(sink):
            sinks = [] if sink is None else [sink]
            result = train_policy(
                run, run_dir, ranks=ranks, sinks=sinks, when_accepted=lambda: write_record(config)
            )
            leave_ranks(ranks)
            return finish(run, result, run_dir, sink=sink) if ranks.is_main else None
    finally:
        leave_ranks(ranks)


if __name__ == "__main__":
    cli.run(main)
