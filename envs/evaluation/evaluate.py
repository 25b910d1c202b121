"""Measures the success of a policy: runs planned episodes, keeps their record and films some of them.

A directory holds one evaluation, of one policy under one plan: `plan.json`, `episodes.jsonl` (one row as each
episode ends), `actions/` (what was executed, for replays), `results.json` and `videos/`. Running it again
continues where it stopped. See rollout.py for episodes and results.py for the results.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from envs.evaluation.episodes import EpisodeRow, read_rows
from envs.evaluation.results import PLAN, Evaluation, EvaluationPlan, VideoRecord, actions_path, read_plan
from envs.rollout import EpisodeRequest, EpisodeResult, run_episodes
from envs.videos import Recording, film
from envs.workers import MAKE_ENV
from vla.errors import Refusal
from vla.files import DirectoryLock, JsonLinesAppender, atomic_write_json, staged_file
from vla.interface import Policy
from vla.provenance import software_versions

_FREE_TO_CHANGE = ("episodes_per_task", "num_workers", "envs_per_worker", "videos_per_task")


class EvaluationMismatch(Refusal):
    """A directory holds the evaluation of another policy or of another plan."""


def evaluate(
    policy: Policy,
    plan: EvaluationPlan,
    *,
    run_dir: Path,
    policy_id: str,
    env_factory: str = MAKE_ENV,
    show_progress: bool = True,
) -> Evaluation:
    """Run the episodes of a plan that have no row yet, write `results.json` and film the chosen ones.

    Args:
        policy: what to evaluate.
        plan: which episodes.
        run_dir: made if it does not exist; continued if it holds rows of the same policy and plan.
        policy_id: what identifies the policy, such as the hash of its checkpoint.
        env_factory: ``module:function`` that makes an environment from a configuration.
        show_progress: print a bar with the running success rate.

    Raises:
        EvaluationMismatch: `run_dir` holds rows of another policy or plan.
        ValueError: the policy predicts fewer actions.
        DirectoryInUse: another evaluation writes there.
        WorkerError: an environment failed; the rows so far are kept, and the next call continues.
    """
    started_s = time.monotonic()
    _prepare(run_dir, plan, policy)
    with DirectoryLock(run_dir):
        rows = _matching_rows(run_dir, plan, policy_id)
        requests = plan.requests()
        done = {(row.task, row.seed) for row in rows}
        missing = [request for request in requests if (request.task, request.seed) not in done]
        if rows:
            _write_plan(run_dir, plan, policy_id)
        rows += _run_missing(
            policy,
            plan,
            missing,
            rows,
            run_dir=run_dir,
            policy_id=policy_id,
            env_factory=env_factory,
            show_progress=show_progress,
        )
        order = {(request.task, request.seed): index for index, request in enumerate(requests)}
        planned = sorted(
            (row for row in rows if (row.task, row.seed) in order), key=lambda row: order[row.task, row.seed]
        )
        evaluation = Evaluation(
            run_dir=run_dir,
            plan=plan,
            policy_id=policy_id,
            rows=tuple(planned),
            wall_s=time.monotonic() - started_s,
        )
        atomic_write_json(run_dir / "results.json", evaluation.to_json())
        videos = _film_some(evaluation, env_factory)
        evaluation = dataclasses.replace(evaluation, videos=tuple(videos))
        atomic_write_json(run_dir / "results.json", evaluation.to_json())
    return evaluation


def _prepare(run_dir: Path, plan: EvaluationPlan, policy: Policy) -> None:
    """Make the directory, unless the policy predicts fewer actions than are to be executed."""
    if plan.execute_horizon > policy.action_horizon:
        raise ValueError(
            f"evaluation.execute_horizon is {plan.execute_horizon}; it must lie in "
            f"[1, {policy.action_horizon}], as the policy predicts that many actions"
        )
    (run_dir / "actions").mkdir(parents=True, exist_ok=True)


def require_same_evaluation(run_dir: Path, plan: EvaluationPlan, *, policy_id: str) -> None:
    """Check that a directory may be continued by `evaluate`, without changing anything.

    Raises:
        EvaluationMismatch: it holds rows of another policy or plan.
        DamagedFile: its record is damaged, or two rows contradict each other.
    """
    _matching_rows(run_dir, plan, policy_id)


def _matching_rows(run_dir: Path, plan: EvaluationPlan, policy_id: str) -> list[EpisodeRow]:
    """Return the rows that are there already, after making sure that they belong to this evaluation.

    The plan of an evaluation that never ended an episode binds nobody: it may have been a mistake.
    """
    advice = "choose another directory, or delete this one"
    log_path = run_dir / "episodes.jsonl"
    rows = read_rows(log_path) if log_path.exists() else []
    if not rows:
        return []  # a plan of which nothing was run, such as one that could not be, binds nobody
    expected = (policy_id, plan.instruction_mode)
    strange = [row for row in rows if (row.policy_id, row.instruction_mode) != expected]
    has_plan = (run_dir / PLAN).exists()
    if has_plan:
        _require_same_plan(run_dir, plan, policy_id, advice)
    if strange or not has_plan:
        raise EvaluationMismatch(
            f"{log_path} has {len(strange)} of {len(rows)} rows of another policy or instruction mode "
            f"and {'a' if has_plan else 'no'} {PLAN}; {advice}"
        )
    return rows


def _require_same_plan(run_dir: Path, plan: EvaluationPlan, policy_id: str, advice: str) -> None:
    stored_id, stored_plan = read_plan(run_dir)
    if stored_id != policy_id:
        raise EvaluationMismatch(
            f"{run_dir} holds results of policy {stored_id!r}, not {policy_id!r}; {advice}"
        )
    stored, new = (json.loads(json.dumps(one.to_json())) for one in (stored_plan, plan))
    differing = [
        f"{key}: {stored[key]!r} there, {new[key]!r} now"
        for key in new
        if key not in _FREE_TO_CHANGE and stored[key] != new[key]
    ]
    if differing:
        listing = "\n  ".join(differing)
        raise EvaluationMismatch(f"{run_dir} holds an evaluation with another plan; {advice}:\n  {listing}")


def _run_missing(
    policy: Policy,
    plan: EvaluationPlan,
    missing: Sequence[EpisodeRequest],
    rows: Sequence[EpisodeRow],
    *,
    run_dir: Path,
    policy_id: str,
    env_factory: str,
    show_progress: bool,
) -> list[EpisodeRow]:
    """Run episodes, append a row for each as it ends, and return the new rows."""
    versions = software_versions()
    results = run_episodes(
        policy,
        missing,
        execute_horizon=plan.execute_horizon,
        num_workers=plan.num_workers,
        envs_per_worker=plan.envs_per_worker,
        ensemble_decay=plan.ensemble_decay,
        limits=plan.limits,
        env_factory=env_factory,
    )
    new: list[EpisodeRow] = []
    successes = sum(row.success for row in rows)
    bar = tqdm(
        total=len(rows) + len(missing),
        initial=len(rows),
        desc=f"evaluate, {plan.instruction_mode} instruction",
        unit="episode",
        disable=not show_progress,
        mininterval=0.5 if sys.stderr.isatty() else 20.0,
    )
    log = JsonLinesAppender(run_dir / "episodes.jsonl", is_durable=True)
    with bar, log, contextlib.closing(results):
        for result in results:
            if not rows and not new:
                _write_plan(run_dir, plan, policy_id)  # not before: what cannot be run leaves no plan
            _save_actions(actions_path(run_dir, result.request.task, result.request.seed), result.actions)
            new.append(_row(result, policy_id, versions))
            log.append(new[-1].to_json())
            successes += result.success
            bar.set_postfix_str(f"success {100 * successes / (len(rows) + len(new)):.0f} %", refresh=False)
            bar.update()
    return new


def _write_plan(run_dir: Path, plan: EvaluationPlan, policy_id: str) -> None:
    atomic_write_json(run_dir / PLAN, {"policy_id": policy_id, "plan": plan.to_json()})


def _row(result: EpisodeResult, policy_id: str, versions: dict[str, str]) -> EpisodeRow:
    return EpisodeRow(
        task=result.request.task,
        seed=result.request.seed,
        instruction_mode=result.request.instruction_mode,
        instruction=result.instruction,
        given_instruction=result.given_instruction,
        level=str(result.request.env_config.get("level", "")),
        steps=result.steps,
        success=result.success,
        num_clipped=result.num_clipped,
        stop_reason=result.stop_reason,
        wall_s=round(result.wall_s, 3),
        policy_id=policy_id,
        versions=versions,
    )


def _save_actions(path: Path, actions: Float32[np.ndarray, "time action"]) -> None:
    with staged_file(path) as staging, staging.open("xb") as file:
        np.save(file, actions)


def _to_film(evaluation: Evaluation) -> list[EpisodeRow]:
    """Choose `videos_per_task` rows per task: failures first, but one success if there is room for two."""
    count = evaluation.plan.videos_per_task
    chosen = []
    for task in evaluation.plan.env_configs:
        rows = [row for row in evaluation.rows if row.task == task]
        failures = [row for row in rows if not row.success]
        successes = [row for row in rows if row.success]
        kept = failures[: count - 1 if successes and count > 1 else count]
        chosen += kept + successes[: count - len(kept)]
    return chosen


def _film_some(evaluation: Evaluation, env_factory: str) -> list[VideoRecord]:
    """Film the chosen episodes and return what was filmed. Rows whose actions were deleted are left out."""
    run_dir, plan = evaluation.run_dir, evaluation.plan
    (run_dir / "videos").mkdir(exist_ok=True)
    rows = [row for row in _to_film(evaluation) if actions_path(run_dir, row.task, row.seed).exists()]
    stems = [f"{row.task}-{row.seed}-{'success' if row.success else 'failure'}" for row in rows]
    recordings = [
        Recording(
            task=row.task,
            env_config=plan.env_configs[row.task],
            seed=row.seed,
            actions=np.load(actions_path(run_dir, row.task, row.seed), allow_pickle=False),
            video_path=run_dir / "videos" / f"{stem}.mp4",
            filmstrip_path=run_dir / "videos" / f"{stem}.jpg",
        )
        for row, stem in zip(rows, stems, strict=True)
    ]
    outcomes = film(recordings, num_workers=plan.num_workers, env_factory=env_factory)
    return [
        VideoRecord(
            task=row.task,
            seed=row.seed,
            success=row.success,
            instruction=row.instruction,
            given_instruction=row.given_instruction,
            steps=row.steps,
            video=f"videos/{stem}.mp4",
            filmstrip=f"videos/{stem}.jpg",
            replay_agrees=outcome == row.success,
        )
        for row, stem, outcome in zip(rows, stems, outcomes, strict=True)
    ]
