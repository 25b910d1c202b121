"""Damaged checkpoints are refused by name or gone back from aloud; full disks and kills cost nothing."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_fixtures import train_for

import vla.training.checkpoint as writing
from policies.vla_policy import load_policy_checkpoint
from vla.disk_faults import DiskFault
from vla.files import MANIFEST_NAME, ManifestError, write_manifest
from vla.model.checkpoint import CheckpointError, list_checkpoints, resolve_checkpoint
from vla.plugins import PluginError
from vla.training.checkpoint import load_training

HERE = Path(__file__).parent
FILES = (
    "model.safetensors",
    "training.safetensors",
    "model.json",
    "processor.json",
    "state.json",
    "golden.npz",
)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, and a run of three steps that kept the checkpoints of two and three."""
    folder = tmp_path_factory.mktemp("trained")
    for steps in (2, 3):
        train_for(folder / "run", folder, steps=steps)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def seal(checkpoint: Path) -> None:
    (checkpoint / MANIFEST_NAME).unlink()
    write_manifest(checkpoint, {})


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_in_every_file(folder: Path, name: str) -> None:
    newest = list_checkpoints(folder / "run")[-1]
    flip(newest / name)
    for load in (load_policy_checkpoint, load_training):
        with pytest.raises(ManifestError, match=rf"damaged: {name} has sha256"):
            load(newest)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_aloud(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    older, newest = list_checkpoints(folder / "run")
    whole = (newest / "training.safetensors").read_bytes()
    flip(newest / name)
    assert resolve_checkpoint(folder / "run") == older
    assert f"{newest.name} is DAMAGED; going back to {older}" in caplog.text
    result = train_for(folder / "run", folder, steps=3, keep_checkpoints=1)
    told = capsys.readouterr().err
    assert f"WARNING: {newest.name} is DAMAGED; going back to {older}" in told
    assert f"resuming from {older}" in told
    assert (newest.with_name(f"damaged_{newest.name}") / name).is_file()
    assert list_checkpoints(folder / "run") == [result.checkpoint]
    assert (result.checkpoint / "training.safetensors").read_bytes() == whole, "as if nothing had happened"


def test_a_checkpoint_without_manifest_is_gone_back_from_aloud_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = list_checkpoints(folder / "run")[-1]
    (newest / MANIFEST_NAME).unlink()
    train_for(folder / "run", folder, steps=3)
    assert f"{newest.name} is DAMAGED" in capsys.readouterr().err


def test_where_all_are_damaged_nothing_is_started_anew_in_silence(folder: Path) -> None:
    for checkpoint in list_checkpoints(folder / "run"):
        flip(checkpoint / "state.json")
    with pytest.raises(ManifestError, match=r"all 2 checkpoints of .* are damaged; restore one from a copy"):
        train_for(folder / "run", folder, steps=3)
    assert len(list_checkpoints(folder / "run")) == 2


def test_what_a_killed_save_left_is_removed(folder: Path) -> None:
    leftover = folder / "run" / "checkpoints" / ".step_00000004.0123456789abcdef.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"x" * 1000)
    train_for(folder / "run", folder, steps=3)
    assert not leftover.exists()


def test_all_files_of_a_checkpoint_have_the_permissions_of_the_umask(trained: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in list_checkpoints(trained / "run")[-1].iterdir()}
    assert len(modes) == 1


def test_a_full_disk_keeps_the_checkpoint_before_and_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list_checkpoints(folder / "run")

    def full(tensors: Any, path: Path) -> None:
        raise writing.SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(
        DiskFault, match=r"checkpoints/\w+ cannot be written: No space left.*; free space"
    ) as caught:
        train_for(folder / "run", folder, steps=4)
    assert caught.value.errno == errno.ENOSPC
    assert list_checkpoints(folder / "run") == before
    assert not list((folder / "run" / "checkpoints").glob(".*"))
    monkeypatch.undo()
    assert train_for(folder / "run", folder, steps=4).step == 4


LIMITED = """
import resource, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from training_fixtures import train_for
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    train_for(folder / "run", folder, steps=4)
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_file_size_limit_is_survived_for_real(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(here=str(HERE)), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"checkpoints/\w+ cannot be written: File too large; raise the limit", done.stdout)
    assert load_training(resolve_checkpoint(folder / "run"))[1]["step"] == 3


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from training_fixtures import train_for
folder, left = Path(sys.argv[1]), [int(sys.argv[2])]
def counted(real):
    def call(*arguments, **options):
        if "checkpoints" in str(arguments[0]):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        return real(*arguments, **options)
    return call
Path.replace = counted(Path.replace)
import vla.training.checkpoint as writing
save_file = writing.save_file
writing.save_file = lambda tensors, path: counted(lambda path: save_file(tensors, path))(path)
train_for(folder / "run", folder, steps=4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(6))
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(folder: Path, moment: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(here=str(HERE)), str(folder), str(moment)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-500:]
    load_training(list_checkpoints(folder / "run")[-1])
    assert train_for(folder / "run", folder, steps=4).step == 4
    assert not list((folder / "run" / "checkpoints").glob(".*"))


class Marked:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "golden.npz", "model.json"])
def test_a_pickle_in_the_place_of_a_file_is_refused_and_never_run(
    folder: Path, tmp_path: Path, name: str
) -> None:
    marker, checkpoint = tmp_path / "marker", list_checkpoints(folder / "run")[-1]
    if name.endswith("safetensors"):
        torch.save({"weights": Marked(marker)}, checkpoint / name)
    else:
        (checkpoint / name).write_bytes(pickle.dumps(Marked(marker)))
    seal(checkpoint)
    load = load_training if name == "training.safetensors" else load_policy_checkpoint
    with pytest.raises(ValueError, match=name):
        load(checkpoint)
    assert not marker.exists()


def edit_model(change: Any) -> Any:
    def edit(checkpoint: Path) -> None:
        data = json.loads((checkpoint / "model.json").read_text())
        change(data)
        (checkpoint / "model.json").write_text(json.dumps(data))

    return edit


def edit_weights(change: Any) -> Any:
    def edit(checkpoint: Path) -> None:
        tensors = {name: change(value) for name, value in load_file(checkpoint / "model.safetensors").items()}
        save_file(tensors, checkpoint / "model.safetensors")

    return edit


def truncate(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


CRAFTED = {
    "width": edit_model(lambda data: data["backbone"].update(width=16384)),
    "depth": edit_model(lambda data: data["backbone"].update(depth=10**9)),
    "depth as text": edit_model(lambda data: data["backbone"].update(depth="2")),
    "no heads": edit_model(lambda data: data["backbone"].update(num_heads=0)),
    "no backbone": edit_model(lambda data: data.update(backbone=None)),
    "head is a list": edit_model(lambda data: data.update(head=[])),
    "unknown kind": edit_model(lambda data: data["head"].update(kind="os.system")),
    "specs": edit_model(lambda data: data["specs"].update(inputs={"images": ["uint8", 3, 0]})),
    "a billion words": edit_model(lambda data: data["specs"]["inputs"]["text_ids"].__setitem__(2, 10**9)),
    "weights of int8": edit_weights(lambda value: value.to(torch.int8)),
    "weights of bool": edit_weights(lambda value: value > 0),
    "cut off": truncate,
    "a list": lambda checkpoint: (checkpoint / "processor.json").write_text("[]"),
    "deep": lambda checkpoint: (checkpoint / "model.json").write_text("[" * 100_000),
    "state": lambda checkpoint: (checkpoint / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_checkpoints_are_refused_in_words_and_take_no_memory(folder: Path, name: str) -> None:
    checkpoint = list_checkpoints(folder / "run")[-1]
    CRAFTED[name](checkpoint)
    seal(checkpoint)

    def load() -> None:
        load_policy_checkpoint(checkpoint)
        load_training(checkpoint)

    with pytest.raises(ValueError, match=r"step_00000003|model\.json|processor\.json|state\.json") as caught:
        load()
    assert (
        isinstance(caught.value, CheckpointError | ManifestError | PluginError)
        or "damaged" in str(caught.value)
        or name
        in (
            "a list",
            "state",
        )
    )
