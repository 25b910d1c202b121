"""What is saved stays saved: kill -9 at every durable step, a full disk, a second writer."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import make_episodes, make_spec, write_episodes

import vla.files
from vla.data import consolidate as consolidate_module
from vla.data.layout import DatasetError
from vla.data.reader import Dataset
from vla.data.staging import read_staged, staged_path, write_staged
from vla.data.writer import DatasetWriter, finish_recording
from vla.files import DirectoryInUse

HERE = Path(__file__).parent
LENGTHS = [4, 6, 3]

# Runs in a process of its own and dies by SIGKILL before the n-th rename, when a file would become real.
RECORDER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from data_fixtures import make_episodes, make_spec, write_episodes
from vla.data.writer import DatasetWriter

renames_left = int(sys.argv[2])
real = Path.replace
def replace(self, target):
    global renames_left
    renames_left -= 1
    if renames_left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = replace
spec = make_spec()
with DatasetWriter(sys.argv[1], robot_spec=spec, storage={storage!r}) as writer:
    done = writer.num_episodes
    write_episodes(writer, make_episodes(spec, {lengths})[done:], first=done)
"""


# Records noise, which is large as PNG, until the kernel refuses the bytes.
LIMITED = """
import resource, sys
sys.path.insert(0, {here!r})
from data_fixtures import *
rng = np.random.default_rng(0)
writer = DatasetWriter(sys.argv[1], robot_spec=make_spec(size=(64, 64)), storage="image")
def add(count):
    for _ in range(count):
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        images = {{"exterior": noise, "wrist": noise}}
        writer.add_frame(images, np.zeros(3, np.float32), np.zeros(2, np.float32))
add(2)
writer.save_episode("push")
add(30)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    writer.save_episode("push")
except OSError as error:
    print(error)
writer.discard_episode()
writer.close()
"""


def run_recorder(root: Path, renames: int, storage: str) -> int:
    code = RECORDER.format(here=str(HERE), storage=storage, lengths=LENGTHS)
    return subprocess.run([sys.executable, "-c", code, str(root), str(renames)], check=False).returncode


def check_complete(root: Path) -> None:
    dataset, episodes = Dataset(root), make_episodes(make_spec(), LENGTHS)
    np.testing.assert_array_equal(dataset.states, np.concatenate([e.states for e in episodes]))
    assert dataset.episode_lengths.tolist() == LENGTHS
    assert dataset.episode_extra["seed"] == [100, 101, 102]
    assert len(dataset.frames("wrist", 0, sum(LENGTHS))) == sum(LENGTHS)
    hidden = [path for path in root.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    assert not hidden, "temporary files were left behind"


@pytest.mark.parametrize("storage", ["video", "image"])
def test_a_recorder_killed_at_any_rename_resumes_without_loss(tmp_path, storage):
    # Renames: origin, info, three episodes, then data, episodes, (two videos,) stats, tasks, origin, info.
    num_renames = {"image": 11, "video": 13}[storage]
    for renames in (0, 1, 3, *range(5, num_renames)):
        root = tmp_path / f"killed-{renames}"
        assert run_recorder(root, renames, storage) == -signal.SIGKILL
        saved = min(max(renames - 2, 0), 3)
        with DatasetWriter(root, robot_spec=make_spec(), storage=storage) as writer:
            assert writer.num_episodes == saved, f"after {renames} renames"
            write_episodes(writer, make_episodes(make_spec(), LENGTHS)[saved:], first=saved)
        check_complete(root)
    assert run_recorder(tmp_path / "whole", num_renames, storage) == 0


def test_a_killed_recording_can_be_finished_without_resuming(tmp_path):
    root = tmp_path / "d"
    assert run_recorder(root, 4, "video") == -signal.SIGKILL
    with pytest.raises(DatasetError, match=r"2 finished episodes are not laid out.*finish_recording"):
        Dataset(root)
    finish_recording(root)
    assert Dataset(root).episode_lengths.tolist() == LENGTHS[:2]
    finish_recording(root)


def test_a_second_writer_is_refused_and_told_the_process(tmp_path, spec):
    with DatasetWriter(tmp_path / "d", robot_spec=spec) as writer:
        write_episodes(writer, make_episodes(spec, [3]))
        with pytest.raises(DirectoryInUse, match=f"process {os.getpid()}"):
            DatasetWriter(tmp_path / "d", robot_spec=spec)
        with pytest.raises(DirectoryInUse):
            finish_recording(tmp_path / "d")
    assert Dataset(tmp_path / "d").num_episodes == 1


def test_a_writer_in_another_live_process_is_refused_until_it_dies(tmp_path, spec):
    code = (
        f"import sys, time; sys.path.insert(0, {str(HERE)!r}); from data_fixtures import *;"
        "w = DatasetWriter(sys.argv[1], robot_spec=make_spec()); print('open', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "d")], stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(DirectoryInUse, match=f"process {other.pid}"):
            DatasetWriter(tmp_path / "d", robot_spec=spec)
        other.kill()
    with DatasetWriter(tmp_path / "d", robot_spec=spec) as writer:
        write_episodes(writer, make_episodes(spec, [3]))


def full_disk(*_args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("storage", ["video", "image"])
def test_a_full_disk_while_saving_loses_nothing(tmp_path, spec, storage, monkeypatch):
    episodes = make_episodes(spec, LENGTHS)
    with DatasetWriter(tmp_path / "d", robot_spec=spec, storage=storage) as writer:
        write_episodes(writer, episodes[:1])
        with monkeypatch.context() as patch:
            patch.setattr(vla.files.os, "fsync", full_disk)
            with pytest.raises(OSError, match="disk is full; free space and call save_episode") as caught:
                write_episodes(writer, episodes[1:2], first=1)
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(DatasetError, match="save or discard it"):
                writer.add_frame({}, episodes[1].states[0], episodes[1].actions[0])
        writer.save_episode(episodes[1].task, episodes[1].extra)
        write_episodes(writer, episodes[2:], first=2)
    check_complete(tmp_path / "d")


@pytest.mark.parametrize("step", ["_publish_tree", "atomic_write_json", "atomic_write_bytes"])
def test_a_full_disk_while_closing_loses_nothing(tmp_path, spec, step, monkeypatch):
    writer = DatasetWriter(tmp_path / "d", robot_spec=spec)
    write_episodes(writer, make_episodes(spec, LENGTHS))
    with monkeypatch.context() as patch:
        patch.setattr(consolidate_module, step, full_disk)
        with pytest.raises(OSError, match="No space"):
            writer.close()
    finish_recording(tmp_path / "d")
    check_complete(tmp_path / "d")


def test_a_file_size_limit_is_survived_for_real(tmp_path, spec):
    """The kernel refuses the bytes, as a full disk does; PNG noise makes the episode large."""
    code = LIMITED.format(here=str(HERE))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "d")], capture_output=True, text=True, check=True
    )
    assert "could not be saved (File too large)" in done.stdout
    assert Dataset(tmp_path / "d").episode_lengths.tolist() == [2]


