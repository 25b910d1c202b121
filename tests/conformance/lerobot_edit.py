"""LeRobot's editor and recorder on our datasets, and our reader on what they leave; run by hand.

    pip install "lerobot[dataset]==0.6.1" jaxtyping              # Python 3.12, in an environment of its own
    PYTHONPATH=. python tests/conformance/lerobot_edit.py outputs/lerobot_edit

Records small datasets with our writer, applies every operation of `lerobot-edit-dataset` and
`LeRobotDataset.resume`, and opens each result with our reader: numbers must be equal, pixels as encoded
again. Copies that LeRobot makes hold no robot spec of ours, so it is derived there; what it edits in place
finds the spec in meta/vla.json and can be continued, or is refused in words. Prints a table and writes it
into table.md of that new directory.
"""

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.scripts import lerobot_edit_dataset

from vla.data.foreign import derive_robot_spec
from vla.data.layout import DatasetError
from vla.data.reader import Dataset
from vla.data.writer import DatasetWriter
from vla.spec import CameraSpec, Channel, RobotSpec

NUM_EPISODES, NUM_FRAMES, SIZE = 4, 12, 64
SPEC = RobotSpec(
    name="two_joints",
    cameras=tuple(CameraSpec(name=name, height=SIZE, width=SIZE) for name in ("front", "wrist")),
    state=tuple(Channel(name=name, unit="rad", low=-3.0, high=3.0) for name in ("shoulder", "elbow")),
    action=tuple(Channel(name=name, unit="rad", low=-3.0, high=3.0) for name in ("shoulder", "elbow")),
    control_hz=20.0,
    action_convention="joint_target",
    gripper_sign="none",
)


@dataclass
class Result:
    """What an operation left: a dataset and which episodes of the source it should hold, in order."""

    root: Path
    episodes: list[int]
    in_place: bool = False
    num_new: int = 0  # frames that LeRobot appended
    cameras: tuple[str, ...] = ("front", "wrist")


def record(writer: DatasetWriter, numbers: range) -> None:
    """Record episodes of smooth pictures whose level tells episode and frame."""
    ramp = np.linspace(0, 60, SIZE)[:, None, None] + np.zeros((SIZE, SIZE, 3))
    for number in numbers:
        rng = np.random.default_rng(number)
        for t in range(NUM_FRAMES):
            picture = np.clip(ramp + 20 * number + 3 * t, 0, 255).astype(np.uint8)
            numerals = rng.normal(0, 1, (2, 2)).astype(np.float32)
            writer.add_frame({"front": picture, "wrist": picture[::-1].copy()}, numerals[0], numerals[1])
        writer.save_episode(f"move to place {number % 2}", {"seed": number, "success": True})


def make(root: Path, storage: str) -> Path:
    with DatasetWriter(root, robot_spec=SPEC, storage=storage) as writer:
        record(writer, range(NUM_EPISODES))
    return root


def edit(*arguments: str) -> None:
    """Run lerobot-edit-dataset in this process."""
    sys.argv = ["lerobot-edit-dataset", *arguments]
    lerobot_edit_dataset.main()


def edit_copy(source: Path, out: Path, operation: str, *arguments: str) -> None:
    edit(
        "--repo_id=local/source",
        f"--root={source}",
        "--new_repo_id=local/result",
        f"--new_root={out}",
        f"--operation.type={operation}",
        *(f"--operation.{argument}" for argument in arguments),
    )


def edit_in_place(source: Path, out: Path, operation: str, *arguments: str) -> None:
    shutil.copytree(source, out)
    edit(
        "--repo_id=local/result",
        f"--root={out}",
        *(["--new_repo_id=local/result", f"--new_root={out}"] if operation != "modify_tasks" else []),
        f"--operation.type={operation}",
        *(f"--operation.{argument}" for argument in arguments),
    )


ALL = list(range(NUM_EPISODES))


def delete_episodes(source: Path, out: Path) -> list[Result]:
    edit_copy(source, out, "delete_episodes", "episode_indices=[1]")
    return [Result(out, [0, 2, 3])]


def split(source: Path, out: Path) -> list[Result]:
    edit_copy(source, out, "split", 'splits={"train": [0, 1, 3], "val": [2]}')
    return [Result(out / "train", [0, 1, 3]), Result(out / "val", [2])]


def merge(source: Path, out: Path) -> list[Result]:
    edit(
        "--new_repo_id=local/result",
        f"--new_root={out}",
        "--operation.type=merge",
        "--operation.repo_ids=['local/a', 'local/b']",
        f"--operation.roots=['{source}', '{source}']",
    )
    return [Result(out, ALL + ALL)]


def remove_feature(source: Path, out: Path) -> list[Result]:
    edit_copy(source, out, "remove_feature", "feature_names=['observation.images.wrist']")
    return [Result(out, ALL, cameras=("front",))]


def modify_tasks(source: Path, out: Path) -> list[Result]:
    edit_in_place(source, out, "modify_tasks", "new_task=stack the cubes")
    return [Result(out, ALL, in_place=True)]


def recompute_stats(source: Path, out: Path) -> list[Result]:
    copy, place = out.with_name(out.name + "_copy"), out
    edit_copy(source, copy, "recompute_stats", "skip_image_video=false")
    edit_in_place(source, place, "recompute_stats", "overwrite=true")
    return [Result(copy, ALL), Result(place, ALL, in_place=True)]


