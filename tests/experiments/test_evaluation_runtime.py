"""`evaluation.runtime`: short tabletop episodes by the road of the simulation and by that of a robot."""

import dataclasses
import json

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from envs.evaluation.results import load_evaluation
from envs.registry import make_env
from experiments.config import schema
from experiments.config.control_setup import evaluation_limits
from experiments.config.simulation import env_configs
from experiments.evaluate import evaluate_instruction_modes
from experiments.reports.pages import write_evaluation_page
from policies.runtime.limits import audit

TASKS = ["reach"]
NUM_EPISODES = 2


class Restless:
    """Moves by what it sees, so abruptly that an arm's limits show; sometimes beyond the action's range."""

    frame_offsets = (2, 0)
    action_horizon = 8

    def __init__(self, spec):
        self.robot_spec = spec

    def predict(self, observations):
        return np.stack([self._chunk(one) for one in observations])

    def _chunk(self, observation):
        spec, seen = self.robot_spec, observation.images["exterior"][:, ::8, ::8].astype(float).sum()
        phase = 1e-3 * seen + 5.0 * observation.state.sum() + np.arange(self.action_horizon)
        way = np.sin(phase[:, None] + np.arange(len(spec.action)))
        middle, half = (spec.action_high + spec.action_low) / 2, (spec.action_high - spec.action_low) / 2
        return (middle + 1.1 * half * way).astype(np.float32)


@pytest.fixture(scope="module")
def run():
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        overrides = [
            "path=none",
            f"evaluation.episodes_per_task={NUM_EPISODES}",
            "evaluation.instruction_modes=[original]",
        ]
        overrides += ["env.level=none", "env.image_size=32", "evaluation.videos_per_task=0"]
        return schema.typed(compose("evaluate", overrides), schema.ROOTS.get("evaluate"))


@pytest.fixture(scope="module")
def env(run):
    env = make_env(env_configs(run.env, TASKS)["reach"])
    yield env
    env.close()


@pytest.fixture(scope="module")
def evaluated(run, env, tmp_path_factory):
    def evaluate(runtime, safety=True):
        directory = tmp_path_factory.mktemp(runtime)
        settings = dataclasses.replace(run.evaluation, runtime=runtime, safety=safety)
        return evaluate_instruction_modes(
            Restless(env.robot_spec),
            policy_id="restless",
            provenance={},
            env=run.env,
            tasks=TASKS,
            settings=settings,
            run_dir=directory,
        )["original"]

    return {
        "simulation": evaluate("simulation"),
        "robot": evaluate("robot"),
        "robot without safety": evaluate("robot", safety=False),
    }


def actions(evaluation):
    return {
        row.seed: np.load(evaluation.run_dir / "actions" / f"reach-{row.seed}.npy", allow_pickle=False)
        for row in evaluation.rows
    }


def outcomes(evaluation):
    return [(row.seed, row.success, row.steps, row.num_clipped) for row in evaluation.rows]


def test_both_roads_give_the_same_episodes_with_filter_and_conversion_off(evaluated):
    simulated, robot = evaluated["simulation"], evaluated["robot without safety"]
    assert outcomes(simulated) == outcomes(robot)
    assert len(simulated.rows) == NUM_EPISODES
    for seed, executed in actions(simulated).items():
        np.testing.assert_array_equal(executed, actions(robot)[seed])


def test_on_the_robot_s_road_every_executed_action_keeps_the_arm_s_limits(run, env, evaluated):
    limits = evaluation_limits(dataclasses.replace(run.evaluation, runtime="robot"), "tabletop")
    assert limits is not None

    def violations(evaluation):
        found = []
        for seed, executed in actions(evaluation).items():
            env.start_episode(seed=seed)
            state = dict(zip(env.robot_spec.state_names, env.read_state(), strict=True))
            channels = limits.channels.values()
            start = [0.0 if one.measured_by is None else state[one.measured_by] for one in channels]
            found += audit(executed, start=np.array(start, float), spec=env.robot_spec, limits=limits)
        return found

    assert violations(evaluated["robot"]) == []
    assert violations(evaluated["simulation"])
    assert sum(row.num_clipped for row in evaluated["robot"].rows) > 0


def test_results_and_page_say_which_road_a_number_was_measured_on(evaluated, tmp_path):
    said = {}
    for name, evaluation in evaluated.items():
        results = json.loads((evaluation.run_dir / "results.json").read_text())
        said[name] = (results["runtime"], results["safety"])
        assert load_evaluation(evaluation.run_dir).plan == evaluation.plan
    assert said == {
        "simulation": ("simulation", False),
        "robot": ("robot", True),
        "robot without safety": ("robot", False),
    }
    for name, words in (("simulation", "executed as predicted"), ("robot", "safety filter, as on an arm")):
        page = tmp_path / f"{name}.html"
        write_evaluation_page(page, {"original": evaluated[name]}, title=name, command="evaluate")
        assert words in page.read_text()


def test_a_family_whose_limits_are_not_known_is_refused_in_one_line(run):
    with pytest.raises(ValueError, match=r"family='metaworld' are not known.*\['tabletop'\]") as refusal:
        evaluation_limits(dataclasses.replace(run.evaluation, runtime="robot"), "metaworld")
    assert "\n" not in str(refusal.value)
    assert evaluation_limits(run.evaluation, "metaworld") is None
    with pytest.raises(ValueError, match="runtime"):
        dataclasses.replace(run.evaluation, runtime="arm")
