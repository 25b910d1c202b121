import errno
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from vla import disk_faults
from vla.disk_faults import DiskFault, explain_disk_fault
from vla.files import (
    MANIFEST_NAME,
    DamagedFile,
    DirectoryInUse,
    DirectoryLock,
    JsonLinesAppender,
    LocksRefused,
    ManifestError,
    atomic_write_bytes,
    atomic_write_json,
    publish_directory,
    read_json,
    read_json_lines,
    read_manifest,
    remove_leftovers,
    sha256_file,
    staged_file,
    staging_directory,
    verify_manifest,
    write_json_lines,
    write_manifest,
)


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def directory(tmp_path):
    root = tmp_path / "made"
    (root / "sub").mkdir(parents=True)
    (root / "a.bin").write_bytes(bytes(range(256)))
    (root / "sub" / "b.txt").write_text("hello")
    write_manifest(root, {"by": "test"})
    return root


def test_an_untouched_directory_verifies(directory):
    manifest = verify_manifest(directory)
    assert set(manifest["files"]) == {"a.bin", "sub/b.txt"}
    assert manifest["files"]["a.bin"]["bytes"] == 256
    assert manifest["provenance"] == {"by": "test"}


def test_every_damaged_missing_and_extra_file_is_named(directory):
    data = bytearray((directory / "a.bin").read_bytes())
    data[7] ^= 1
    (directory / "a.bin").write_bytes(data)
    (directory / "sub" / "b.txt").unlink()
    (directory / "c.txt").write_text("new")
    with pytest.raises(ManifestError) as caught:
        verify_manifest(directory)
    text = str(caught.value)
    assert "damaged: a.bin has sha256" in text
    assert "missing: sub/b.txt" in text
    assert "extra: c.txt" in text


def test_a_truncated_file_is_named_with_both_sizes(directory):
    (directory / "a.bin").write_bytes(b"short")
    with pytest.raises(ManifestError, match=r"a\.bin has 5 bytes instead of 256"):
        verify_manifest(directory)


def test_a_symbolic_link_is_refused(directory, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes((directory / "a.bin").read_bytes())
    (directory / "a.bin").unlink()
    (directory / "a.bin").symlink_to(outside)
    with pytest.raises(ManifestError, match=r"symbolic link: a\.bin"):
        verify_manifest(directory)


@pytest.mark.parametrize("name", ["../a.bin", "/etc/passwd", "sub/../a.bin", "sub\\b.txt", "", "./a.bin"])
def test_names_that_leave_the_directory_are_refused(directory, name):
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    manifest["files"][name] = manifest["files"]["a.bin"]
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="no plain relative path"):
        verify_manifest(directory)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no schema_version"),
        (
            '{"schema_version": 2, "files": {}, "provenance": {}}',
            "schema version 2; this program reads version 1",
        ),
        ('{"schema_version": 1, "files": {}}', "should have"),
        ('{"schema_version": 1, "files": [], "provenance": {}}', "no table"),
        ('{"schema_version": 1, "files": {"a": {}}, "provenance": {}}', "should have the keys"),
    ],
)
def test_a_manifest_of_another_form_is_refused(directory, text, message):
    (directory / MANIFEST_NAME).write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(directory)


def test_a_missing_manifest_lists_what_is_there(directory):
    (directory / MANIFEST_NAME).unlink()
    with pytest.raises(ManifestError, match=r"a\.bin"):
        verify_manifest(directory)
    with pytest.raises(ManifestError, match="no directory"):
        verify_manifest(directory / "nowhere")


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    atomic_write_json(path, {"step": 1})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_bytes(path, b"new")
    assert json.loads(path.read_text()) == {"step": 1}
    assert names_in(tmp_path) == ["state.json"]


def test_a_staged_file_appears_when_its_block_ends_and_not_after_an_error(tmp_path):
    path = tmp_path / "picture.jpg"
    with staged_file(path) as staging:
        staging.write_bytes(b"whole")
        assert not path.exists()

    def write_half_and_fail():
        with staged_file(path) as staging:
            staging.write_bytes(b"ha")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half_and_fail()
    assert path.read_bytes() == b"whole"
    assert names_in(tmp_path) == ["picture.jpg"]