def convert_image_to_video(source: Path, out: Path) -> list[Result]:
    edit_copy(source, out, "convert_image_to_video", "num_workers=1")
    return [Result(out, ALL)]


def reencode_videos(source: Path, out: Path) -> list[Result]:
    copy, place = out.with_name(out.name + "_copy"), out
    arguments = ("rgb_encoder.vcodec=h264", "rgb_encoder.crf=23")
    edit_copy(source, copy, "reencode_videos", *arguments)
    edit_in_place(source, place, "reencode_videos", *arguments, "overwrite=true")
    return [Result(copy, ALL), Result(place, ALL, in_place=True)]


def info(source: Path, out: Path) -> list[Result]:
    edit_in_place(source, out, "info", "show_features=true")
    return [Result(out, ALL, in_place=True)]


def resume(source: Path, out: Path) -> list[Result]:
    shutil.copytree(source, out)
    dataset = LeRobotDataset.resume("local/result", root=out)
    for t in range(NUM_FRAMES):
        picture = np.full((SIZE, SIZE, 3), 10 * t, np.uint8)
        frame = {f"observation.images.{name}": picture for name in ("front", "wrist")}
        numbers = np.array([t, -t], np.float32)
        dataset.add_frame({**frame, "observation.state": numbers, "action": numbers, "task": "wave"})
    dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return [Result(out, ALL, in_place=True, num_new=NUM_FRAMES)]


OPERATIONS: dict[str, list[Callable[[Path, Path], list[Result]]]] = {
    "image": [delete_episodes, split, merge, remove_feature, modify_tasks, recompute_stats,
              convert_image_to_video, info, resume],
    "video": [delete_episodes, split, merge, remove_feature, modify_tasks, recompute_stats, reencode_videos,
              info, resume],
}  # fmt: skip


def reopen(root: Path) -> tuple[Dataset, str]:
    """Open a dataset and say where its robot spec came from."""
    try:
        dataset = Dataset(root)
    except DatasetError as error:
        if "does not say what its numbers mean" not in str(error):
            raise
        spec = derive_robot_spec(root, action_convention="joint_target", gripper_sign="none")
        return Dataset(root, robot_spec=spec), "derived"
    return dataset, "info.json" if "vla" in dataset.info else "meta/vla.json"


def compare(result: Result, source: Dataset) -> list[str]:
    """Return the cells of a row: spec, episodes, numbers, pixels, columns, continuing."""
    dataset, spec = reopen(result.root)
    rows = np.concatenate([np.flatnonzero(source.episode_index == number) for number in result.episodes])
    if dataset.num_frames != len(rows) + result.num_new:
        raise AssertionError(f"{dataset.num_frames} frames instead of {len(rows) + result.num_new}")
    np.testing.assert_array_equal(dataset.states[: len(rows)], source.states[rows])
    np.testing.assert_array_equal(dataset.actions[: len(rows)], source.actions[rows])
    if dataset.robot_spec.camera_names != result.cameras:
        raise AssertionError(f"cameras {dataset.robot_spec.camera_names}")
    worst = 0.0
    for camera in result.cameras:
        wanted = source.frames(camera, 0, source.num_frames)[rows].astype(int)
        error = np.abs(dataset.frames(camera, 0, dataset.num_frames)[: len(rows)] - wanted)
        worst = max(worst, float(error.mean(axis=(1, 2, 3)).max()))
    if worst > 3:
        raise AssertionError(f"a frame is off by {worst:.1f} levels")
    columns = ", ".join(sorted(set(dataset.episode_extra) & {"seed", "success"})) or "lost"
    continuing = continue_recording(result.root, source) if result.in_place else "a copy"
    return [spec, str(dataset.num_episodes), "equal", f"{worst:.2f}", columns, continuing]


def continue_recording(root: Path, source: Dataset) -> str:
    """Append an episode with our writer; return what came of it."""
    before = Dataset(root).num_episodes if reopen(root)[1] != "derived" else 0
    try:
        with DatasetWriter(root, robot_spec=SPEC, storage=source.storage("front")) as writer:
            record(writer, range(7, 8))
    except DatasetError as error:
        if "recorded with other features" in str(error):
            return "refused: other encoder settings"
        if "holds episodes of another program" in str(error):
            return "refused: episodes of another program"
        raise
    after = Dataset(root)
    if after.num_episodes != before + 1 or LeRobotDataset("local/r", root=root).num_episodes != before + 1:
        raise AssertionError("the episode is not there")
    return "works"


def main(work: Path) -> None:
    logging.disable(logging.INFO)
    titles = (
        "storage, operation, robot spec from, episodes, numbers, pixels off by, columns, our writer goes on"
    )
    lines = ["| " + titles.replace(", ", " | ") + " |", "| --- " * 8 + "|"]
    failures = 0
    for storage, operations in OPERATIONS.items():
        source_root = make(work / storage / "source", storage)
        source = Dataset(source_root)
        for operation in operations:
            name = operation.__name__
            try:
                for result in operation(source_root, work / storage / name):
                    cells = [storage, name + (" in place" if result.in_place else "")]
                    lines.append("| " + " | ".join([*cells, *compare(result, source)]) + " |")
            except (ValueError, AssertionError, OSError, RuntimeError, KeyError) as error:
                failures += 1
                lines.append(f"| {storage} | {name} | FAILS: {type(error).__name__}: {error} |")
    print("\n".join(lines))
    (work / "table.md").write_text("\n".join(lines) + "\n")
    if failures:
        raise SystemExit(f"{failures} operations do not conform")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
