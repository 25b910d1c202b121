"""Small recordings to test on: a robot of two cameras, pictures that tell episode and frame apart."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from vla.data.writer import DatasetWriter
from vla.spec import CameraSpec, Channel, RobotSpec


def channels(prefix: str, count: int) -> tuple[Channel, ...]:
    return tuple(Channel(name=f"{prefix}{i}", unit="m", low=-1.0, high=1.0) for i in range(count))


def make_spec(
    *, state: int = 3, action: int = 2, size: tuple[int, int] = (16, 24), hz: float = 20.0
) -> RobotSpec:
    return RobotSpec(
        name="test_arm",
        cameras=tuple(CameraSpec(name=name, height=size[0], width=size[1]) for name in ("exterior", "wrist")),
        state=channels("s", state),
        action=channels("a", action),
        control_hz=hz,
        action_convention="end_effector_delta",
        gripper_sign="positive_opens",
    )


def picture(spec: RobotSpec, camera: int, episode: int, frame: int) -> np.ndarray:
    """A smooth image whose mean level is a function of camera, episode and frame."""
    shape = spec.cameras[camera]
    ramp = np.linspace(0, 20, shape.width)[None, :, None] + np.zeros((shape.height, 1, 3))
    level = 20 + 90 * camera + 25 * (episode % 4) + frame % 23
    return np.clip(ramp + level, 0, 255).astype(np.uint8)


@dataclass
class Episode:
    states: np.ndarray
    actions: np.ndarray
    task: str
    extra: dict


def make_episodes(
    spec: RobotSpec, lengths: list[int], *, first: int = 0, name: str = "lift"
) -> list[Episode]:
    episodes = []
    for i, length in enumerate(lengths, start=first):
        rng = np.random.default_rng(i)
        episodes.append(
            Episode(
                states=rng.normal(i, 1, (length, len(spec.state))).astype(np.float32),
                actions=rng.normal(0, 1, (length, len(spec.action))).astype(np.float32),
                task=f"{name} the {('red', 'green', 'blue')[i % 3]} cube",
                extra={"seed": 100 + i, "task_name": name, "success": i % 2 == 0},
            )
        )
    return episodes


def write_episodes(writer: DatasetWriter, episodes: list[Episode], *, first: int = 0) -> None:
    spec = writer.robot_spec
    for i, episode in enumerate(episodes, start=first):
        for t, (state, action) in enumerate(zip(episode.states, episode.actions, strict=True)):
            images = {name: picture(spec, c, i, t) for c, name in enumerate(spec.camera_names)}
            writer.add_frame(images, state, action)
        writer.save_episode(episode.task, episode.extra)


def damage_packet(path: Path, number: int) -> None:
    """Spoil the length field of a video packet."""
    with av.open(str(path)) as container:
        packets = list(container.demux(container.streams.video[0]))
        position = packets[number].pos
        assert position is not None
    content = bytearray(path.read_bytes())
    content[position : position + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(content)
