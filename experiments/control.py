"""Drives a robot with a policy: observes, infers next to the loop, filters, commands, records.

    python -m experiments.control bundle=outputs/bundle robot=sim task=reach env.level=none
    python -m experiments.control server=ws://127.0.0.1:8000 schedule=rtc robot.faults.latency_s=0.05
    python -m experiments.control bundle=outputs/bundle robot=franka robot.address=172.16.0.2 env.level=none

    python -m experiments.control bundle=outputs/bundle robot=franka robot.address=172.16.0.2 dry_run=true
    python -m experiments.control replay=outputs/control/one task=reach env.level=none

`dry_run=true` does everything but send, and says in `dry_run.html` what is not in order (code 1).

Writes `recording.jsonl`, `summary.json`, `film.mp4` (what the cameras saw) and `report.html`. Ctrl-C presses
the emergency stop. Ends with code 0 if the run came to its end, goal reached or not; with 3 if it was STOPPED
(watchdog, Ctrl-C, SIGTERM, SIGHUP), with 4 in FAULT, also by an error of any part; with 1 or 2 (cli.py) if it
never began. Knows how to build and report a run; what surrounds its loop is in controlled_run.py, the
controller in `policies/runtime`.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.config import cli, schema
from experiments.config.control_setup import (
    LoadedPolicy,
    SlowedPolicy,
    build_controller,
    chosen_task,
    describe_setting,
    open_policy,
    task_config,
)
from experiments.config.robot import TaskRobot
from experiments.config.run_record import write_record
from experiments.config.schema import ControlRun
from experiments.controlled_run import Outcome, StopSignals, drive_recorded, require_no_recording
from experiments.reports.control import GOAL_WORDS, summarize, write_control_page, write_film
from experiments.reports.preflight import check_lines, write_preflight_page
from policies.runtime.clock import Clock, MonotonicClock, SimulatedClock
from policies.runtime.inference import ThreadedInference
from policies.runtime.preflight import BAD, checks, observe_and_infer, to_json, worst_level
from policies.runtime.recorder import Recorder, audit_recording, read_recording, replay
from policies.runtime.states import State
from vla.files import DirectoryLock, atomic_write_json
from vla.interface import Policy
from vla.spec import RobotSpec

schema.register("control")

EXIT_STOPPED, EXIT_FAULT = 3, 4


@contextlib.contextmanager
def _policy_of(run: ControlRun) -> Iterator[LoadedPolicy]:
    """Open the bundle or server of a run, and print what it was trained in; a server is waited for."""
    if run.server is not None:
        print(f"connecting to {run.server}, for at most {run.server_wait_s:g} s", flush=True)
    with open_policy(
        bundle=run.bundle,
        server=run.server,
        token_env=run.token_env,
        num_threads=run.num_threads,
        server_wait_s=run.server_wait_s,
    ) as loaded:
        print(describe_setting(run, loaded.kept, source=run.bundle or str(run.server)), flush=True)
        yield loaded


def control_robot(run: ControlRun, run_dir: Path, signals: StopSignals) -> tuple[Outcome, bool | None]:
    """Drive the robot of a run to the end of its episode.

    Returns:
        How it ended, and whether the goal was reached, if that is judged.

    Raises:
        ValueError: the configuration makes no sense, or nobody has confirmed the limits.
        PolicyUnavailable: the policy server is not there.
        ArmingRefused: the robot never became ready.
    """
    run.robot.require_confirmed()
    clock = MonotonicClock()
    outcome, is_reached = None, None
    try:
        with (
            _policy_of(run) as (policy, max_committed, _),
            run.robot.open(task_config(run), seed=run.seed, clock=clock) as robot,
        ):
            robot.warm_up()
            outcome = _drive_in_scene(run, run_dir, signals, robot, policy, max_committed, clock)
            is_reached = robot.success
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the run is over: its record comes first
        if outcome is None:
            raise
        outcome = dataclasses.replace(outcome, failure=outcome.failure or error)
    return outcome, is_reached


def _drive_in_scene(
    run: ControlRun,
    run_dir: Path,
    signals: StopSignals,
    robot: TaskRobot,
    policy: Policy,
    max_committed: int,
    clock: Clock,
) -> Outcome:
    if run.inference_delay_s > 0:
        policy = SlowedPolicy(policy, delay_s=run.inference_delay_s)
    limits = run.robot.limits
    instruction = robot.instruction if run.instruction is None else run.instruction
    goal = robot.instruction if run.env else None  # a robot that stands in no scene has none
    about = {"instruction": instruction, "goal": goal, "schedule": run.schedule, "limits": limits.to_json()}
    inference = ThreadedInference(policy=policy, clock=clock)
    with Recorder(run_dir, spec=robot.robot_spec, about=about) as recorder, closing(inference):
        controller = build_controller(
            robot=robot,
            policy=policy,
            inference=inference,
            limits=limits,
            max_committed=max_committed,
            schedule=run.schedule,
            execute_horizon=run.execute_horizon,
            delta_to_absolute=run.delta_to_absolute,
            instruction=instruction,
            watchdog=run.watchdog,
            stream=run.stream,
            clock=clock,
            recorder=recorder,
        )
        title = _title(run, robot.robot_spec)
        print(f"{title}: {instruction!r}; schedule {run.schedule}; Ctrl-C stops the robot", flush=True)
        return drive_recorded(
            controller,
            recorder,
            signals=signals,
            clock=clock,
            hung_stop_s=run.watchdog.hung_stop_s,
            is_over=lambda: robot.is_over,
            max_seconds=run.max_seconds,
        )


def _title(run: ControlRun, spec: RobotSpec) -> str:
    """Return task and seed of the scene, or the name of a robot that stands in none."""
    return f"{chosen_task(run)}, seed {run.seed}" if run.env else spec.name


def dry_run(run: ControlRun, run_dir: Path) -> str:
    """Observe the robot and ask the policy as a run would, send nothing, and report what is not in order.

    Returns:
        The worst level of all checks.

    Raises:
        ValueError: the configuration makes no sense, or policy and robot differ.
        PolicyUnavailable: the policy server is not there.
    """
    clock = MonotonicClock()
    with (
        _policy_of(run) as (policy, _, _),
        run.robot.open(task_config(run), seed=run.seed, clock=clock) as robot,
    ):
        spec = robot.robot_spec
        policy.robot_spec.require_same(spec, mine="the policy", theirs="the robot")
        instruction = robot.instruction if run.instruction is None else run.instruction
        print(f"dry run: {run.dry_run_s:g} s of {instruction!r}; nothing is sent to the robot", flush=True)
        robot.warm_up()
        seen = observe_and_infer(robot, policy, instruction=instruction, clock=clock, seconds=run.dry_run_s)
    found = checks(
        seen,
        spec=spec,
        limits=run.robot.limits,
        watchdog=run.watchdog,
        stream=run.stream,
        schedule=run.schedule,
        execute_horizon=run.execute_horizon,
    )
    atomic_write_json(run_dir / "dry_run.json", {"checks": to_json(found)})
    command = cli.typed_command("control")
    write_preflight_page(
        run_dir / "dry_run.html", found, seen, spec=spec, title=f"Dry run: {spec.name}", command=command
    )
    print(check_lines(found))
    print(f"page: {run_dir / 'dry_run.html'}")
    return worst_level(found)


def replay_sim(run: ControlRun, path: Path) -> None:
    """Send the commands of a recording to the simulated robot, in simulated time, and say how it ended.

    Raises:
        ValueError: there is no recording, or its robot, limits or task are others.
    """
    recording, limits, clock = read_recording(path), run.robot.limits, SimulatedClock()
    broken = len(audit_recording(recording, limits))
    if broken:
        raise ValueError(f"{broken} commands in {path} break the limits of this robot; nothing was sent")
    with run.robot.open(task_config(run), seed=run.seed, clock=clock) as robot:
        instruction = recording.about.get("instruction")
        if instruction != (robot.instruction if run.instruction is None else run.instruction):
            raise ValueError(
                f"the recording is of {instruction!r}, this is {robot.instruction!r}; give its task and seed"
            )
        count = replay(recording, robot=robot, clock=clock)
        print(f"{count} commands sent again; goal {'reached' if robot.success else 'not reached'}")


def exit_code(last_state: State) -> int:
    """Return what the program ends with for the last state of its run."""
    return {State.STOPPED: EXIT_STOPPED, State.FAULT: EXIT_FAULT}.get(last_state, 0)


def report(
    run: ControlRun, run_dir: Path, outcome: Outcome, is_reached: bool | None, *, wall_s: float
) -> None:
    """Write summary and page of a run, and print the table; what cannot be written is said, and no more."""
    summary = summarize(outcome.recording)
    results = {"goal_reached": is_reached, **summary.to_json(), "state": outcome.state.value}
    problems = list(outcome.notes)
    film = run_dir / "film.mp4"

    def write_film_or_note(path: Path) -> None:
        problems.extend(filter(None, [write_film(path, outcome.film)]))

    for name, write in (
        ("film.mp4", write_film_or_note),
        ("summary.json", lambda path: atomic_write_json(path, results)),
        (
            "report.html",
            lambda path: write_control_page(
                path,
                outcome.recording,
                title=f"Control: {_title(run, outcome.recording.robot_spec)}, schedule {run.schedule}",
                command=cli.typed_command("control"),
                is_reached=is_reached,
                film=film if film.exists() else None,
            ),
        ),
    ):
        try:
            write(run_dir / name)
        except OSError as error:
            problems.append(f"{run_dir / name} could not be written: {error}")
        except KeyboardInterrupt:
            problems.append(f"{run_dir / name} was not written, as you interrupted it")
    rows = [
        ["goal", GOAL_WORDS[is_reached]],
        *summary.rows(),
        ["wall time", f"{wall_s:.1f} s"],
    ]
    wide = 2 + max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{wide}}{value}" for name, value in rows))
    print(f"recording: {run_dir / 'recording.jsonl'}\nreport: {run_dir / 'report.html'}")
    for problem in problems:
        print(f"note: {problem}")
    if outcome.failure is not None:
        print(cli.explain_failure(outcome.failure), file=sys.stderr)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="control")
def main(config: DictConfig) -> None:
    """Drive the robot and report."""
    run = schema.typed(config, ControlRun)
    schema.require_inputs(run)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if run.replay is not None:
        if not run.robot.is_simulated:
            raise ValueError("a recording is sent again to robot=sim alone")
        replay_sim(run, Path(run.replay))
        return
    if run.dry_run:
        if dry_run(run, run_dir) == BAD:
            write_record(config)
            sys.exit(cli.EXIT_FAILED)
        return
    began = time.monotonic()
    with DirectoryLock(run_dir), StopSignals() as signals:
        require_no_recording(run_dir)
        write_record(config)
        outcome, is_reached = control_robot(run, run_dir, signals)
        code = exit_code(outcome.state)
        with contextlib.suppress(KeyboardInterrupt):  # the robot rests and the record is written
            report(run, run_dir, outcome, is_reached, wall_s=time.monotonic() - began)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    cli.run(main)
