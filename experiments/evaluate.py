"""Measures a policy in simulation: success by task with intervals, language controls, videos, a report.

    python -m experiments.evaluate path=outputs/train/tabletop
    python -m experiments.evaluate path=outputs/bundle tasks=[lift] env.level=heldout
    python -m experiments.evaluate path=outputs/train/tabletop evaluation.runtime=robot
    python -m experiments.evaluate path=outputs/train/so101 dataset=recordings/so101

Environment, tasks, cameras and look are those that the policy was trained in, unless the command line says
otherwise; what is different is printed. The last example compares actions with those of recorded episodes
that the policy was not trained on, for robots that no simulator here has. Each instruction mode has its own
folder with `episodes.jsonl` and `results.json`, and continues where it stopped. A bundle runs without torch,
which is checked at the end.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.evaluation.evaluate import evaluate, require_same_evaluation
from envs.evaluation.results import (
    Evaluation,
    EvaluationPlan,
    EvaluationSettings,
    folder_of_mode,
    format_table,
)
from envs.registry import probe_env
from experiments.config import cli, schema
from experiments.config.control_setup import evaluation_limits
from experiments.config.found import BUNDLE
from experiments.config.simulation import env_configs
from experiments.config.trained_setting import describe
from experiments.objective import objective, require_metric, success_rates
from experiments.offline import OfflineEvaluation, evaluate_offline, unseen_episodes
from experiments.recorded_seeds import require_unseen_scenes
from experiments.reports.offline import write_offline_page
from experiments.reports.pages import write_evaluation_page
from vla.data.demonstrations import DemonstrationSource
from vla.data.windows import open_windows
from vla.files import atomic_write_json
from vla.interface import Policy
from vla.processing.processor import Processor

schema.register("evaluate")


class TorchImported(RuntimeError):
    """The evaluation of a bundle, which is to run without torch, imported it."""


class LoadedPolicy(NamedTuple):
    """A policy, which kind it is, the hash that identifies it, and where it comes from."""

    kind: str  # "checkpoint" or "bundle"
    policy: Policy
    policy_id: str
    provenance: Mapping[str, Any]
    processor: Processor


def load_policy(
    kind: str, path: Path, *, device: str, num_workers: int, head: Mapping[str, Any] | None = None
) -> LoadedPolicy:
    """Load a checkpoint (or the newest of a training run) with torch, or a bundle without.

    Args:
        kind: "checkpoint", "bundle", or "auto": what lies there.
        path: where it lies.
        device: "auto", "cpu" or "cuda"; what a checkpoint runs on is printed.
        num_workers: simulating processes beside it; on a CPU it uses the cores that they leave.
        head: of a checkpoint: settings that no weight depends on, in place of those of training.

    Raises:
        ValueError: `kind` or `device` is none of these or cannot be had, or what lies at `path` is damaged or
            something else.
    """
    if kind == "auto":
        kind = "bundle" if BUNDLE.is_at(path) else "checkpoint"
    if kind == "bundle":
        if device not in ("auto", "cpu"):
            raise ValueError(
                f"evaluation.device is {device!r}, but a bundle runs on the CPU; give cpu or auto"
            )
        if head:
            raise ValueError(
                f"head is {dict(head)}, but what a bundle samples with is fixed when it is exported; give "
                "it to experiments.export"
            )
        from policies.exported import BundlePolicy

        bundle = BundlePolicy.load(path)
        return LoadedPolicy(kind, bundle, bundle.bundle_id, bundle.provenance, bundle.processor)
    if kind == "checkpoint":
        from policies.vla_policy import VLAPolicy, load_policy_checkpoint, threads_beside
        from vla.model.checkpoint import which_checkpoint
        from vla.training.distributed import local_device

        loaded = load_policy_checkpoint(path, head=head)
        chosen = str(local_device(device, key="evaluation.device"))
        print(f"evaluating {which_checkpoint(loaded.path)}, on {chosen}")
        policy = VLAPolicy(
            model=loaded.model,
            processor=loaded.processor,
            device=chosen,
            num_threads=threads_beside(num_workers),
        )
        policy_id = loaded.checkpoint_id
        if head:  # other settings, other numbers
            policy_id = f"{policy_id} with {json.dumps(dict(head), sort_keys=True)}"
        return LoadedPolicy(kind, policy, policy_id, loaded.provenance, loaded.processor)
    raise ValueError(f"policy is {kind!r}; it must be 'auto', 'checkpoint' or 'bundle'")


def evaluate_instruction_modes(
    policy: Policy,
    *,
    policy_id: str,
    provenance: Mapping[str, Any],
    env: Mapping[str, Any],
    tasks: Sequence[str],
    settings: schema.EvaluationRunSettings,
    run_dir: Path,
) -> dict[str, Evaluation]:
    """Evaluate in every instruction mode, each in `run_dir/<mode>`, and return the results by mode.

    Raises:
        SeedsWereRecorded: an episode is a scene of which the policy was given a demonstration.
        SpecMismatch: the environment has another robot than the policy, or other cameras.
        ValueError: an instruction mode, a task or the runtime is unknown, or `run_dir` holds something else.
        NoOpenGL: nothing can draw here.
    """
    require_unseen_scenes(
        provenance,
        family=env["family"],
        tasks=tasks,
        first_seed=settings.first_seed,
        num_episodes=settings.episodes_per_task,
    )
    plans = evaluation_plans(env=env, tasks=tasks, settings=settings)
    require_same_evaluations(run_dir, plans, policy_id=policy_id)
    shown = probe_env(env_configs(env, list(tasks)))
    policy.robot_spec.require_same(shown, mine="the policy", theirs=f"the environment {env['family']}")
    return {
        mode: evaluate(policy, plan, run_dir=folder_of_mode(run_dir, mode), policy_id=policy_id)
        for mode, plan in plans.items()
    }


def require_same_evaluations(run_dir: Path, plans: Mapping[str, EvaluationPlan], *, policy_id: str) -> None:
    """Check that evaluations, by instruction mode, may be continued in a directory.

    Raises:
        EvaluationMismatch: one holds rows of another policy or plan; nothing was changed.
    """
    for mode, plan in plans.items():
        require_same_evaluation(folder_of_mode(run_dir, mode), plan, policy_id=policy_id)


def evaluation_plans(
    *, env: Mapping[str, Any], tasks: Sequence[str], settings: schema.EvaluationRunSettings
) -> dict[str, EvaluationPlan]:
    """Return the plan of each instruction mode.

    Raises:
        ValueError: an instruction mode, a task or the runtime is unknown.
    """
    limits = evaluation_limits(settings, env["family"])
    configs: Mapping[str, dict[str, Any]] = env_configs(env, list(tasks))
    shared = {field.name: getattr(settings, field.name) for field in dataclasses.fields(EvaluationSettings)}
    num_control_videos = min(1, settings.videos_per_task)
    return {
        mode: EvaluationPlan(
            env_configs=configs,
            instruction_mode=mode,
            limits=limits,
            **(shared if mode == "original" else {**shared, "videos_per_task": num_control_videos}),
        )
        for mode in settings.instruction_modes
    }


def compare_with_recording(
    loaded: LoadedPolicy,
    *,
    dataset: Path,
    cache_dir: str,
    execute_horizon: int,
    out_dir: Path,
    title: str,
    command: str,
) -> OfflineEvaluation:
    """Compare a policy with the recorded episodes that it was not trained on; print a table, write a page.

    Args:
        loaded: the policy.
        dataset: directory of the recording.
        cache_dir: where its decoded frames are kept.
        execute_horizon: control periods from one inference to the next.
        out_dir: gets offline.json and offline.html.
        title: of the page.
        command: that made it.

    Raises:
        DatasetError: the recording is damaged, or of another robot.
        NothingHeldOut: the policy was trained on all of it.
    """
    spec, resizing = loaded.policy.robot_spec, loaded.processor.resizing
    source = DemonstrationSource(
        open_windows(
            [dataset],
            cache_dir=cache_dir,
            action_horizon=loaded.policy.action_horizon,
            frame_offsets=loaded.policy.frame_offsets,
            robot_spec=spec,
            cameras=spec.camera_names,
            resizing=resizing,
        )
    )
    known = loaded.provenance.get("episodes", {"trained": [], "held_out": []})
    episodes, what = unseen_episodes(source, **known)
    evaluation = evaluate_offline(loaded.policy, source, episodes, execute_horizon=execute_horizon, what=what)
    out_dir.mkdir(parents=True, exist_ok=True)
    atomic_write_json(out_dir / "offline.json", evaluation.to_json())
    write_offline_page(out_dir / "offline.html", evaluation, title=title, command=command)
    print(f"{evaluation.num_episodes} episodes ({what}), asked at {evaluation.num_moments} moments")
    print(evaluation.table())
    print(f"report: {out_dir / 'offline.html'}")
    return evaluation


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="evaluate")
def main(config: DictConfig) -> float | None:
    """Evaluate, and return what `metric` names."""
    run = schema.typed(config, schema.EvaluateRun)
    schema.require_inputs(run)
    modes = [] if run.dataset is not None else run.evaluation.instruction_modes
    require_metric(run.metric, modes=modes, losses=())
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    evaluation_limits(run.evaluation, run.env["family"])  # refused before anything is loaded
    loaded = load_policy(
        run.policy,
        Path(run.path),
        device=run.evaluation.device,
        num_workers=run.evaluation.num_workers,
        head=run.head,
    )
    if run.dataset is not None:
        compare_with_recording(
            loaded,
            dataset=Path(run.dataset),
            cache_dir=run.cache_dir,
            execute_horizon=run.evaluation.execute_horizon,
            out_dir=run_dir,
            title=f"{cli.portable_path(run.path)} on {cli.portable_path(run.dataset)}",
            command=cli.typed_command("evaluate"),
        )
        return None
    print(describe(loaded.provenance, source=Path(run.path), env=run.env, tasks=run.tasks), flush=True)
    results = evaluate_instruction_modes(
        loaded.policy,
        policy_id=loaded.policy_id,
        provenance=loaded.provenance,
        env=run.env,
        tasks=run.tasks,
        settings=run.evaluation,
        run_dir=run_dir,
    )
    print(format_table(*results.values()))
    write_evaluation_page(
        run_dir / "report.html",
        results,
        title=f"Evaluation of {cli.portable_path(run.path)}",
        command=cli.typed_command("evaluate"),
    )
    if loaded.kind == "bundle":
        if "torch" in sys.modules:
            raise TorchImported(
                "something imported torch; a bundle must not need it. Leave out plug-ins that import torch, "
                "such as heads, which a bundle has in its graph, or name their parts in a file that does not"
            )
        print("torch was not imported")
    print(f"report: {run_dir / 'report.html'}")
    return objective(run.metric, success_rates(results))


if __name__ == "__main__":
    cli.run(main)
