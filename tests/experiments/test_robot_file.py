"""A robot file: drafted from a recording, read back, refused in words, its limits confirmed by a person."""

import dataclasses

import numpy as np
import pytest

from experiments.config.robot_draft import draft_limits, write_draft
from experiments.config.robot_file import LimitsNotConfirmed, read_robot_file, require_confirmed_limits
from policies.runtime.limits import audit
from vla.data.reader import Dataset
from vla.data.writer import DatasetWriter
from vla.spec import ACTION_CONVENTIONS, CameraSpec, Channel, RobotSpec

JOINTS = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")


def arm_spec(convention):
    channels = tuple(Channel(name=name, unit="1", low=-100.0, high=100.0) for name in JOINTS)
    return RobotSpec(
        name="so101 follower",
        cameras=(CameraSpec(name="front", height=12, width=16), CameraSpec(name="on", height=6, width=8)),
        state=channels,
        action=channels,
        control_hz=30.0,
        action_convention=convention,
        gripper_sign="positive_opens",
    )


@pytest.fixture
def record_arm(tmp_path):
    def run(convention="joint_target", *, episodes=3, length=40):
        spec, rng = arm_spec(convention), np.random.default_rng(0)
        root = tmp_path / convention
        with DatasetWriter(root, robot_spec=spec, storage="image") as writer:
            for _ in range(episodes):
                phase = rng.uniform(0, 6, 3)
                for t in range(length):
                    state = np.float32([60, 40, 30] * np.sin(0.1 * t + phase) + [0, 10, 40])
                    ahead = np.float32([60, 40, 30] * np.sin(0.1 * (t + 1) + phase) + [0, 10, 40])
                    action = ahead if spec.gives_positions else (ahead - state) / spec.change_per_action
                    action[2] = ahead[2]
                    images = {
                        camera.name: np.full((camera.height, camera.width, 3), t, np.uint8)
                        for camera in spec.cameras
                    }
                    writer.add_frame(images, state, np.float32(action))
                writer.save_episode("put the block into the box")
        return root

    return run


@pytest.mark.parametrize("convention", ACTION_CONVENTIONS)
def test_a_drafted_file_reads_back_and_its_limits_keep_the_recording(record_arm, tmp_path, convention):
    dataset = Dataset(record_arm(convention))
    path = tmp_path / "robot.yaml"
    assert write_draft(path, dataset)
    file = read_robot_file(path)
    assert file.spec.to_json() == dataset.robot_spec.to_json()
    assert file.limits == draft_limits(dataset)
    assert file.limits.channels["gripper.pos"].kind == "gripper"
    assert all(channel.measured_by == name for name, channel in file.limits.channels.items())
    for start, length in zip(dataset.episode_starts, dataset.episode_lengths, strict=True):
        actions = dataset.actions[start : start + length].astype(np.float64)
        held = np.concatenate([actions[:1], actions]) if dataset.robot_spec.gives_positions else actions
        at_start = actions[0] if dataset.robot_spec.gives_positions else dataset.states[start].astype(float)
        found = audit(held, start=at_start, spec=dataset.robot_spec, limits=file.limits, tolerance=1e-3)
        assert {violation.kind for violation in found} <= {"acceleration"}, "of the jump into motion alone"


def test_the_spec_of_an_arm_takes_at_most_twenty_lines(record_arm, tmp_path):
    write_draft(tmp_path / "robot.yaml", Dataset(record_arm()))
    text = (tmp_path / "robot.yaml").read_text()
    assert len(text.split("\n\n")[0].splitlines()) - 2 * 3 + 2 * 6 <= 20, (
        "as many as an arm of six joints has"
    )


def test_a_file_that_is_there_is_left_alone(record_arm, tmp_path):
    (tmp_path / "robot.yaml").write_text("mine")
    assert not write_draft(tmp_path / "robot.yaml", Dataset(record_arm()))
    assert (tmp_path / "robot.yaml").read_text() == "mine"


def test_drafted_limits_count_for_nothing_until_a_person_confirms_them(record_arm, tmp_path):
    path = tmp_path / "robot.yaml"
    write_draft(path, Dataset(record_arm()))
    with pytest.raises(LimitsNotConfirmed, match="limits_confirmed: true"):
        require_confirmed_limits(path)
    path.write_text(path.read_text().replace("limits_confirmed: false", "limits_confirmed: true"))
    require_confirmed_limits(path)


def test_what_makes_no_sense_is_refused_with_file_and_key(record_arm, tmp_path):
    path = tmp_path / "robot.yaml"
    write_draft(path, Dataset(record_arm()))
    good = path.read_text()
    for old, new, told in (
        ("control_hz: 30", "control_hz: fast", "control_hz"),
        ("gripper_sign:", "griper_sign:", "gripper_sign"),
        ("joint_target ", "joint_targets ", "joint_target"),
        ("  channels:", "  chanels:", "channels"),
        ("elbow_flex.pos: {", "elbow.pos: {", "safety limits are for"),
        ('elbow_flex.pos: ["1", ', "elbow_flex.pos: [", "elbow_flex.pos"),
        ("name: ", "name: [", "cannot be read"),
    ):
        assert old in good
        path.write_text(good.replace(old, new))
        with pytest.raises(ValueError, match=r"robot\.yaml.*" + told) as raised:
            read_robot_file(path)
        assert "\n" not in str(raised.value) or told == "cannot be read"
    with pytest.raises(ValueError, match=r"no robot file .*experiments\.check"):
        read_robot_file(tmp_path / "missing.yaml")


def test_a_spec_that_was_wrong_is_corrected_by_a_robot_file(record_arm, tmp_path):
    root = record_arm()
    dataset = Dataset(root)
    corrected = dataclasses.replace(
        dataset.robot_spec,
        state=tuple(dataclasses.replace(one, unit="deg") for one in dataset.robot_spec.state),
    )
    assert Dataset(root, robot_spec=corrected).robot_spec == corrected
