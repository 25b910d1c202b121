"""What a training run is made of, data, processor and model, and the check of them before any work begins."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.registry import make_env, probe_env
from experiments.collect import geometry_of
from experiments.config import schema
from experiments.config.found import DATASET
from experiments.config.robot_file import read_robot_file
from experiments.config.simulation import env_configs
from experiments.development import DevelopmentRollouts
from experiments.objective import HELD_OUT
from experiments.recorded_seeds import require_unseen_scenes, with_seeds_of
from experiments.recorded_setting import recorded_setting
from experiments.resumed_run import BEGUN, SAMPLES, TRAINED
from experiments.stand_in import demonstrations_to_come
from vla.data.demonstrations import DemonstrationSource
from vla.data.layout import INFO_PATH
from vla.data.registry import SOURCES
from vla.data.source import Source
from vla.model.checkpoint import read_state
from vla.model.vla import ModelConfig, VLAModel
from vla.processing.moments import Demonstrations
from vla.processing.processor import Processor
from vla.registry import SettingError, did_you_mean
from vla.spec import RobotSpec
from vla.training.warm_start import Start, open_start, with_statistics_of

MAY_DIFFER = ("cameras", "image_size", "same_color_share")  # of env: the first two are of the robot spec
BYTES_A_WEIGHT = 16  # fp32: weight, gradient and two moments


def require_trainable(run: schema.TrainRun, *, run_dir: Path | None = None) -> None:
    """Check a run before anything is recorded or decoded: data, robot, cameras, environment, model, start.

    The processor is fitted, and the model built without memory, on the numbers of the recording, or, where it
    is still to be made, on random ones of the environment's robot; one environment is built and drawn.

    Args:
        run: the run.
        run_dir: where it trains; None for its `out_dir`.

    Raises:
        CheckpointError: what it begins with is not there or another one than before.
        SettingError: there is no dataset, a name in `data` stands for nothing there, settings do not go
            together, or the recordings lack what an auxiliary target learns.
        DatasetError: a dataset is empty or damaged.
        SpecMismatch: environment and recordings differ in the robot, or the statistics to begin with.
        SeedsWereRecorded: an evaluation, after training or meanwhile, would be on scenes that are trained on.
    """
    if run.data["kind"] != "demonstrations":
        return  # of a plug-in: what it has, it tells when it is opened
    try:
        start = open_start(run_dir or Path(run.out_dir), run.init_from)
        train = None
        if run.record:
            demonstrations, seeds = demonstrations_to_come(run), seeds_of(start)
        else:
            require_dataset(run)
            train, validation = open_data(run, is_preview=True)
            require_held_out(run, validation)
            demonstrations, seeds = train.demonstrations(), seeds_of(start, train, validation)
        is_played = is_simulated(run, demonstrations.robot_spec)
        if is_played:
            require_unseen(run, seeds)
        processor = fit_processor(run, demonstrations, start)
        rollouts_of(run, processor, seeds=seeds, simulated=is_played)
        requests = require_model(run.model, processor).requests()
        if train is None:
            require_geometry_to_come(run, requests)
        else:
            train.batch(np.zeros(1, np.int64), processor=processor, requests=requests, seed=None)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise SettingError(str(error)) from error


def require_dataset(run: schema.TrainRun) -> None:
    """Check that the dataset is there.

    Raises:
        SettingError: it is not; the message names what is.
    """
    if not (Path(run.dataset) / INFO_PATH).exists():
        raise SettingError(
            f"dataset is {run.dataset!r}, which holds no dataset (no {INFO_PATH}). Give "
            f"dataset=<{DATASET.kind}>: {DATASET.offer()}; or record one of env={run.env['family']} there "
            "first with record=true"
        )


def require_geometry_to_come(run: schema.TrainRun, requests: Mapping[str, Any]) -> None:
    """Check that recording will measure what auxiliary targets learn.

    Raises:
        SettingError: it will not; the message says what to give.
    """
    wanted = sorted({"depth", "points", "traces"} & set(requests))
    if not wanted:
        return
    if not run.collect.geometry:
        raise SettingError(
            f"model.auxiliaries learn {wanted}, which will not be recorded; give collect.geometry=true, or "
            "take out what learns them"
        )
    measured = geometry_of(run.env["family"]).points
    for name in (*requests.get("points", ()), *requests.get("traces", {"points": ()})["points"]):
        if name not in measured:
            raise SettingError(
                f"model.auxiliaries learn where {name!r} is, and env={run.env['family']} measures no such "
                f"point; {did_you_mean(name, measured)}"
            )


def require_held_out(run: schema.TrainRun, validation: Source) -> None:
    """Check that there is what the run is to return.

    Raises:
        SettingError: it is a held-out number, and nothing is held out.
    """
    if run.metric is not None and run.metric.startswith(HELD_OUT) and validation.num_samples == 0:
        raise SettingError(f"metric={run.metric}, but nothing is held out; raise data.validation_share")


def require_unseen(run: schema.TrainRun, seeds: Mapping[str, Any]) -> None:
    """Check that the evaluation after training, if there is one, is on scenes that are not trained on.

    Args:
        run: the run.
        seeds: those trained on, as provenance.

    Raises:
        SeedsWereRecorded: it is not.
    """
    if not run.evaluation.instruction_modes:
        return
    require_unseen_scenes(
        seeds,
        family=run.env["family"],
        tasks=run.tasks,
        first_seed=run.evaluation.first_seed,
        num_episodes=run.evaluation.episodes_per_task,
    )


def open_data(run: schema.TrainRun, *, is_preview: bool = False) -> tuple[Source, Source]:
    """Return a source for training and one that is held out.

    Args:
        run: the run.
        is_preview: of recordings, leave the frames undecoded, and black.

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
        **({"decode": False} if is_preview else {}),
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
        ValueError: the environment has that robot, but another setting, or shows other cameras.
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
    require_recorded_setting(run)
    if spec.camera_names != shown.camera_names:
        raise ValueError(
            f"the policy would learn from cameras {list(spec.camera_names)}, but the evaluation after it "
            f"shows {list(shown.camera_names)}. Choose with data.cameras and env.cameras, or skip the "
            "evaluation with evaluation.instruction_modes=[]"
        )
    spec.require_same(shown, mine=f"the recording {run.dataset}", theirs="the environment of the evaluation")
    probe_env(configs)
    return True