@pytest.mark.parametrize("is_durable", [False, True])
def test_a_log_goes_on_behind_its_last_whole_line(tmp_path, is_durable):
    path = tmp_path / "log.jsonl"
    write_json_lines(path, [{"k": 0}])
    with JsonLinesAppender(path, is_durable=is_durable) as log:
        log.append({"k": 1})
        assert read_json_lines(path, dict) == [{"k": 0}, {"k": 1}]
    with path.open("ab") as file:
        file.write(b'{"k": 2')
    assert read_json_lines(path, dict) == [{"k": 0}, {"k": 1}]
    with JsonLinesAppender(path, is_durable=is_durable) as log:
        with pytest.raises(ValueError, match="not JSON compliant"):
            log.append({"k": float("inf")})
        log.append({"k": 3})
    log.close()
    assert read_json_lines(path, lambda row: row["k"]) == [0, 1, 3]


def test_a_log_that_is_new_or_torn_in_its_first_line_is_empty(tmp_path):
    path = tmp_path / "log.jsonl"
    with pytest.raises(FileNotFoundError):
        read_json_lines(path, dict)
    path.write_bytes(b'{"k"')
    assert read_json_lines(path, dict) == []
    JsonLinesAppender(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"{", b"", b"[1]", b'{"k": "no number"}', b"\xff"])
def test_a_damaged_line_is_named_and_never_skipped(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"k": 0}\n' + line + b'\n{"k": 2}\n')
    with pytest.raises(DamagedFile, match=r"log\.jsonl, line 2: "):
        read_json_lines(path, lambda row: int(row["k"]))


def test_a_locked_directory_names_its_holder_until_it_is_released(tmp_path):
    with DirectoryLock(tmp_path), pytest.raises(DirectoryInUse, match=f"process {os.getpid()}"):
        DirectoryLock(tmp_path)
    with DirectoryLock(tmp_path):
        pass
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_that_grants_no_locks_is_named_with_the_way_out(tmp_path, monkeypatch, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        LocksRefused, match=rf"{tmp_path}/\.lock .*network disks.*another disk.*local_lock=flock"
    ):
        DirectoryLock(tmp_path)
    assert names_in(tmp_path) == []


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert names_in(tmp_path) == []


def test_publishing_renames_and_cleans_up(tmp_path):
    final = tmp_path / "deep" / "final"
    with staging_directory(final) as staging:
        (staging / "x").write_text("1")
        publish_directory(staging, final)
    assert (final / "x").read_text() == "1"
    assert names_in(final.parent) == ["final"]


def test_publishing_never_replaces_unasked(tmp_path):
    final = tmp_path / "final"
    for text, replace in (("1", False), ("2", True)):
        with staging_directory(final) as staging:
            (staging / "x").write_text(text)
            publish_directory(staging, final, replace=replace)
    with pytest.raises(FileExistsError, match="exists"), staging_directory(final) as staging:
        publish_directory(staging, final)
    assert (final / "x").read_text() == "2"
    assert names_in(tmp_path) == ["final"]


def test_an_exception_leaves_no_staging_directory(tmp_path):
    def fill_and_fail():
        with staging_directory(tmp_path / "final") as staging:
            (staging / "x").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill_and_fail()
    assert names_in(tmp_path) == []


def test_provenance_is_under_a_hash_too(directory):
    path = directory / MANIFEST_NAME
    path.write_text(path.read_text().replace('"by": "test"', '"by": "tesu"'))
    with pytest.raises(ManifestError, match="damaged: its content has another hash"):
        read_manifest(directory)


def test_a_manifest_of_before_has_no_hash_of_itself_and_is_read(directory):
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    del manifest["sha256"]
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert verify_manifest(directory)["provenance"] == {"by": "test"}


def test_what_file_managers_and_downloads_leave_is_passed_over(directory):
    (directory / ".DS_Store").write_bytes(b"x")
    (directory / "README.md").write_text("a policy")
    (directory / ".cache" / "huggingface").mkdir(parents=True)
    (directory / ".cache" / "huggingface" / "a.metadata").write_text("x")
    verify_manifest(directory)


