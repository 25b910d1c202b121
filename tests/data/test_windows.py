import shutil
import time

import numpy as np
import pytest
from data_fixtures import make_episodes, make_spec, write_episodes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla.data.frame_cache import open_frame_cache
from vla.data.layout import DatasetError
from vla.data.reader import Dataset
from vla.data.windows import EpochSampler, Windows, open_windows
from vla.data.writer import DatasetWriter
from vla.resize import Resizing
from vla.spec import CameraSpec, RobotSpec, SpecMismatch


@pytest.fixture(scope="module")
def spec():
    return make_spec()


@pytest.fixture
def two_datasets(record, tmp_path):
    """Roots of two tasks with 4 and 3 episodes; one of their instructions is the same text."""
    first, episodes = record([6, 1, 9, 4], name="lift")
    second, more = record([5, 7, 2], name="push")
    return [first, second], episodes + more, tmp_path / "cache"


@pytest.fixture
def opened(two_datasets):
    roots, episodes, cache = two_datasets
    datasets = [Dataset(root) for root in roots]
    return datasets, [open_frame_cache(dataset, cache, progress=False) for dataset in datasets], episodes


def open_all(two_datasets, **arguments):
    roots, episodes, cache = two_datasets
    return open_windows(roots, cache_dir=cache, progress=False, **arguments), episodes