def require_recorded_setting(run: schema.TrainRun) -> None:
    """Check that the evaluation after training is in the setting of recordings that a simulator made.

    Raises:
        SettingError: level, wording, look or another setting is that of no recording; the message says what
            to give.
    """
    recorded = recorded_setting(
        [root for root in datasets(run) if (Path(root) / INFO_PATH).exists()],
        tasks=run.tasks,
        cameras=run.env.get("cameras", ()),
        env=run.env,
        recording_same_color_share=run.collect.recording_same_color_share,
    )
    if recorded is None or recorded.family != run.env["family"]:
        return
    for key in [key for key in run.env if key in recorded.env and key not in MAY_DIFFER]:
        given, values = run.env[key], recorded.varied.get(key, [recorded.env[key]])
        if given not in values:
            raise SettingError(
                f"{run.dataset} was recorded with env.{key}={' and '.join(map(str, values))}, the evaluation "
                f"after training would be with env.{key}={given}. Give env.{key}={values[0]}, and the other "
                "one to experiments.evaluate afterward; or skip the evaluation with "
                "evaluation.instruction_modes=[]"
            )


def recorded_scenes(source: Source) -> set[tuple[str, str, int]]:
    """Return environment family, task and seed of the episodes of a source that a simulator recorded."""
    return source.windows.recorded_scenes() if isinstance(source, DemonstrationSource) else set()


def seeds_of(start: Start | None, *sources: Source) -> dict[str, Any]:
    """Return as provenance the seeds of recorded scenes, and those of what training begins with."""
    scenes = {scene for source in sources for scene in recorded_scenes(source)}
    return with_seeds_of({} if start is None else start.provenance, scenes)


def trained_before(start: Start | None) -> list[str]:
    """Return the hashes of the episodes that what a run begins with was trained on."""
    if start is None:
        return []
    if start.source is None:  # resumed: its own checkpoint tells
        return start.provenance[BEGUN][TRAINED]
    return start.provenance.get("episodes", {}).get("trained", [])


def samples_before(start: Start | None) -> int | None:
    """Return how many samples what a run begins with was trained on, in all; None where it does not tell."""
    if start is None:
        return 0
    if start.source is None:  # resumed: its own checkpoint tells
        return start.provenance[BEGUN].get(SAMPLES)
    earlier = start.provenance.get(BEGUN, {SAMPLES: 0}).get(SAMPLES)
    return None if earlier is None else earlier + read_state(start.source.path)["num_samples"]


def episodes_of(train: Source, validation: Source, start: Start | None) -> dict[str, list[str]]:
    """Return a hash of each episode, by what it is for; what a run begins with was trained on some, too."""
    before = trained_before(start)
    return {
        "trained": list(dict.fromkeys([*train.fingerprints(), *before])),
        "held_out": [one for one in validation.fingerprints() if one not in set(before)],
    }


def rollouts_of(
    run: schema.TrainRun, processor: Processor, *, seeds: Mapping[str, Any], simulated: bool
) -> DevelopmentRollouts | None:
    """Return what measures success while the run trains, if it is to be measured."""
    if run.trainer.rollout_every_samples is None:
        return None
    return DevelopmentRollouts(run, processor, seeds=seeds, is_simulated=simulated)


def build_processor(run: schema.TrainRun, train: Source, start: Start | None = None) -> Processor:
    """Fit input encoders and action codec on the training samples, or take their constants from a start."""
    return fit_processor(run, train.demonstrations(), start)


def fit_processor(run: schema.TrainRun, demonstrations: Demonstrations, start: Start | None) -> Processor:
    """Fit input encoders and action codec, or take their constants from a start, if the run asks for that.

    Raises:
        SpecMismatch: the constants are of something else.
    """
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


def build_model(model: schema.ModelConfig, processor: Processor, *, seed: int) -> VLAModel:
    """Return a model with random weights for what the processor encodes.

    Raises:
        ValueError: a setting is wrong, parts do not fit one another, or the model does not fit into memory;
            the message says which.
    """
    config = require_model(model, processor).config
    torch.manual_seed(seed)
    return VLAModel(specs=processor.specs(), config=config)


def require_model(model: schema.ModelConfig, processor: Processor) -> VLAModel:
    """Return a model that can be built, but takes no memory and has no weights.

    Raises:
        ValueError: as in `build_model`.
    """
    config = ModelConfig.complete(backbone=model.backbone, head=model.head, auxiliaries=model.auxiliaries)
    specs = processor.specs()
    with torch.device("meta"):  # takes no memory
        model_without_weights = VLAModel(specs=specs, config=config)
    num_weights = model_without_weights.num_parameters()
    needed_gb = num_weights * BYTES_A_WEIGHT / 1e9
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if needed_gb > memory_gb:
        raise ValueError(
            f"model has {num_weights:,} weights, which take {needed_gb:.0f} GB to train, and this machine "
            f"has {memory_gb:.0f} GB of memory; lower width, expert_width, depth or mlp_ratio in model"
        )
    return model_without_weights