def test_a_damaged_waiting_episode_is_named_and_set_aside(tmp_path, spec, caplog):
    assert run_recorder(tmp_path / "d", 5, "image") == -signal.SIGKILL
    victim = tmp_path / "d/.recording/episode-000001.parquet"
    damaged = victim.read_bytes()[:-100]
    victim.write_bytes(damaged)
    with DatasetWriter(tmp_path / "d", robot_spec=spec, storage="image") as writer:
        assert [extra["seed"] for extra in writer.episode_extras] == [100, 102]
    assert "episode 1 of" in caplog.text
    assert "episode-000001.parquet is damaged" in caplog.text
    assert (tmp_path / "d/.recording/rejected/episode-000001.parquet").read_bytes() == damaged
    reason = (tmp_path / "d/.recording/rejected/episode-000001.txt").read_text()
    assert "is damaged" in reason
    assert Dataset(tmp_path / "d").episode_extra["seed"] == [100, 102]


def test_a_lost_waiting_episode_is_missed(tmp_path):
    assert run_recorder(tmp_path / "d", 5, "image") == -signal.SIGKILL
    (tmp_path / "d/.recording/episode-000001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"holds the episodes \[0, 2\]"):
        finish_recording(tmp_path / "d")
    (tmp_path / "d/.recording/episode-000002.parquet").unlink()
    finish_recording(tmp_path / "d")
    assert Dataset(tmp_path / "d").num_episodes == 1


def spoil(root, number, spec, **changes):
    path = staged_path(root, number)
    write_staged(path, dataclasses.replace(read_staged(path, spec), **changes))


@pytest.mark.parametrize("storage", ["video", "image"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_episode_that_cannot_be_laid_out_never_locks_the_others(tmp_path, spec, caplog, storage, number):
    changes = [
        {"extra": {"seed": 2**70, "task_name": "lift", "success": True}},
        {"extra": {"seed": 3}},
        {"task": "lift \ud800"},
        {"media": {"exterior": [b"no video"], "wrist": [b"no video"]}},
    ]
    for i, change in enumerate(changes):
        root = tmp_path / f"{i}"
        assert run_recorder(root, 5, storage) == -signal.SIGKILL
        if number == 0 and change.get("extra") == {"seed": 3}:
            continue  # the first decides which columns there are
        spoil(root, number, spec, **change)
        finish_recording(root)
        kept = [n for n in range(3) if n != number]
        dataset, episodes = Dataset(root), make_episodes(spec, LENGTHS)
        np.testing.assert_array_equal(dataset.states, np.concatenate([episodes[n].states for n in kept]))
        assert dataset.episode_extra["seed"] == [100 + n for n in kept]
        assert len(dataset.frames("wrist", 0, dataset.num_frames)) == dataset.num_frames
        assert len(list((root / ".recording/rejected").glob("*.parquet"))) == 1
        with DatasetWriter(root, robot_spec=spec, storage=storage) as writer:
            assert writer.num_episodes == 2
            write_episodes(writer, make_episodes(spec, [2], first=7), first=7)
        assert Dataset(root).episode_extra["seed"] == [*(100 + n for n in kept), 107]


def test_setting_aside_survives_a_crash(tmp_path, spec, monkeypatch):
    root = tmp_path / "d"
    assert run_recorder(root, 5, "video") == -signal.SIGKILL
    spoil(root, 0, spec, task="lift \ud800")
    real, calls = Path.rename, []

    def rename(self, target):
        calls.append(target)
        if len(calls) == 3:  # the bad one is away and the second has moved up, the third not yet
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            finish_recording(root)
    finish_recording(root)
    assert Dataset(root).episode_extra["seed"] == [101, 102]


def test_a_recorder_killed_at_a_random_moment_keeps_what_it_reported(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from data_fixtures import *\n"
        "spec = make_spec(); w = DatasetWriter(sys.argv[1], robot_spec=spec)\n"
        "for i in range(10_000):\n"
        "    write_episodes(w, make_episodes(spec, [5], first=i), first=i); print(i + 1, flush=True)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "d")], stdout=subprocess.PIPE)
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        time.sleep(0.2)
        other.kill()
        reported = int((other.stdout.read().split() or [b"1"])[-1])
    with DatasetWriter(tmp_path / "d", robot_spec=make_spec()) as writer:
        assert reported <= writer.num_episodes <= reported + 1
    assert Dataset(tmp_path / "d").num_frames == 5 * writer.num_episodes