@given(
    horizon=st.integers(1, 12),
    offsets=st.sets(st.integers(0, 8), min_size=1, max_size=3),
    indices=st.lists(st.integers(0, 33), min_size=0, max_size=6),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_equal_a_plain_loop(opened, horizon, offsets, indices):
    offsets = tuple(sorted(offsets, reverse=True))
    datasets, caches, episodes = opened
    windows = Windows(datasets, caches, action_horizon=horizon, frame_offsets=offsets)
    moments = [(e, t) for e, episode in enumerate(episodes) for t in range(len(episode.states))]
    images = np.concatenate([np.stack([f["exterior"], f["wrist"]], axis=1) for f in caches])
    chosen = np.array(indices, dtype=np.int64)
    found, states, texts = windows.images(chosen), windows.state(chosen), windows.instruction_texts(chosen)
    actions, valid = windows.chunks(chosen)
    later = windows.later_states(chosen, (2, 5))
    assert {name: frames.shape for name, frames in found.items()} == dict.fromkeys(
        ("exterior", "wrist"), (len(indices), len(offsets), 16, 24, 3)
    )
    stacked = np.stack([found["exterior"], found["wrist"]], axis=2)
    assert actions.dtype == states.dtype == np.float32
    for row, index in enumerate(indices):
        e, now = moments[index]
        episode, start = episodes[e], index - now
        last = len(episode.states) - 1
        np.testing.assert_array_equal(states[row], episode.states[now])
        for k in range(horizon):
            np.testing.assert_array_equal(actions[row, k], episode.actions[min(now + k, last)])
            assert valid[row, k] == (now + k <= last)
        for f, offset in enumerate(offsets):
            np.testing.assert_array_equal(stacked[row, f], images[start + max(now - offset, 0)])
        assert texts[row] == episode.task
        for k, ahead in enumerate((2, 5)):
            np.testing.assert_array_equal(later[row, k], episode.states[min(now + ahead, last)])


def test_instructions_are_merged(record, tmp_path):
    first, _ = record([2, 2], name="lift", root=tmp_path / "a")
    second, _ = record([2, 2], name="lift", root=tmp_path / "b", first=1)
    windows = open_windows([first, second], cache_dir=tmp_path / "c", action_horizon=2, progress=False)
    assert windows.instructions == [f"lift the {color} cube" for color in ("red", "green", "blue")]
    colors = [text.split()[2] for text in windows.instruction_texts(np.arange(8))]
    assert colors == ["red"] * 2 + ["green"] * 4 + ["blue"] * 2
    assert windows.task_names == ["lift"]


def test_an_episode_is_wholly_in_one_part(two_datasets):
    windows, episodes = open_all(two_datasets, action_horizon=3)
    train, validation = windows.split_by_episode(validation_share=0.3, seed=1)
    assert train.num_windows + validation.num_windows == windows.num_windows == 34
    assert not set(train.moments.tolist()) & set(validation.moments.tolist())
    owner = np.repeat(np.arange(7), [len(e.states) for e in episodes])
    held_out = set(owner[validation.moments].tolist())
    assert not held_out & set(owner[train.moments].tolist())
    assert len(held_out & {0, 1, 2, 3}) == len(held_out & {4, 5, 6}) == 1
    assert validation.num_episodes == 2
    again = windows.split_by_episode(validation_share=0.3, seed=1)[1]
    np.testing.assert_array_equal(again.moments, validation.moments)
    others = [
        windows.split_by_episode(validation_share=0.3, seed=seed)[1].moments.tolist() for seed in range(8)
    ]
    assert any(other != validation.moments.tolist() for other in others)

    everything, nothing = windows.split_by_episode(validation_share=0.0, seed=1)
    assert (everything.num_windows, nothing.num_windows) == (34, 0)
    np.testing.assert_array_equal(train.state(np.arange(5)), windows.state(train.moments[:5]))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        windows.split_by_episode(validation_share=1.0, seed=1)


def test_every_task_of_one_dataset_is_held_out(tmp_path):
    spec = make_spec()
    with DatasetWriter(tmp_path / "d", robot_spec=spec, storage="image") as writer:
        for k, name in enumerate(("reach", "lift", "push")):
            write_episodes(writer, make_episodes(spec, [2, 3, 2], first=3 * k, name=name), first=3 * k)
    windows = open_windows([tmp_path / "d"], cache_dir=tmp_path / "c", action_horizon=2, progress=False)
    train, validation = windows.split_by_episode(validation_share=0.1, seed=0)
    assert (train.num_episodes, validation.num_episodes) == (6, 3)
    assert set(validation.task_index.tolist()) == {0, 1, 2}


def moments_held_twice(train, validation):
    """Return which states of the held-out part are also trained on."""
    trained = {state.tobytes() for state in train.state(np.arange(train.num_windows))}
    return [s for s in validation.state(np.arange(validation.num_windows)) if s.tobytes() in trained]


@pytest.mark.parametrize("seed", range(4))
def test_an_episode_that_is_there_twice_is_on_one_side(record, tmp_path, seed):
    roots = [record([6, 1, 9, 4], name="lift")[0], record([5, 7, 2], name="push", first=10)[0]]
    cache = tmp_path / "cache"
    copy = tmp_path / "elsewhere"
    shutil.copytree(roots[1], copy)
    plain = open_windows(roots, cache_dir=cache, action_horizon=3, progress=False)
    doubled = open_windows(
        [roots[0], copy, *roots, roots[0]], cache_dir=cache, action_horizon=3, progress=False
    )
    train, validation = doubled.split_by_episode(validation_share=0.3, seed=seed)
    assert train.num_windows + validation.num_windows == doubled.num_windows
    assert train.num_windows > 0
    assert validation.num_episodes == 1 * 3 + 1 * 2
    assert not moments_held_twice(train, validation)
    wanted = plain.split_by_episode(validation_share=0.3, seed=seed)[1]
    assert {s.tobytes() for s in validation.state(np.arange(validation.num_windows))} == {
        s.tobytes() for s in wanted.state(np.arange(wanted.num_windows))
    }


def test_a_task_of_two_datasets_of_one_episode_each_is_on_both_sides(record, tmp_path):
    roots = [record([4], root=tmp_path / f"d{i}", first=i)[0] for i in range(2)]
    windows = open_windows(roots, cache_dir=tmp_path / "c", action_horizon=3, progress=False)
    train, validation = windows.split_by_episode(validation_share=0.1, seed=0)
    assert (train.num_episodes, validation.num_episodes) == (1, 1)
    nothing = windows.split_by_episode(validation_share=0.0, seed=0)[1]
    assert nothing.num_windows == 0


def record_instructions(root, instructions):
    """Record an episode for each instruction, without task names."""
    spec = make_spec()
    with DatasetWriter(root, robot_spec=spec, storage="image") as writer:
        episodes = make_episodes(spec, [3] * len(instructions))
        for episode, instruction in zip(episodes, instructions, strict=True):
            episode.task, episode.extra = instruction, {}
        write_episodes(writer, episodes)


def test_without_task_names_the_instructions_are_the_tasks(tmp_path):
    record_instructions(tmp_path / "own", ["push it", "push it", "lift it", "lift it", "lift it", "wait"])
    windows = open_windows([tmp_path / "own"], cache_dir=tmp_path / "c", action_horizon=2, progress=False)
    assert windows.task_names == ["push it", "lift it", "wait"]
    assert windows.task_index.tolist() == [0] * 6 + [1] * 9 + [2] * 3
    for seed in range(4):
        train, validation = windows.split_by_episode(validation_share=0.1, seed=seed)
        assert sorted(set(train.task_index.tolist())) == [0, 1, 2]
        assert sorted(set(validation.task_index.tolist())) == [0, 1]


def test_some_of_the_recorded_tasks_can_be_chosen(two_datasets):
    windows, _ = open_all(two_datasets, action_horizon=3)
    pushed = windows.of_tasks(["push"])
    assert set(pushed.task_index.tolist()) == {windows.task_names.index("push")}
    indices = np.arange(pushed.num_windows)
    assert indices.size == 14
    assert set(pushed.instruction_texts(indices)) == set(pushed.instructions) < set(windows.instructions)
    np.testing.assert_array_equal(pushed.state(indices), windows.state(indices + 20))
    assert windows.of_tasks(["push", "lift"]).num_windows == windows.num_windows
    with pytest.raises(ValueError, match=r"data\.tasks: .* no task 'pusch'; did you mean 'push'\?"):
        windows.of_tasks(["pusch"])
    with pytest.raises(ValueError, match="null for all"):
        windows.of_tasks([])


def test_episodes_that_are_all_worded_differently_can_still_be_held_out(tmp_path):
    record_instructions(tmp_path / "own", [f"push it like {name}" for name in "abcdefghij"])
    windows = open_windows([tmp_path / "own"], cache_dir=tmp_path / "c", action_horizon=2, progress=False)
    train, validation = windows.split_by_episode(validation_share=0.2, seed=0)
    assert (train.num_episodes, validation.num_episodes) == (8, 2)


def test_tasks_can_be_balanced(two_datasets):
    windows, _ = open_all(two_datasets, action_horizon=3)
    assert windows.task_names == ["lift", "push"]
    assert windows.task_index.tolist() == [0] * 20 + [1] * 14
    sampler = EpochSampler(num_windows=34, batch_size=34, seed=0, groups=windows.task_index)
    drawn = windows.task_index[sampler.next_batch()]
    assert drawn.sum() == 17


def test_one_episode_cannot_be_split_but_trains(record, tmp_path):
    root, _ = record([3])
    windows = open_windows([root], cache_dir=tmp_path / "c", action_horizon=50, progress=False)
    train, validation = windows.split_by_episode(validation_share=0.1, seed=0)
    assert (train.num_windows, validation.num_windows) == (3, 0)
    actions, valid = train.chunks(np.array([1]))
    assert valid.sum() == 2
    assert np.array_equal(actions[0, 1:], np.repeat(actions[0, 1:2], 49, axis=0))


@pytest.mark.parametrize("offsets", [(), (0, 4), (2, 2), (1, -1)])
def test_impossible_windows_are_refused(two_datasets, offsets):
    with pytest.raises(ValueError, match="oldest first"):
        open_all(two_datasets, action_horizon=3, frame_offsets=offsets)
    with pytest.raises(ValueError, match="at least one action"):
        open_all(two_datasets, action_horizon=0)


def test_indices_out_of_range_are_refused(two_datasets):
    windows, _ = open_all(two_datasets, action_horizon=3)
    for bad in (-1, 34):
        with pytest.raises(IndexError, match=r"\[0, 34\)"):
            windows.images(np.array([0, bad]))


def test_different_robots_do_not_mix(record, tmp_path):
    first, _ = record([3], name="a")
    second, _ = record([3], name="b", spec=make_spec(hz=10.0))
    with pytest.raises(SpecMismatch, match="control_hz"):
        open_windows([first, second], cache_dir=tmp_path / "c", action_horizon=3, progress=False)
    with pytest.raises(DatasetError, match="no dataset"):
        Windows([], [], action_horizon=3)


def test_cameras_of_different_sizes_cannot_be_stacked(record, tmp_path):
    plain = make_spec()
    cameras = (plain.cameras[0], CameraSpec(name="wrist", height=8, width=8))
    uneven = RobotSpec.from_json(plain.to_json() | {"cameras": [vars_of(camera) for camera in cameras]})
    root, _ = record([3], spec=uneven)
    with pytest.raises(DatasetError, match=r"several sizes .*'wrist': \(8, 8\).*data.image_size"):
        open_windows([root], cache_dir=tmp_path / "c", action_horizon=3, progress=False)
    for remedy in ({"cameras": ["wrist"]}, {"resizing": Resizing(height=12, width=12, mode="pad")}):
        open_windows([root], cache_dir=tmp_path / "c", action_horizon=3, progress=False, **remedy)


@pytest.mark.parametrize("storage", ["video", "image"])
@pytest.mark.parametrize("mode", ["pad", "stretch"])
def test_resized_windows_are_the_recorded_frames_resized(record, tmp_path, mode, storage):
    first, _ = record([3, 5], name="a", storage=storage)
    second, _ = record([4], name="b", storage=storage)
    resizing = Resizing(height=10, width=12, mode=mode)
    windows = open_windows(
        [first, second],
        cache_dir=tmp_path / "c",
        action_horizon=2,
        frame_offsets=(2, 0),
        resizing=resizing,
        progress=False,
    )
    indices = np.array([0, 4, 9, 11])
    seen, recorded = windows.images(indices), windows.recorded_images(indices)
    for name, frames in recorded.items():
        assert frames.shape == (4, 2, 16, 24, 3)
        np.testing.assert_array_equal(seen[name], resizing.apply(frames))


def vars_of(camera):
    return {"name": camera.name, "height": camera.height, "width": camera.width}


def test_a_window_costs_little(record, tmp_path):
    """At most 0.3 CPU ms for one 96 px frame of two cameras with a chunk of 50 (measured: 0.01)."""
    root, _ = record([60, 60], spec=make_spec(state=8, action=7, size=(96, 96)))
    windows = open_windows([root], cache_dir=tmp_path / "c", action_horizon=50, progress=False)
    sampler = EpochSampler(num_windows=windows.num_windows, batch_size=64, seed=0)
    windows.images(sampler.next_batch())
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        chosen = sampler.next_batch()
        windows.images(chosen), windows.chunks(chosen), windows.state(chosen)
        best = min(best, (time.process_time() - started) / 64)
    assert best < 0.3e-3, f"{best * 1e3:.3f} ms a window"


def test_windows_may_show_some_of_the_cameras_in_any_order(two_datasets):
    windows, _ = open_all(two_datasets, action_horizon=2)
    names = windows.robot_spec.camera_names
    assert len(names) > 1
    indices = np.array([0, 7, 12])
    every = windows.images(indices)
    for cameras in (names[::-1], names[1:2]):
        chosen, _ = open_all(two_datasets, action_horizon=2, cameras=cameras)
        assert chosen.robot_spec.camera_names == cameras
        assert list(chosen.images(indices)) == list(cameras)
        for name, frames in chosen.images(indices).items():
            np.testing.assert_array_equal(frames, every[name])


@pytest.mark.parametrize("cameras", [(), ("nowhere",), ("wrist", "wrist")])
def test_cameras_that_were_not_recorded_are_refused(two_datasets, cameras):
    with pytest.raises(ValueError, match="must be some of those"):
        open_all(two_datasets, action_horizon=2, cameras=cameras)


def test_windows_are_a_map_style_dataset(two_datasets):
    windows, episodes = open_all(two_datasets, action_horizon=4)
    assert len(windows) == sum(len(episode.states) for episode in episodes)
    last = len(episodes[0].states) - 1
    window = windows[last]
    np.testing.assert_array_equal(window["state"], episodes[0].states[last])
    np.testing.assert_array_equal(window["actions"], np.stack([episodes[0].actions[last]] * 4))
    assert window["valid"].tolist() == [True, False, False, False]
    assert window["images"]["wrist"].shape == (1, *windows.images(np.array([0]))["wrist"].shape[2:])
    assert window["instruction"] == windows.instruction_texts(np.array([last]))[0]
    np.testing.assert_array_equal(windows[-1]["state"], episodes[-1].states[-1])
    with pytest.raises(IndexError, match=f"no window {len(windows)}; there are {len(windows)}"):
        windows[len(windows)]
    assert len(list(windows)) == len(windows)  # iteration ends where the windows do


def test_torch_loads_batches_of_windows(two_datasets):
    from torch.utils.data import DataLoader

    windows, _ = open_all(two_datasets, action_horizon=4)
    batch = next(iter(DataLoader(windows, batch_size=5)))
    assert batch["actions"].shape == (5, 4, windows.actions.shape[1])
    assert batch["images"]["exterior"].shape[:2] == (5, 1)
    assert batch["instruction"] == [windows[i]["instruction"] for i in range(5)]
