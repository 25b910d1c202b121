"""Fifty commands a second behind a policy that takes 200 ms: a minute of real time, measured and judged.

    .venv/bin/python tests/runtime/fifty_hertz.py outputs/bundle --seconds 60 --out outputs/fifty_hertz

A bundle that was trained at 20 Hz drives the simulated tabletop, sent by turns to one object and to another.
Its chunks are interpolated, so that an action is due every 20 ms; controller, schedule, limits and
recording are those of `experiments.control`. The arm's servos and cameras keep their 20 Hz: they get the sum
of what was commanded since. Writes recording.jsonl and fifty_hertz.json; ends with code 1 if a command was
missed, a limit broken or the robot held.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module

from envs.base import ManipulationEnv
from envs.registry import make_env
from experiments.config import schema
from experiments.config.cli import portable_path
from experiments.config.control_setup import SlowedPolicy, build_controller, drive, task_config
from experiments.config.schema import ControlRun
from experiments.reports.pages import machine
from policies.exported import BundlePolicy
from policies.runtime.clock import Clock, MonotonicClock
from policies.runtime.inference import Inference, ThreadedInference
from policies.runtime.limits import SafetyLimits
from policies.runtime.recorder import Recorder, Recording, audit_recording, read_recording
from vla.files import atomic_write_json
from vla.interface import Policy, SensorReading
from vla.provenance import software_versions
from vla.spec import RobotSpec

CONTROL_HZ, DELAY_S = 50.0, 0.2
TURN_S = 3.0  # how long the policy gets the same instruction
ARMING_S = 1.0  # beyond the seconds asked for: arming and the first inference


def at_rate(spec: RobotSpec, control_hz: float) -> RobotSpec:
    """Return a robot of delta actions that is commanded at another rate: same speeds, other periods."""
    share = spec.control_hz / control_hz
    action = tuple(
        one if one.name == "gripper" else dataclasses.replace(one, low=one.low * share, high=one.high * share)
        for one in spec.action
    )
    return dataclasses.replace(spec, control_hz=control_hz, action=action)


class Resampled:
    """A policy of delta actions at a higher rate: its path, interpolated."""

    def __init__(self, policy: Policy, *, control_hz: float) -> None:
        self._policy = policy
        self._ratio = control_hz / policy.robot_spec.control_hz
        self.robot_spec = at_rate(policy.robot_spec, control_hz)
        self.frame_offsets = tuple(round(offset * self._ratio) for offset in policy.frame_offsets)
        self.action_horizon = math.floor(policy.action_horizon * self._ratio + 1e-9)

    def predict(self, observations):
        return np.stack([self._interpolated(chunk) for chunk in self._policy.predict(observations)])

    def _interpolated(self, chunk):
        times = np.arange(self.action_horizon + 1) / self._ratio  # in the policy's own periods
        path = np.concatenate([np.zeros((1, chunk.shape[1])), np.cumsum(chunk, axis=0, dtype=np.float64)])
        finer = np.stack([np.interp(times, np.arange(len(path)), column) for column in path.T], axis=1)
        gripper = chunk[np.floor(times[:-1] + 1e-9).astype(int), -1]
        actions = np.concatenate([np.diff(finer[:, :-1], axis=0), gripper[:, None]], axis=1)
        return np.clip(actions, self.robot_spec.action_low, self.robot_spec.action_high).astype(np.float32)


class ToAndFro:
    """A policy that gets one instruction and another by turns, so that the arm never comes to rest."""

    def __init__(self, policy: Policy, *, instructions: tuple[str, str]) -> None:
        self._policy, self._instructions = policy, instructions
        self.robot_spec, self.frame_offsets = policy.robot_spec, policy.frame_offsets
        self.action_horizon = policy.action_horizon

    def predict(self, observations):
        instructed = [
            dataclasses.replace(one, instruction=self._instructions[int(one.stamp // TURN_S) % 2])
            for one in observations
        ]
        return self._policy.predict(instructed)


class FastTabletop:
    """A tabletop environment as a robot that takes commands at a higher rate than its servos do."""

    def __init__(self, env: ManipulationEnv, *, clock: Clock, control_hz: float) -> None:
        self._env, self._clock = env, clock
        self.robot_spec = at_rate(env.robot_spec, control_hz)
        self._begun: float | None = None
        self._newest: SensorReading | None = None
        self._wanted = np.zeros(len(self.robot_spec.action), np.float32)  # what the servos have not got yet
        self._wanted[-1] = 1.0

    def observe(self) -> SensorReading:
        now = self._clock.now()
        self._begun = now if self._begun is None else self._begun
        passed = math.floor((now - self._begun) * self._env.robot_spec.control_hz + 0.25)
        if self._newest is None or self._env.num_steps < passed:
            while self._env.num_steps < passed:
                self._advance()
            self._newest = self._seen(now)
        return self._newest

    def command(self, action) -> None:
        self._wanted[:-1] += action[:-1]
        self._wanted[-1] = action[-1]

    def stop(self) -> None:
        self._wanted[:-1] = 0.0

    def _advance(self) -> None:
        spec = self._env.robot_spec
        taken = np.clip(self._wanted, spec.action_low, spec.action_high)
        self._env.advance(taken)
        self._wanted[:-1] -= taken[:-1]

    def _seen(self, now: float) -> SensorReading:
        names = self.robot_spec.camera_names
        return SensorReading(
            images={name: self._env.render_camera(name) for name in names},
            image_stamps=dict.fromkeys(names, now),
            state=self._env.read_state(),
            state_stamp=now,
        )


def configured(*overrides: str) -> ControlRun:
    """Return the configuration of `experiments.control` for this check."""
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        # No camera freezes here, and an arm out of view changes no pixel.
        given = ["task=reach", "env.level=none", "schedule=rtc", "stream.frozen_motion=1.0", *overrides]
        return schema.typed(compose("control", given), ControlRun)


def record_run(
    run: ControlRun,
    *,
    env: ManipulationEnv,
    policy: Policy,
    clock: Clock,
    make_inference: Callable[[Policy], Inference],
    seconds: float,
    directory: Path,
) -> Recording:
    """Drive the tabletop at 50 Hz with a policy of its own rate, and return the recording."""
    robot = FastTabletop(env, clock=clock, control_hz=CONTROL_HZ)
    fast = Resampled(policy, control_hz=CONTROL_HZ)
    limits = run.robot.limits
    for name in robot.robot_spec.camera_names:
        env.render_camera(name)  # the first picture takes long
    about = {"limits": limits.to_json(), "schedule": run.schedule}
    with (
        Recorder(directory, spec=robot.robot_spec, about=about) as recorder,
        contextlib.closing(make_inference(fast)) as inference,
    ):
        controller = build_controller(
            robot=robot,
            policy=fast,
            inference=inference,
            limits=limits,
            max_committed=0,  # commitments are made at 50 Hz; the policy takes only 20 Hz ones
            schedule=run.schedule,
            execute_horizon=run.execute_horizon,
            delta_to_absolute=run.delta_to_absolute,
            instruction=env.instruction,
            watchdog=run.watchdog,
            stream=run.stream,
            clock=clock,
            recorder=recorder,
        )
        drive(
            controller,
            is_over=lambda: False,
            max_periods=round((seconds + ARMING_S) * CONTROL_HZ),
            on_period=lambda record: None,
        )
    return read_recording(directory)


def measure(recording: Recording) -> dict[str, Any]:
    """Return what the stream of commands came to, from the first action executed on to the end of the task.

    A share is of the limit of the channel that comes nearest to its own.
    """
    limits = SafetyLimits.from_json(recording.about["limits"])
    period_s, moves = 1.0 / recording.robot_spec.control_hz, ~limits.is_gripper
    executed = [one for one in recording.periods if one.state == "RUNNING" and one.target is not None]
    if not executed:
        raise ValueError("no action was executed")
    first, last = executed[0], executed[-1]
    due = round((last.now - first.now) / period_s) + 1
    sent = [one for one in recording.periods if one.commanded is not None and one.now >= first.now]
    velocity = np.array([one.commanded for one in sent], np.float64)[:, moves] / period_s
    acceleration = np.diff(velocity, axis=0, prepend=0.0) / period_s
    jerk = np.diff(acceleration, axis=0, prepend=0.0) / period_s

    def share(values: np.ndarray, name: str) -> float:
        limit = np.array([getattr(channel, name) for channel in limits.channels.values()])[moves]
        return float((np.abs(values) / limit).max(initial=0.0))

    seams = np.array([k for k in range(1, len(sent)) if sent[k].chunk_seq != sent[k - 1].chunk_seq], int)
    asked = np.array([one.target for one in executed], np.float64)[:, moves] / period_s
    new = [k for k in range(1, len(executed)) if executed[k].chunk_seq != executed[k - 1].chunk_seq]
    waits = [1e3 * one.inference_s for one in recording.periods if one.inference_s is not None]
    late = [1e3 * one.late_s for one in executed]
    return {
        "seconds": last.now - first.now + period_s,
        "commands_due": due,
        "commands_missed": due - len(executed),
        "periods_missed": last.missed - first.missed,
        "times_held": sum("-> HOLD" in event for one in recording.periods for event in one.events),
        "state": recording.periods[-1].state,
        "reason": recording.periods[-1].reason,
        "chunks": len(waits),
        "inference_ms_p50_p99": np.percentile(waits, [50, 99]).tolist() if waits else None,
        "late_ms_p50_p99_max": [*np.percentile(late, [50, 99]).tolist(), max(late)],
        "oldest_action_s": max(one.chunk_age_s or 0.0 for one in executed),
        "path_m": float(np.linalg.norm(velocity[:, :3], axis=1).sum() * period_s),
        "seams": len(new),
        "asked_seam_jump_m_per_s": float(
            np.abs(np.diff(asked, axis=0))[np.array(new, int) - 1, :3].max(initial=0)
        ),
        "sent_seam_jump_share": share(acceleration[seams], "acceleration"),
        "velocity_share": share(velocity, "velocity"),
        "acceleration_share": share(acceleration, "acceleration"),
        "jerk_share": share(jerk, "jerk"),
        "limits_broken": len(audit_recording(recording, limits)),
    }


def shortcomings(measured: dict[str, Any], *, seconds: float) -> list[str]:
    """Return what is not as it must be."""
    found = [
        f"{name} is {measured[name]}; it must be 0"
        for name in ("commands_missed", "periods_missed", "times_held", "limits_broken")
        if measured[name]
    ]
    names = (
        "sent_seam_jump_share",
        "velocity_share",
        "acceleration_share",
        "jerk_share",
    )
    found += [f"{name} is {measured[name]:.3f}" for name in names if not measured[name] <= 1.0 + 1e-6]
    if measured["seconds"] < seconds:
        found.append(f"it ended after {measured['seconds']:.1f} of {seconds:g} s, {measured['state']}")
    if measured["path_m"] < 0.02 * seconds or measured["seams"] < 2 * seconds:
        found.append("the arm hardly moved, or hardly any chunk came: nothing was shown")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--delay", type=float, default=DELAY_S, help="added to every inference [s]")
    parser.add_argument("--out", type=Path, default=Path("outputs/fifty_hertz"))
    parser.add_argument("overrides", nargs="*", help="of conf/control.yaml, such as schedule=async")
    asked = parser.parse_intermixed_args()
    run, clock = configured(*asked.overrides), MonotonicClock()
    loaded = BundlePolicy.load(asked.bundle, num_threads=1)
    with contextlib.closing(make_env(task_config(run))) as env:
        env.start_episode(seed=run.seed)
        recording = record_run(
            run,
            env=env,
            policy=ToAndFro(loaded, instructions=(env.instruction, env.swapped_instruction())),
            clock=clock,
            make_inference=lambda policy: ThreadedInference(
                policy=SlowedPolicy(policy, delay_s=asked.delay), clock=clock
            ),
            seconds=asked.seconds,
            directory=asked.out,
        )
    measured = measure(recording)
    wrong = shortcomings(measured, seconds=asked.seconds)
    chunk_s = loaded.action_horizon / loaded.robot_spec.control_hz
    if measured["times_held"] and chunk_s < 2 * asked.delay + 0.1:
        wrong.append(f"a chunk lasts {chunk_s:g} s, too short for two inferences; take a longer horizon")
    about = {
        "command": shlex.join(["python", *(portable_path(word) for word in sys.argv)]),
        "machine": machine(),
        "software": software_versions(),
        "bundle_id": loaded.bundle_id,
        "control_hz": CONTROL_HZ,
        "injected_delay_s": asked.delay,
        "chunk_s": chunk_s,
        "schedule": run.schedule,
    }
    atomic_write_json(asked.out / "fifty_hertz.json", {**about, **measured, "shortcomings": wrong})
    print(json.dumps(measured, indent=1))
    print(f"written: {asked.out / 'fifty_hertz.json'}")
    if wrong:
        raise SystemExit("does not hold: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
