"""Drives franky-sim with a reach policy through the real protocol, then with a policy server that fails.

    make franka-test BUNDLE=outputs/bundle
    .venv-franka/bin/python -m experiments.franka_trials bundle=outputs/bundle trials=10 faults=5

The chain: this controller, our policy server in another process, franky, libfranka's protocol over loopback,
franky-sim in a third process; pictures are drawn from the tabletop scene at the measured joints. Ends with
code 1 unless at least nine of ten trials succeed, no limit is broken, and every fault is held and stopped in
time. Without a bundle the scripted expert acts in place of a policy, which tries the chain and no policy.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.config import cli, schema
from experiments.config.schema import FrankaTrialsRun
from experiments.config.simulation import env_configs
from experiments.franka.audit import MAX_LOST
from experiments.franka.processes import Process, bundle_server, expert_server, franky_sim
from experiments.franka.report import fault_table, report, trial_table
from experiments.franka.scene import ArmClock, FrankaSetup, open_live_view
from experiments.franka.trial import Trial, TrialSetup, TrialsFailed, run_trial
from experiments.reports.pages import machine
from experiments.reports.tables import save_results
from policies.robots.franky_arm import Setpoint
from policies.runtime.clock import MonotonicClock
from vla.provenance import software_versions

schema.register("franka_trials")

TASK = "reach"
FAULTS: dict[str, Callable[[Process], None]] = {
    "killed": Process.kill,
    "stopped": Process.freeze,
    "slowed": lambda server: server.throttle(on_s=0.02, off_s=0.18),  # a tenth of its time
    "crawling": lambda server: server.throttle(on_s=0.01, off_s=0.99),  # a hundredth
}
MUST_STOP = ("killed", "stopped")  # the others may get their answers through in time
SHARE_TO_SUCCEED = 0.9
_GRACE_S = 0.15  # by which a deadline may be missed: three periods, as the loop looks once in each
_BRAKING_S = 0.5  # from STOPPED until the arm must be at rest


def arm_of(run: FrankaTrialsRun) -> FrankaSetup:
    """Return the robot of the trials.

    Raises:
        ValueError: it is another than a Franka arm.
    """
    if not isinstance(run.robot, FrankaSetup):
        raise ValueError("these trials need robot=franka")
    return run.robot


def server_of(run: FrankaTrialsRun, *, seed: int, out_dir: Path) -> Process:
    """Return the policy server of a trial, not yet started."""
    if run.bundle is not None:
        return bundle_server(run.bundle, out_dir=str(out_dir / "server"))
    return expert_server(json.dumps(env_configs(run.env, [TASK])[TASK]), seed=seed)


def run_trials(setup: TrialSetup, out_dir: Path) -> list[Trial]:
    """Run the trials without faults; a bundle is served by one process for all of them."""
    trials = []
    with ExitStack() as shared:
        server = None
        for k in range(setup.run.trials):
            seed = setup.run.first_seed + k
            if server is None or setup.run.bundle is None:
                shared.close()
                server = shared.enter_context(server_of(setup.run, seed=seed, out_dir=out_dir))
            trial = run_trial(setup, url=server.found[1], seed=seed, directory=out_dir / f"trial-{k:02}")
            reached = "reached" if trial.success else "not reached"
            print(f"trial {k + 1:2} seed {seed}: {reached} in {trial.seconds:.1f} s; {trial.instruction}")
            trials.append(trial)
    return trials


def run_faults(setup: TrialSetup, out_dir: Path) -> list[Trial]:
    """Run the trials in which the policy server fails mid-motion, each with a server of its own."""
    trials = []
    for kind, inflict in FAULTS.items():
        for k in range(setup.run.faults):
            seed = setup.run.first_seed + 1000 + k
            with server_of(setup.run, seed=seed, out_dir=out_dir) as server:
                trial = run_trial(
                    setup,
                    url=server.found[1],
                    seed=seed,
                    directory=out_dir / f"{kind}-{k:02}",
                    fault=kind,
                    inject=lambda: inflict(server),  # noqa: B023 (called before the loop goes on)
                )
            print(f"{kind:8} seed {seed}: {trial.end[:80]}")
            trials.append(trial)
    return trials


def shortcomings(run: FrankaTrialsRun, trials: Sequence[Trial], faults: Sequence[Trial]) -> list[str]:
    """Return what was not as it must be, in words; nothing if all was."""
    found = []
    successes = sum(trial.success for trial in trials)
    if successes < math.ceil(SHARE_TO_SUCCEED * len(trials)):
        found.append(f"only {successes} of {len(trials)} trials reached the named target")
    for trial in [*trials, *faults]:
        name = f"{trial.fault or 'trial'}, seed {trial.seed}"
        if not trial.is_within_limits:
            found.append(
                f"{name}: limits were broken: {trial.recorded_violations} by commands, {trial.audit}"
            )
        if arm_of(run).needs_realtime and trial.audit.lost_in_a_row > MAX_LOST:
            found.append(f"{name}: {trial.audit.lost_in_a_row} packets were lost in a row")
        if trial.times is None:
            continue
        stop_s = max(run.watchdog.underrun_stop_s, run.watchdog.failing_stop_s)
        times, dry_s = trial.times, trial.chunk_s
        if times.ran_blind or times.hold_delay_periods not in (None, 0):
            found.append(f"{name}: did not hold within one control period of its last action: {times}")
        if times.oldest_action_s > dry_s + _GRACE_S:  # the first chunk is older, by its inference
            found.append(f"{name}: executed an action {times.oldest_action_s:.2f} s old")
        deadline_s = dry_s + stop_s + _GRACE_S
        if trial.fault in MUST_STOP and (times.to_stopped_s is None or times.to_stopped_s > deadline_s):
            found.append(f"{name}: STOPPED after {times.to_stopped_s} s; the deadline is {deadline_s:.2f} s")
        if times.to_rest_s is not None and times.to_rest_s > deadline_s + _BRAKING_S:
            found.append(f"{name}: still moved {times.to_rest_s:.2f} s after the fault")
    return found


def results_of(run: FrankaTrialsRun, trials: Sequence[Trial], faults: Sequence[Trial]) -> dict[str, Any]:
    """Return everything that was measured, JSON-ready."""
    versions = {name: metadata.version(name) for name in ("franky-control", "franky-sim")}
    return {
        "command": cli.portable_command("franka_trials"),
        "machine": machine(),
        "versions": software_versions() | versions,
        "policy": "scripted expert" if run.bundle is None else cli.portable_path(run.bundle),
        "time": run.time,
        "settings": {key: getattr(run, key) for key in ("schedule", "execute_horizon", "max_seconds")},
        "arm": {
            "acceleration": arm_of(run).dynamics.acceleration,
            "jerk": arm_of(run).dynamics.jerk,
            "gain_hz": arm_of(run).following.gain_hz,
            "max_tracking_error_m": arm_of(run).following.max_tracking_error_m,
        },
        "watchdog": dataclasses.asdict(run.watchdog),
        "trials": [trial.to_json() for trial in trials],
        "faults": [trial.to_json() for trial in faults],
    }


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="franka_trials")
def main(config: DictConfig) -> None:
    """Run trials and faults, write what came of them, and fail if it was not good."""
    run = schema.typed(config, FrankaTrialsRun)
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    arm_of(run)
    setpoints: list[Setpoint] = []
    with franky_sim() as address, open_live_view(env_configs(run.env, [TASK])[TASK]) as view:
        robot = dataclasses.replace(arm_of(run), address=address)
        with robot.open_arm(on_setpoint=setpoints.append) as arm:
            clock = MonotonicClock() if run.time == "wall" else ArmClock(arm)
            setup = TrialSetup(run=run, robot=robot, arm=arm, view=view, clock=clock, setpoints=setpoints)
            trials = run_trials(setup, out_dir)
            faults = run_faults(setup, out_dir)
    results = results_of(run, trials, faults)
    print("\n" + trial_table(trials) + "\n\n" + fault_table(faults))
    text = report(results, trials, faults)
    for stem in filter(None, (str(out_dir / "franka"), run.results)):
        save_results(Path(stem), results=results, markdown=text)
    print(f"\nresults: {out_dir / 'franka.json'}")
    bad = shortcomings(run, trials, faults)
    if bad:
        raise TrialsFailed("\n".join(["the arm did not do what it must:", *bad]))


if __name__ == "__main__":
    cli.run(main)
