"""A small clean recording, and faults to plant into it: each takes the recording apart in one way."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data_fixtures import damage_packet

from vla.data.writer import DatasetWriter
from vla.spec import CameraSpec, Channel, RobotSpec

HZ, LENGTH, PER_TASK = 20.0, 44, 5
JOINTS = ("base", "shoulder", "elbow", "wrist")
START = np.array([0.1, -1.3, 1.7, 0.7])
TASKS = {
    "lift": ("lift the red cube", (0.6, -0.4, 1.0, 0.1)),
    "push": ("push the blue ball to the mat", (-0.5, -0.6, 1.2, 0.3)),
    "reach": ("reach the green brick", (0.9, -0.2, 0.6, 1.2)),
}
DATA = "data/chunk-000/file-000.parquet"


@dataclass
class Draft:
    """An episode before it is recorded."""

    states: np.ndarray
    actions: np.ndarray
    images: dict[str, np.ndarray]
    task: str
    extra: dict

    def copy(self) -> "Draft":
        images = {name: frames.copy() for name, frames in self.images.items()}
        return Draft(self.states.copy(), self.actions.copy(), images, self.task, dict(self.extra))

    def keep(self, chosen: slice) -> None:
        self.states, self.actions = self.states[chosen], self.actions[chosen]
        self.images = {name: frames[chosen] for name, frames in self.images.items()}

    def hold(self, first: int, last: int) -> None:
        """Let the robot rest before and after."""
        index = np.concatenate(
            [np.zeros(first, int), np.arange(len(self.states)), np.full(last, len(self.states) - 1)]
        )
        self.states, self.actions = self.states[index], self.actions[index]
        self.images = {name: frames[index] for name, frames in self.images.items()}


def arm_spec(convention: str = "joint_target") -> RobotSpec:
    low, high = (-3.2, 3.2) if convention == "joint_target" else (-0.3, 0.3)
    gripper = Channel(name="gripper", unit="1", low=0.0, high=1.0)
    return RobotSpec(
        name="arm",
        cameras=(
            CameraSpec(name="front", height=32, width=48),
            CameraSpec(name="wrist", height=32, width=48),
        ),
        state=(*(Channel(name=name, unit="rad", low=-3.2, high=3.2) for name in JOINTS), gripper),
        action=(*(Channel(name=name, unit="rad", low=low, high=high) for name in JOINTS), gripper),
        control_hz=HZ,
        action_convention=convention,
        gripper_sign="positive_opens",
    )


def clean_episodes(convention: str = "joint_target") -> list[Draft]:
    """A reach, a grasp, a short way on and a rest; the state follows the command with a delay."""
    rng = np.random.default_rng(3)
    drafts = []
    for i in range(PER_TASK * len(TASKS)):
        name = list(TASKS)[i % len(TASKS)]
        text, goal = TASKS[name]
        start = START + rng.normal(0, 0.01, 4)
        pose = np.array(goal) + rng.normal(0, 0.08, 4)
        share = np.clip(np.arange(LENGTH) / (LENGTH - 14), 0, 1)[:, None]
        target = start + (pose - start) * (10 * share**3 - 15 * share**4 + 6 * share**5)
        states = np.empty((LENGTH, 5))
        states[0] = [*start, 1.0]
        grip = np.where(np.arange(LENGTH) < LENGTH - 16, 1.0, 0.0)
        for t in range(1, LENGTH):
            wanted = np.append(target[t - 1], grip[t - 1])
            states[t] = states[t - 1] + 0.7 * (wanted - states[t - 1])
        states[:, :4] += rng.normal(0, 2e-4, (LENGTH, 4))
        commands = target if convention == "joint_target" else np.diff(target, axis=0, append=target[-1:])
        drafts.append(
            Draft(
                states=states,
                actions=np.column_stack([commands, grip]),
                images={camera: _pictures(states, k) for k, camera in enumerate(("front", "wrist"))},
                task=text,
                extra={"seed": i, "task_name": name, "success": True},
            )
        )
    return drafts


def _pictures(states: np.ndarray, camera: int) -> np.ndarray:
    """A table and a wall of different colors, with a block that goes where the joints are."""
    frames = np.empty((len(states), 32, 48, 3), dtype=np.uint8)
    rows = np.arange(32)[:, None, None]
    for frame, state in zip(frames, states, strict=True):
        frame[:] = (150, 110, 60) if camera == 0 else (70, 120, 100)
        frame[:12] = (90, 100, 170) if camera == 0 else (200, 170, 90)
        frame += (rows // 2).astype(np.uint8)
        x, y = int(20 + 16 * state[0]), int(16 + 8 * state[1 + camera])
        frame[max(0, y - 4) : y + 4, max(0, x - 4) : x + 5] = (230, 225, 60) if camera == 0 else (60, 30, 40)
    return frames


def record(
    root: Path, drafts: list[Draft], *, convention: str = "joint_target", storage: str = "image"
) -> Path:
    with DatasetWriter(root, robot_spec=arm_spec(convention), storage=storage) as writer:
        for draft in drafts:
            for t in range(len(draft.states)):
                images = {name: frames[t] for name, frames in draft.images.items()}
                writer.add_frame(
                    images, draft.states[t].astype(np.float32), draft.actions[t].astype(np.float32)
                )
            writer.save_episode(draft.task, draft.extra)
    return root


def replace_numbers(root: Path, drafts: list[Draft]) -> Path:
    """Put other states and actions into a recording; faster than to record it anew."""
    table = pq.read_table(root / DATA)
    for name, parts in (
        ("observation.state", [draft.states for draft in drafts]),
        ("action", [draft.actions for draft in drafts]),
    ):
        rows = np.concatenate(parts).astype(np.float32)
        assert len(rows) == len(table)
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, root / DATA)
    return root


# Faults of a recording, planted before it is written.


def idle_starts(drafts: list[Draft]) -> None:
    for draft in drafts[::2]:
        draft.hold(40, 0)


def idle_ends(drafts: list[Draft]) -> None:
    for draft in drafts[::2]:
        draft.hold(0, 70)


def end_in_motion(drafts: list[Draft]) -> None:
    drafts[4].keep(slice(0, LENGTH // 2))


def equal_delta(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions[:, :4] = np.diff(draft.actions[:, :4], axis=0, prepend=draft.actions[:1, :4])


def double_delta(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions[:, :4] = np.diff(draft.actions[:, :4], axis=0, prepend=np.zeros((1, 4)))


def positions_for_deltas(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions[:, :4] = np.vstack([draft.states[1:, :4], draft.states[-1:, :4]]) + 0.001


def clipped_state(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.states[:, 2] = np.clip(draft.states[:, 2], None, 1.5)
        draft.states[0, 2] = 1.49


def clipped_action(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions[:, 0] = np.clip(draft.actions[:, 0], -0.02, 0.02)


def constant_channel(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.states[:, 3] = 0.7


def swapped_channels(drafts: list[Draft]) -> None:
    for draft in (drafts[2], drafts[9]):
        draft.states[:, [1, 2]] = draft.states[:, [2, 1]]
        draft.actions[:, [1, 2]] = draft.actions[:, [2, 1]]


def swapped_actions(drafts: list[Draft]) -> None:
    for draft in (drafts[2], drafts[9]):
        draft.actions[:, [0, 1]] = draft.actions[:, [1, 0]]


def degrees_in_actions(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions[:, 1] *= 180 / np.pi


def degrees_in_some(drafts: list[Draft]) -> None:
    for draft in drafts[5:7]:
        draft.states[:, :4] *= 180 / np.pi
        draft.actions[:, :4] *= 180 / np.pi


def late_actions(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions = np.vstack([np.repeat(draft.actions[:1], 4, axis=0), draft.actions[:-4]])


def actions_are_states(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions[:, :4] = draft.states[:, :4]


def actions_are_next_states(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions[:, :4] = np.vstack([draft.states[1:, :4], draft.states[-1:, :4]])


def jump(drafts: list[Draft]) -> None:
    for draft in drafts[7:9]:
        draft.states[20:, 1] += 0.9
        draft.actions[20:, 1] += 0.9


def outlier(drafts: list[Draft]) -> None:
    drafts[3].states[17, 2] += 1.4


def wrap(drafts: list[Draft]) -> None:
    drafts[3].states[15:, 0] -= 2 * np.pi
    drafts[3].actions[15:, 0] -= 2 * np.pi


def out_of_range(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions[:, 4] *= 1.4


def still_gripper(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.actions[:, 4] = 1.0


def short(drafts: list[Draft]) -> None:
    drafts[6].keep(slice(0, 4))


def duplicate(drafts: list[Draft]) -> None:
    drafts.append(drafts[1].copy())
    drafts[-1].extra["seed"] = 99


def failed(drafts: list[Draft]) -> None:
    drafts[2].extra["success"] = False


def spelling(drafts: list[Draft]) -> None:
    drafts[3].task = "Lift the red  cube."


def rare_sentence(drafts: list[Draft]) -> None:
    drafts[3].task = "lift teh red cube"
    drafts[3].extra["task_name"] = "other"


def two_sentences(drafts: list[Draft]) -> None:
    for draft in drafts[0:9:3]:
        draft.task = "raise the red cube"


def long_sentence(drafts: list[Draft]) -> None:
    for draft in drafts[0::3]:
        draft.task = " ".join(f"word{i} {i * 7919}" for i in range(40))


def unequal_tasks(drafts: list[Draft]) -> None:
    for draft in drafts[3::3]:
        draft.task, draft.extra["task_name"] = TASKS["push"][0], "push"


def black(drafts: list[Draft]) -> None:
    drafts[4].images["wrist"][:] = 2


def overexposed(drafts: list[Draft]) -> None:
    drafts[4].images["front"][:] = 255


def frozen(drafts: list[Draft]) -> None:
    drafts[4].images["front"][8:] = drafts[4].images["front"][8]


def bgr(drafts: list[Draft]) -> None:
    for draft in (drafts[4], drafts[11]):
        draft.images["front"] = draft.images["front"][..., ::-1].copy()


def turned(drafts: list[Draft]) -> None:
    drafts[4].images["wrist"] = drafts[4].images["wrist"][:, ::-1].copy()


def exchanged_cameras(drafts: list[Draft]) -> None:
    images = drafts[4].images
    images["front"], images["wrist"] = images["wrist"], images["front"]


def one_camera(drafts: list[Draft]) -> None:
    for draft in drafts:
        draft.images["wrist"] = draft.images["front"].copy()


def letterbox(drafts: list[Draft]) -> None:
    for draft in drafts[4:7]:
        draft.images["front"][:, :5] = draft.images["front"][:, -5:] = 0


def late_pictures(drafts: list[Draft]) -> None:
    for draft in drafts:
        for name, frames in draft.images.items():
            draft.images[name] = np.concatenate([np.repeat(frames[:1], 5, axis=0), frames[:-5]])


# Faults of the files, planted after the recording was written.


def change_column(path: Path, name: str, change: Callable[[list], list]) -> None:
    table = pq.read_table(path)
    values = change(table[name].to_pylist())
    index = table.schema.get_field_index(name)
    pq.write_table(
        table.set_column(index, table.schema.field(name), pa.array(values, table[name].type)), path
    )


def change_times(root: Path, change: Callable[[np.ndarray], object]) -> None:
    def changed(values: list) -> list:
        times = np.array(values, dtype=float)
        change(times)
        return [None if np.isnan(one) else one for one in times]

    change_column(root / DATA, "timestamp", changed)


def gaps(root: Path) -> None:
    change_times(root, lambda times: times[LENGTH + 20 : 2 * LENGTH].__iadd__(0.2))


def doubled(root: Path) -> None:
    change_times(root, lambda times: times.__setitem__(50, times[49]))


def missing(root: Path) -> None:
    change_times(root, lambda times: times.__setitem__(slice(50, 60), np.nan))


def drifting(root: Path) -> None:
    change_times(root, lambda times: times[:LENGTH].__imul__(1.015))


def other_rate(root: Path) -> None:
    change_times(root, lambda times: times.__imul__(20.0 / 15.0))


def stale_statistics(root: Path) -> None:
    path = root / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["mean"] = [0.0] * 5
    path.write_text(json.dumps(stats))


def nan(root: Path) -> None:
    def spoil(rows: list) -> list:
        rows[LENGTH + 3][1] = float("nan")
        return rows

    change_column(root / DATA, "observation.state", spoil)


def empty_sentence(root: Path) -> None:
    change_column(root / "meta/tasks.parquet", "task", lambda texts: ["", *texts[1:]])


def damaged_picture(root: Path) -> None:
    broken = {"bytes": b"\x89PNG\r\n", "path": "frame-000043.png"}
    change_column(root / DATA, "observation.images.front", lambda rows: [*rows[:-1], broken])


def truncated(root: Path) -> None:
    path = root / DATA
    path.write_bytes(path.read_bytes()[:1000])


def damaged_video(root: Path) -> None:
    damage_packet(root / "videos/observation.images.wrist/chunk-000/file-000.mp4", LENGTH + 20)
