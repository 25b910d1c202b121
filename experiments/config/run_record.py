"""The record of a run, `.hydra/` in its directory, and the directory's place.

Hydra writes the record before a program has looked at what is there, so that a command that is refused
replaces the record of the one that made the results. Here the first command of a directory writes it; a later
one replaces it once it has succeeded, or has called `write_record` as it begins to change what is there; and
one that is refused before it has made anything takes it back. A directory belongs to one program.
"""

import contextlib
import functools
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from experiments.config.found import OUTPUTS
from vla.files import atomic_write_text
from vla.registry import absolute_path

RECORD, OVERRIDES, OF_HYDRA = ".hydra", "overrides.yaml", "hydra.yaml"  # names as Hydra gives them


class FolderOfAnother(BaseException):
    """A directory holds a run of another program; no `Exception`, of which Hydra makes a mere warning."""


class JobFailed(BaseException):
    """Carries the error of a job out of Hydra, which would put a line of its own before the message.

    Attributes:
        error: what the job raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@functools.cache
def run_name() -> str:
    """Return a name for a new run directory: the time and the number of the process that was started.

    Of processes that `torchrun` started, it is the number of that one.
    """
    number = os.getppid() if "RANK" in os.environ else os.getpid()
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{number}"


def runs_below(path: Path) -> list[Path]:
    """Return the runs right below a directory, as Hydra numbers those of a sweep, then others by name."""
    found = [record.parent for record in path.glob(f"*/{RECORD}")]
    numbered = [run for run in found if run.name.isdigit()]
    others = [run for run in found if not run.name.isdigit()]
    return sorted(numbered, key=lambda run: int(run.name)) + sorted(others)


def register_resolvers() -> None:
    """Make `${run_name:}` and `${absolute_path:<path>}` known to configurations."""
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("absolute_path", absolute_path, replace=True)


class RunRecord(Callback):
    """Keeps the record of each job; Hydra calls it, see conf/run_dir.yaml."""

    def __init__(self) -> None:
        self._is_ours = False  # whether this job wrote the record that is there

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Write the record, unless another command has; one process of several does it for all.

        Raises:
            FolderOfAnother: the directory holds a run of another program.
        """
        if os.environ.get("RANK", "0") != "0":
            return
        folder = _folder()
        try:
            folder.mkdir()
        except FileExistsError:
            self._is_ours = False
            _require_own_program(folder)
        else:
            self._is_ours = True
            _write(folder, config, config.hydra)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Write the record of a job that has succeeded; remove that of a command that has made nothing.

        In a sweep a job that failed keeps its record, and a line says so at once, as Hydra reports the first
        one alone, when all are done.

        Raises:
            JobFailed: the job of a program that runs once has failed.
        """
        if os.environ.get("RANK", "0") != "0":
            return
        folder = _folder()
        if job_return.status == JobStatus.COMPLETED:
            if not self._is_ours:
                folder.mkdir(exist_ok=True)
                _write(folder, config, config.hydra)
        elif HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"job {HydraConfig.get().job.num} of the sweep failed: {job_return._return_value}")
        else:
            if self._is_ours and os.listdir(folder.parent) == [RECORD]:  # noqa: PTH208
                _take_back(folder)
            raise JobFailed(job_return._return_value)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Remove the record of the whole sweep, which Hydra writes before a job has been accepted."""
        (Path(config.hydra.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)


def _take_back(folder: Path) -> None:
    """Remove a record, the directory of its run, and what this leaves empty of `outputs/`."""
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    outputs = OUTPUTS.absolute()
    above = [one for one in folder.parents[1:] if one.is_relative_to(outputs)]
    with contextlib.suppress(OSError):  # of another's: no right to remove it; or not empty
        for path in (folder.parent, *above):
            path.rmdir()


def write_record(config: DictConfig) -> None:
    """Make the record that of this command, which has compared its settings with what is there.

    For programs that change a directory long before they succeed, or that end with a code of their own.

    Args:
        config: of the program, as its main was given it.
    """
    if os.environ.get("RANK", "0") == "0":
        _folder().mkdir(exist_ok=True)
        _write(_folder(), config, HydraConfig.get())


def given_overrides() -> list[str]:
    """Return what the command line of this program set; nothing where no command line started it."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir) / RECORD


def _require_own_program(folder: Path) -> None:
    """Raise `FolderOfAnother` if the record is of another program; a torn one is of none."""
    path = folder / OF_HYDRA
    if not path.exists():
        return
    stored = OmegaConf.load(path)
    earlier, mine = OmegaConf.select(stored, "hydra.job.name"), HydraConfig.get().job.name
    if earlier != mine:
        raise FolderOfAnother(
            f"out_dir={folder.parent} holds a run of {earlier}, whose settings are in {folder}; {mine} would "
            "mix its own with them: give another out_dir"
        )


def _write(folder: Path, config: DictConfig, hydra: Any) -> None:
    """Write what Hydra writes: the program's configuration, Hydra's own, and what the command line set."""
    job = config.copy()
    if "hydra" in job:
        with read_write(job), open_dict(job):
            del job["hydra"]
    atomic_write_text(folder / "config.yaml", OmegaConf.to_yaml(job))
    atomic_write_text(folder / OF_HYDRA, OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})))
    atomic_write_text(folder / OVERRIDES, OmegaConf.to_yaml(hydra.overrides.task))
