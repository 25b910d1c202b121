"""A recording of somebody's arm becomes a policy that drives it, without a line of Python."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from policies.exported import BundlePolicy
from vla.data.writer import DatasetWriter
from vla.resize import Resizing
from vla.spec import CameraSpec, Channel, RobotSpec

ROOT, STAND_IN = Path(__file__).parents[2], Path(__file__).parent / "lerobot_stand_in"
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SIZES = {"front": (48, 64), "wrist": (24, 32)}
TINY = [
    "model.backbone.width=32",
    "model.backbone.depth=1",
    "model.backbone.num_heads=2",
    "model.backbone.stem_channels=[8,8]",
    "trainer.num_samples=240",
    "trainer.batch_size=8",
]


def program(verb, *arguments, cwd, code=0):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(STAND_IN)]))
    result = subprocess.run(
        [sys.executable, "-m", f"experiments.{verb}", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
        timeout=600,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def draw(joints, size, rng):
    """A table, and a block that moves with the joints."""
    height, width = size
    image = np.full((height, width, 3), (180, 150, 110)) + rng.normal(0, 4, (height, width, 3))
    x, y = (int((joints[i] + 100) / 200 * (extent - 8)) for i, extent in ((0, width), (1, height)))
    image[y : y + 8, x : x + 8] = (200, 40, 30)
    return np.clip(image, 0, 255).astype(np.uint8)


def record_as_lerobot(root):
    """Write what LeRobot would: no spec and no units, two sizes, and a depth camera that nobody asks for."""
    channels = tuple(Channel(name=f"{name}.pos", unit="1", low=-100.0, high=100.0) for name in JOINTS)
    spec = RobotSpec(
        name="so101_follower",
        cameras=tuple(CameraSpec(name=name, height=h, width=w) for name, (h, w) in SIZES.items()),
        state=channels,
        action=channels,
        control_hz=30.0,
        action_convention="joint_target",
        gripper_sign="positive_opens",
    )
    rng = np.random.default_rng(0)
    with DatasetWriter(root, robot_spec=spec, storage="image") as writer:
        for episode in range(6):
            home, goal = np.full(6, 10.0), rng.uniform(-40, 60, 6)
            for t in range(60):
                now, next_one = (home + (goal - home) * np.clip((t + k) / 50, 0, 1) for k in (0, 1))
                writer.add_frame(
                    {name: draw(now, size, rng) for name, size in SIZES.items()},
                    (now + rng.normal(0, 0.05, 6)).astype(np.float32),
                    next_one.astype(np.float32),
                )
            writer.save_episode(("pick up the red cube", "touch the blue ball")[episode % 2])
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    del info["vla"]
    depth = {"dtype": "video", "shape": [48, 64, 1], "names": None, "info": {"is_depth_map": True}}
    info["features"]["observation.images.front_depth"] = depth
    path.write_text(json.dumps(info))
    (root / "meta/vla.json").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """The folder after check, train and export, and what these printed."""
    home = tmp_path_factory.mktemp("so101")
    record_as_lerobot(home / "recordings/so101")
    data = "dataset=recordings/so101"
    printed = {"check": program("check", data, "out_dir=outputs/so101", cwd=home)}
    robot = "robot_file=outputs/so101/robot.yaml"
    printed["train"] = program(
        "train",
        data,
        robot,
        "data.image_size=24",
        "data.validation_share=0.3",
        "out_dir=outputs/train",
        *TINY,
        cwd=home,
    )
    printed["export"] = program("export", "checkpoint=outputs/train", "bundle=outputs/bundle", cwd=home)
    return home, printed


@pytest.mark.timeout(900)
def test_check_drafts_the_file_that_train_takes(journey):
    home, printed = journey
    assert "outputs/so101/robot.yaml" in printed["check"]
    assert (home / "outputs/so101/report.html").is_file()
    assert re.search(r"2 episodes \(2 held out in training\)", printed["train"])
    assert re.search(r"elbow_flex\.pos +1 +[0-9.e+-]+ \[", printed["train"])


@pytest.mark.timeout(900)
def test_the_bundle_takes_frames_of_the_cameras_sizes(journey):
    home, printed = journey
    assert re.search(r"equal tokens +(\d+) of \1\n", printed["export"])
    policy = BundlePolicy.load(home / "outputs/bundle")
    assert policy.processor.resizing == Resizing(height=24, width=24, mode="pad")
    assert [(c.height, c.width) for c in policy.robot_spec.cameras] == list(SIZES.values())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", ["checkpoint", "bundle"])
def test_both_are_compared_with_the_episodes_that_were_held_out(journey, policy):
    home, _ = journey
    path = {"checkpoint": "outputs/train", "bundle": "outputs/bundle"}[policy]
    out_dir = f"outputs/evaluate/{policy}"
    program(
        "evaluate",
        f"policy={policy}",
        f"path={path}",
        "dataset=recordings/so101",
        f"out_dir={out_dir}",
        cwd=home,
    )
    results = json.loads((home / out_dir / "offline.json").read_text())
    assert results["episodes"] == 2
    assert [channel["name"] for channel in results["channels"]] == [f"{name}.pos" for name in JOINTS]
    assert all(channel["low"] <= channel["error"] <= channel["high"] for channel in results["channels"])
    assert "polyline" in (home / out_dir / "offline.html").read_text()


@pytest.mark.timeout(900)
def test_a_recording_that_was_all_trained_on_is_refused(journey):
    home, _ = journey
    arguments = ("dataset=recordings/so101", "robot_file=outputs/so101/robot.yaml", "data.image_size=24")
    whole = ("data.validation_share=0", "out_dir=outputs/whole", *TINY)
    assert "no episode is held out" in program("train", *arguments, *whole, cwd=home)
    told = program("evaluate", "path=outputs/whole", arguments[0], "out_dir=outputs/none", cwd=home, code=2)
    assert "trained on all 6 episodes" in told


@pytest.mark.timeout(900)
def test_control_drives_it_once_a_person_has_confirmed_the_limits(journey, tmp_path):
    home, _ = journey
    robot_file, log = tmp_path / "robot.yaml", tmp_path / "sent.jsonl"
    shutil.copy(home / "outputs/so101/robot.yaml", robot_file)
    start = {f"{name}.pos": 10.0 for name in JOINTS}
    cameras = ", ".join(f"{name}: [{h}, {w}]" for name, (h, w) in SIZES.items())
    positions = ", ".join(f"{name}: {value}" for name, value in start.items())
    arguments = (
        "bundle=outputs/bundle",
        "robot=lerobot",
        "robot.type=stand_in_arm",
        f"robot.robot_file={robot_file}",
        f"robot.settings={{log: {log}, start: {{{positions}}}, cameras: {{{cameras}}}}}",
        "instruction='pick up the red cube'",
        "max_seconds=2",
        f"out_dir={tmp_path / 'run'}",
    )
    assert "nobody has confirmed" in program("control", *arguments, cwd=home, code=1)
    assert not log.exists(), "something was sent under limits that nobody has confirmed"
    confirmed = robot_file.read_text().replace("limits_confirmed: false", "limits_confirmed: true")
    robot_file.write_text(re.sub(r"velocity: [\d.]+", "velocity: 5000", confirmed))  # it has learned nothing
    printed = program("control", *arguments, cwd=home)
    assert re.search(r"goal +not judged", printed)
    page = (tmp_path / "run" / "report.html").read_text()
    (title,) = re.findall("<h1>(.*?)</h1>", page)
    assert title.startswith("Control: so101")  # no task and no seed: nothing is simulated
    assert "seed" not in title
    assert "pick up the red cube" in page
    assert "none: no scene judges this run" in page
    assert "data:video/mp4;base64," in page
    sent = [json.loads(line) for line in log.read_text().splitlines()]
    assert sent[-1] == {"torque off": False}
    assert "stand_in_arm: when this program ends its motors go on holding" in printed
    assert len(sent) > 30, "two seconds at 30 Hz"
    told = program(
        "control",
        *[a.replace("stand_in_arm", "stand_in_am") for a in arguments[:-1]],
        f"out_dir={tmp_path / 'another'}",
        cwd=home,
        code=1,
    )
    assert "'stand_in_arm'" in told