def test_links_of_a_download_cache_are_refused_with_the_command_that_mends_it(directory, tmp_path):
    blobs, linked = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(directory, blobs)
    for path in blobs.rglob("*"):
        if path.is_file():
            place = linked / path.relative_to(blobs)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    with pytest.raises(ManifestError, match="symbolic link") as caught:
        verify_manifest(linked)
    command = str(caught.value).split("`")[1]
    subprocess.run(shlex.split(command), check=True)
    verify_manifest(Path(shlex.split(command)[-1]))


def test_extra_files_alone_are_refused_with_the_command_that_mends_it(directory):
    (directory / "my notes.txt").write_text("x")
    with pytest.raises(ManifestError, match=r"extra: my notes\.txt") as caught:
        verify_manifest(directory)
    subprocess.run(shlex.split(str(caught.value).split("here: ")[1].split(":\n")[0]), check=True)
    verify_manifest(directory)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_pipes_and_devices_are_refused_before_they_are_read(directory, make):
    path = directory / "a.bin"
    path.unlink()
    make(path)
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    manifest["files"]["a.bin"]["bytes"] = 0
    del manifest["sha256"]
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match=r"(no regular file|symbolic link): a\.bin"):
        verify_manifest(directory)
    for read in (read_json, sha256_file):
        with pytest.raises(DamagedFile, match="no regular file"):
            read(path)


def test_json_that_is_too_deep_or_too_large_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * 100_000)
    with pytest.raises(DamagedFile, match="no JSON"):
        read_json(path)
    with pytest.raises(DamagedFile, match="has 100000 bytes; such a file has at most 10"):
        read_json(path, most_bytes=10)


def test_what_killed_processes_left_is_removed_and_what_they_replaced_gets_its_name_back(tmp_path):
    for name in (".a.0123456789abcdef.tmp", ".b.0123456789abcdef.old", ".c.0123456789abcdef.old", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / ".mine.tmp").mkdir()
    (tmp_path / ".b.0123456789abcdef.old" / "x").write_text("1")
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == [".mine.tmp", "b", "c"]
    assert (tmp_path / "b" / "x").read_text() == "1"
    remove_leftovers(tmp_path / "nowhere")


FAULTS = {
    errno.ENOSPC: "free space, or write elsewhere: out_dir",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "ask the owner of the place",
    errno.EIO: "the disk or the network to it fails",
}


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("way", ["file", "directory", "log"])
def test_what_the_disk_refuses_is_one_line_with_path_and_advice(tmp_path, monkeypatch, number, way):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    def write():
        if way == "file":
            atomic_write_bytes(tmp_path / "made", b"x")
        elif way == "directory":
            with staging_directory(tmp_path / "made") as staging:
                (staging / "x").write_text("1")
                publish_directory(staging, tmp_path / "made")
        else:
            with JsonLinesAppender(tmp_path / "made", is_durable=True) as log:
                log.append({"k": 1})

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFault) as caught:
        write()
    message = str(caught.value)
    assert caught.value.errno == number
    assert message.startswith(f"{tmp_path / 'made'} cannot be written: {os.strerror(number)}; ")
    assert FAULTS[number] in message
    assert "\n" not in message


def test_a_folder_that_is_gone_and_an_error_of_another_file_are_told_apart(tmp_path):
    with pytest.raises(DiskFault, match=r"nowhere/x cannot be written: No such file.*is gone"):
        atomic_write_bytes(tmp_path / "nowhere" / "x", b"")

    def read_another():
        with staged_file(tmp_path / "x"):
            (tmp_path / "absent").read_bytes()

    with pytest.raises(FileNotFoundError, match="absent"):
        read_another()


def test_a_disk_that_does_not_answer_is_reported_while_it_is_waited_for(tmp_path, monkeypatch, caplog):
    real = os.fsync

    def slow(descriptor):
        time.sleep(0.3)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(disk_faults, "_STALLED_S", 0.05)
    atomic_write_bytes(tmp_path / "x", b"x")
    assert f"{tmp_path / 'x'}: the disk has not answered for 0.05 s; waiting for it" in caplog.text


def test_an_error_of_the_system_is_explained_as_far_as_it_tells():
    assert explain_disk_fault(OSError(28, "No space left on device", "/x")).startswith(
        "/x: No space left on device; free space"
    )
    assert explain_disk_fault(OSError("something")) == "something"
