"""Rolls a policy out on development seeds while it is trained, to watch its success and keep the best one."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from envs.evaluation.statistics import wilson_interval
from envs.registry import probe_env
from envs.rollout import EpisodeRequest, run_episodes
from experiments.config.control_setup import evaluation_limits
from experiments.config.schema import TrainRun
from experiments.config.simulation import env_configs
from experiments.recorded_seeds import require_unseen_scenes
from policies.vla_policy import VLAPolicy
from vla.model.vla import VLAModel
from vla.processing.processor import Processor
from vla.registry import SettingError
from vla.training.best import DEVELOPMENT_SUCCESS, SUCCESS_HIGH, SUCCESS_LOW


class DevelopmentRollouts:
    """Success with the original instruction in the environment of a run, as its evaluation measures it.

    Args:
        run: the run; its `rollouts` say which episodes, its `evaluation` how they are played.
        processor: of the policy.
        seeds: those of its demonstrations, as provenance.
        is_simulated: whether the recordings are of the environment's robot.

    Raises:
        NoOpenGL: nothing can draw here.
        SeedsWereRecorded: an episode is a scene of which the policy is given a demonstration.
        SettingError: no simulator has the robot.
    """

    def __init__(
        self, run: TrainRun, processor: Processor, *, seeds: Mapping[str, Any], is_simulated: bool
    ) -> None:
        if not is_simulated:
            raise SettingError(
                f"trainer.rollout_every_samples={run.trainer.rollout_every_samples} measures success in the "
                f"environment {run.env['family']!r}, which has another robot than the recordings "
                f"({processor.robot_spec.name!r}); leave it null, with trainer.best_by=loss"
            )
        settings = run.rollouts
        require_unseen_scenes(
            seeds,
            family=run.env["family"],
            tasks=run.tasks,
            first_seed=settings.first_seed,
            num_episodes=settings.episodes_per_task,
            key="rollouts.first_seed",
        )
        configs = env_configs(run.env, list(run.tasks))
        probe_env(configs)
        self._limits = evaluation_limits(run.evaluation, run.env["family"])
        self._settings, self._processor = run.evaluation, processor
        self._requests = [
            EpisodeRequest(task=task, env_config=config, seed=settings.first_seed + index)
            for task, config in configs.items()
            for index in range(settings.episodes_per_task)
        ]

    def __call__(self, model: VLAModel, *, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Return mean success with its 95 % interval, and the success of each task; see `RollOut`."""
        settings, device = self._settings, str(next(model.parameters()).device)
        policy = VLAPolicy(model=model, processor=self._processor, device=device)
        results = run_episodes(
            policy,
            self._requests,
            execute_horizon=settings.execute_horizon,
            num_workers=settings.num_workers,
            envs_per_worker=settings.envs_per_worker,
            ensemble_decay=settings.ensemble_decay,
            limits=self._limits,
        )
        successes: dict[str, list[bool]] = {request.task: [] for request in self._requests}
        with contextlib.closing(results):
            for result in results:
                successes[result.request.task].append(result.success)
                if should_stop():
                    return None
        return success_numbers(successes)


def success_numbers(successes: Mapping[str, list[bool]]) -> dict[str, float]:
    """Return the numbers that are logged.

    Args:
        successes: of the episodes by task, as many of each.

    >>> numbers = success_numbers({"reach": [True, True], "lift": [True, False]})
    >>> [f"{name} {value:.2f}" for name, value in numbers.items()][:3]
    ['development/success 0.75', 'development/success_low 0.30', 'development/success_high 0.95']
    >>> numbers["development/success/lift"]
    0.5
    """
    rows = [success for by_task in successes.values() for success in by_task]
    interval = wilson_interval(sum(rows), len(rows))
    return {
        DEVELOPMENT_SUCCESS: sum(rows) / len(rows),
        SUCCESS_LOW: interval.low,
        SUCCESS_HIGH: interval.high,
        **{f"{DEVELOPMENT_SUCCESS}/{task}": sum(by) / len(by) for task, by in successes.items()},
    }
