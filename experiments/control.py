"""Drives a robot with a policy: observes, infers next to the loop, filters, commands, records.

    python -m experiments.control bundle=outputs/bundle robot=sim task=reach env.level=none
    python -m experiments.control server=ws://127.0.0.1:8000 schedule=rtc robot.faults.latency_s=0.05
    python -m experiments.control bundle=outputs/bundle robot=franka robot.address=172.16.0.2 env.level=none

    python -m experiments.control replay=outputs/control/one task=reach env.level=none

Writes `recording.jsonl`, `summary.json` and `report.html`. Ctrl-C presses the emergency stop. Ends with
code 0 if the run came to its end, goal reached or not; with 3 if it was STOPPED (watchdog, Ctrl-C, SIGTERM),
with 4 in FAULT; with 1 or 2 (cli.py) if it never began. Knows how to build and show a run; the controller is
in `policies/runtime`.
"""

import contextlib
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.config import cli, schema
from experiments.config.control_setup import (
    SlowedPolicy,
    build_controller,
    chosen_task,
    drive,
    open_policy,
    task_config,
)
from experiments.config.schema import ControlRun
from experiments.reports.control import live_line, summarize, write_control_page
from policies.runtime.clock import MonotonicClock, SimulatedClock
from policies.runtime.controller import Controller
from policies.runtime.inference import ThreadedInference
from policies.runtime.recorder import PeriodRecord, Recorder, audit_recording, read_recording, replay
from policies.runtime.states import State
from vla.files import atomic_write_json

schema.register("control")

EXIT_STOPPED, EXIT_FAULT = 3, 4

SHOW_EVERY_S = 0.2  # on a terminal; elsewhere, a line every 5 s
LOG_EVERY_S = 5.0


class LiveLine:
    """Shows the state of a run, in one line that is written over where there is a terminal."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._every_s = SHOW_EVERY_S if self._is_terminal else LOG_EVERY_S
        self._shown_at = -float("inf")
        self._recent: deque[float] = deque(maxlen=40)
        self._clamps = 0
        self._state = ""

    def show(self, record: PeriodRecord) -> None:
        """Show a period if it is time to, or if the state has changed."""
        self._recent.append(record.now)
        self._clamps += bool(record.clamps)
        if record.now - self._shown_at < self._every_s and record.state == self._state:
            return
        span = self._recent[-1] - self._recent[0]
        rate = (len(self._recent) - 1) / span if span > 0 else 0.0
        line = live_line(record, rate_hz=rate, clamps=self._clamps)
        print(
            f"\r\033[K{line}" if self._is_terminal else line,
            end="" if self._is_terminal else "\n",
            flush=True,
        )
        self._shown_at, self._state = record.now, record.state

    def close(self) -> None:
        """Leave the line behind."""
        if self._is_terminal:
            print()


@contextlib.contextmanager
def stop_on_signals(controller: Controller) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM press the emergency stop; the run then ends by itself."""

    def press(_number: int, _frame: FrameType | None) -> None:
        controller.press_emergency_stop()

    before = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def control_robot(run: ControlRun, run_dir: Path) -> bool | None:
    """Drive the robot of a run to the end of its episode; return whether the goal was reached, if judged.

    Raises:
        ValueError: the configuration makes no sense.
        PolicyUnavailable: the policy server is not there.
        ArmingRefused: the robot never became ready.
    """
    clock = MonotonicClock()
    if run.server is not None:
        print(f"connecting to {run.server}, for at most {run.server_wait_s:g} s", flush=True)
    opened = open_policy(
        bundle=run.bundle,
        server=run.server,
        token_env=run.token_env,
        num_threads=run.num_threads,
        server_wait_s=run.server_wait_s,
    )
    with (
        opened as (policy, max_committed),
        run.robot.open(task_config(run), seed=run.seed, clock=clock) as robot,
    ):
        if run.inference_delay_s > 0:
            policy = SlowedPolicy(policy, delay_s=run.inference_delay_s)
        robot.warm_up()
        limits = run.robot.limits
        instruction = robot.instruction if run.instruction is None else run.instruction
        about = {"instruction": instruction, "schedule": run.schedule, "limits": limits.to_json()}
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
            scene = f"{chosen_task(run)}, seed {run.seed}" if run.env else robot.robot_spec.name
            print(f"{scene}: {instruction!r}; schedule {run.schedule}; Ctrl-C stops the robot", flush=True)
            with stop_on_signals(controller), closing(LiveLine()) as line:
                drive(
                    controller,
                    is_over=lambda: robot.is_over,
                    max_periods=round(run.max_seconds / controller.period_s),
                    on_period=line.show,
                )
        return robot.success


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


def exit_code(last_state: str) -> int:
    """Return what the program ends with for the last state of its run."""
    return {State.STOPPED.value: EXIT_STOPPED, State.FAULT.value: EXIT_FAULT}.get(last_state, 0)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="control")
def main(config: DictConfig) -> None:
    """Drive the robot and report."""
    run = schema.typed(config, ControlRun)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if run.replay is not None:
        if not run.robot.is_simulated:
            raise ValueError("a recording is sent again to robot=sim alone")
        replay_sim(run, Path(run.replay))
        return
    began = time.monotonic()
    is_reached = control_robot(run, run_dir)
    recording = read_recording(run_dir)
    title = chosen_task(run) if run.env else recording.robot_spec.name
    write_control_page(
        run_dir / "report.html",
        recording,
        title=f"Control: {title}, schedule {run.schedule}",
        command=cli.typed_command("control"),
    )
    summary = summarize(recording)
    atomic_write_json(run_dir / "summary.json", {"goal_reached": is_reached, **summary.to_json()})
    outcome = {True: "reached", False: "not reached", None: "not judged"}[is_reached]
    rows = [
        ["goal", outcome],
        *summary.rows(),
        ["wall time", f"{time.monotonic() - began:.1f} s"],
    ]
    wide = 2 + max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{wide}}{value}" for name, value in rows))
    print(f"recording: {run_dir / 'recording.jsonl'}\nreport: {run_dir / 'report.html'}")
    code = exit_code(summary.state)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    cli.run(main)
