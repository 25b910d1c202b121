"""The whole chain to franky-sim, over libfranka's protocol; runs in .venv-franka (make franka-test).

Periods and deadlines are counted on the arm's clock, which is slower than time where the simulator is: a busy
machine makes these tests longer, not wrong. `experiments.franka_trials` counts on the wall's.
"""

import dataclasses
import time

import pytest
from hydra import compose, initialize_config_module

from experiments.config import schema
from experiments.config.schema import FrankaTrialsRun
from experiments.config.simulation import env_configs
from experiments.franka.processes import franky_sim
from experiments.franka.scene import ArmClock, open_live_view
from experiments.franka.trial import TrialSetup
from experiments.franka_trials import TASK, run_faults, run_trials, shortcomings
from policies.robots.franky_arm import wait_at_rest
from policies.runtime.watchdog import WatchdogLimits

pytestmark = [pytest.mark.franka, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def run():
    schema.register("franka_trials")
    with initialize_config_module("conf", version_base="1.3"):
        overrides = ["trials=2", "faults=1", "first_seed=640000"]
        return schema.typed(compose("franka_trials", overrides), FrankaTrialsRun)


@pytest.fixture(scope="module")
def setup(run):
    setpoints = []
    with franky_sim() as address, open_live_view(env_configs(run.env, [TASK])[TASK]) as view:
        robot = dataclasses.replace(run.robot, address=address)
        with robot.open_arm(on_setpoint=setpoints.append) as arm:
            yield TrialSetup(
                run=run, robot=robot, arm=arm, view=view, clock=ArmClock(arm), setpoints=setpoints
            )


def test_the_hand_is_where_the_robot_says_to_a_millimeter(setup):
    for turn in (0.0, 0.4, -0.5):
        setup.arm.go_to([turn, -0.4, 0.2, -2.2, 0.1, 1.9, 0.7])
        wait_at_rest(setup.arm)  # until then franky-sim reports the pose of the desired joints
        reading = setup.arm.read()
        setup.view.show(reading.joints, reading.opening)
        assert abs(setup.view.hand().position - reading.position).max() < 1e-3
        assert abs(setup.view.rotation() - reading.rotation).max() < 2e-3


def test_the_hand_closes_with_force_and_opens_again(setup):
    for wish, least, most in (
        (1.0, 0.9, 1.0),
        (0.0, 0.0, 0.1),
        (1.0, 0.9, 1.0),
        (0.5, 0.4, 0.6),
        (1.0, 0.9, 1.0),
    ):
        setup.arm.grip(wish)
        give_up = time.monotonic() + 60.0
        while not least <= setup.arm.read().opening <= most:
            assert time.monotonic() < give_up, f"asked for {wish}, is at {setup.arm.read().opening}"
            time.sleep(0.05)


def test_the_scripted_expert_reaches_the_named_object_within_every_limit(setup, tmp_path):
    patient = WatchdogLimits(
        observation_stop_s=20.0,
        underrun_stop_s=20.0,
        failing_stop_s=20.0,
        silent_stop_s=20.0,
        missed_stop_share=1.0,
        hung_stop_s=20.0,
    )  # of a busy machine: it holds, and goes on
    run = dataclasses.replace(setup.run, max_seconds=30.0, watchdog=patient)
    trials = run_trials(dataclasses.replace(setup, run=run), tmp_path)
    assert [trial.success for trial in trials] == [True, True]
    assert not shortcomings(setup.run, trials, [])


def test_a_policy_server_that_fails_mid_motion_is_held_and_stopped_in_time(setup, tmp_path):
    faults = run_faults(setup, tmp_path)
    assert {trial.fault for trial in faults} == {"killed", "stopped", "slowed", "crawling"}
    assert not shortcomings(setup.run, [], faults)
