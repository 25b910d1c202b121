"""Drives a simulated SO-101, on LeRobot's own `Robot` base class, by `experiments.control robot=lerobot`.

    pip install "lerobot[dataset]==0.6.1"             # Python 3.12, in an environment of its own,
    pip install -e .                                  # and this project's core next to it
    python tests/conformance/lerobot_control.py outputs/bundle_so101 outputs/so101/robot.yaml outputs/trials

The bundle is of a policy trained on what make_so101.py records; limits in the robot file have to be
confirmed. Prints a row per trial: how many commands were sent and how fast, how near the gripper came to the
object that the sentence names, from where it began, in shares of the picture's side, and how the run ended.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
NUM_TRIALS, FIRST_SEED, SECONDS = 10, 700000, 6.0
SENTENCE = "touch the blue ball"


def trial(bundle: Path, robot_file: Path, out_dir: Path, seed: int) -> dict:
    """Run one trial in a process of its own; return what the robot and the program wrote."""
    out_dir.mkdir(parents=True, exist_ok=True)
    log = out_dir / "robot.json"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(HERE)]))
    command = [
        *(sys.executable, "-m", "experiments.control", f"bundle={bundle}", "plugins=[sim_so101]"),
        *("robot=lerobot", "robot.type=sim_so101", f"robot.robot_file={robot_file}"),
        f"robot.settings={{log: {log}, seed: {seed}, sentence: {SENTENCE}}}",
        *(f"instruction='{SENTENCE}'", f"max_seconds={SECONDS}", f"out_dir={out_dir}"),
    ]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if not log.is_file():
        raise SystemExit(ended.stdout + ended.stderr)
    summary = json.loads((out_dir / "summary.json").read_text())
    return {"seed": seed, "code": ended.returncode, **json.loads(log.read_text()), "summary": summary}


def main(bundle: Path, robot_file: Path, out_dir: Path) -> None:
    rows = [
        trial(bundle.resolve(), robot_file.resolve(), out_dir.resolve() / str(seed), seed)
        for seed in range(FIRST_SEED, FIRST_SEED + NUM_TRIALS)
    ]
    print(table(rows))


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown, and a line that counts."""
    lines = [
        "| seed | commands | rate [Hz] | distance at the start | nearest | exit code | ended |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['seed']} | {row['commands']} | {row['summary']['rate_hz']:.1f} | "
            f"{row['start_distance']:.3f} | {row['nearest']:.3f} | {row['code']} | {row['summary']['end']} |"
            for row in rows
        ),
    ]
    nearer = sum(row["nearest"] <= row["start_distance"] / 2 for row in rows)
    return "\n".join([*lines, "", f"{nearer} of {len(rows)} came at least half the way to the object."])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
