"""Runs a Hydra main as a well-behaved program: short errors, nearest key, signals, exit codes.

Exit codes: 0 done, 1 the run failed, 2 the configuration is wrong, 130 Ctrl-C, 143 SIGTERM. control.py
adds its own codes. `HYDRA_FULL_ERROR=1` shows whole tracebacks.
"""

import difflib
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException, ValidationError

import conf
from experiments.config.declared import all_keys, allowed_in, help_table, keys_of, whole_keys
from experiments.config.extensions import CONF, extensions_in, load_extensions
from experiments.config.schema import ROOTS
from vla.registry import SettingError, did_you_mean, shown

OUR_PACKAGES = ("vla", "envs", "policies", "experiments")
EXIT_FAILED, EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143
_UNKNOWN_KEY = re.compile(r"Key '([^']+)' (?:not in '(\w+)'|is not in struct)")
_UNKNOWN_SETTING = re.compile(r"unknown key '((?:[^']*\.)?([^'.]+))'")
_FULL_ERROR, _SET_HERE = "HYDRA_FULL_ERROR", "VLA_SET_HYDRA_FULL_ERROR"
_NO_VALUE = re.compile(r"(?:is not Optional|missing mandatory value: \S+)\s+full_key: (\S+)", re.IGNORECASE)
RENAMED = {
    "num_steps": "num_samples (a step trains on batch_size of them)",
    "time_budget_minutes": "num_samples, or max_minutes to end a run before them",
    "twin_share": "env.same_color_share, and collect.recording_same_color_share while recording",
    "colour": "color",
    "conditions": "instruction_modes ([original, swapped, blank]; original was called right)",
    "condition": "instruction_mode (original, which was called right, swapped or blank)",
}
_GROUP_TYPO = re.compile(r"Could not override '([^']+)'")
_NO_SUCH_KEY = re.compile(r"Could not delete from config\. '([^']+)' does not exist")
_FULL_KEY = re.compile(r"full_key: (\S+)")
_IN_FILE = re.compile(r"In '([^']+/[^']+)'")
_NO_OPTION = re.compile(
    r"Could not find '([^']+)'\s+Available options in '[^']+':\s+(.*?)\s*Config search", re.S
)
_MOST_SHOWN = 30  # names in the hint for an unknown key
_LESS_MEMORY = (
    "; there is not enough memory: lower a size, such as trainer.batch_size, model.backbone.width, an image "
    "size or a number of workers"
)
_NO_NAME = "Config group override must be a string or a list"  # begins Hydra's ValueError


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; handled wherever Ctrl-C is."""


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def run(main: Callable[[], object]) -> NoReturn:
    """Call a Hydra main and end the process with the right exit code.

    Errors that are for the user become one message and the place that raised them; anything else is a bug
    of ours and keeps its traceback.
    """
    wants_traceback = os.environ.get(_FULL_ERROR) == "1"
    if not wants_traceback:
        os.environ[_FULL_ERROR] = os.environ[_SET_HERE] = "1"  # Hydra raises instead of printing and exiting
    signal.signal(signal.SIGTERM, _raise_terminated)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        require_our_configuration(conf.__path__)
        load_extensions(extensions_in(sys.argv[1:]))
        _call(main)
    except SettingError as error:
        if wants_traceback:
            traceback.print_exc()
        _end(EXIT_CONFIG, explain_setting_error(error))
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            traceback.print_exc()
        _end(EXIT_CONFIG, explain_config_error(error, program=_this_program()))
    except BrokenPipeError:  # the reader of our output is gone: `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if str(error).startswith(_NO_NAME):  # raised by Hydra
            _end(EXIT_CONFIG, explain_group_error(sys.argv[1:]))
        if wants_traceback or not (is_for_the_user(error) or _is_out_of_memory(error)):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"({type(error).__name__} at {frame.filename}:{frame.lineno}; HYDRA_FULL_ERROR=1 shows more)"
        hint = _LESS_MEMORY if _is_out_of_memory(error) else ""
        _end(EXIT_FAILED, f"error: {error}{hint}\n{place}")
    except Terminated:
        _end(EXIT_TERMINATED, "terminated; the same command with the same output directory continues")
    except KeyboardInterrupt:
        _end(EXIT_INTERRUPTED, "interrupted; the same command with the same output directory continues")
    sys.exit(0)


def _this_program() -> type | None:
    """Return the declaration of the program that runs; None if that is none of ours."""
    name = Path(sys.argv[0]).stem
    return ROOTS.get(name) if name in ROOTS.names() else None


def require_our_configuration(found: Iterable[str]) -> None:
    """Check where `conf` comes from: `python -m` looks into the working directory first.

    Args:
        found: folders that Python takes for the package `conf`.

    Raises:
        SettingError: a folder of that name hides ours.
    """
    folders = [Path(folder).absolute() for folder in found]
    if CONF.absolute() not in folders:
        raise SettingError(
            f"the folder {', '.join(map(str, folders))} hides the configuration of this program, {CONF}; "
            "start it from another folder, or rename that one"
        )


def _call(main: Callable[[], object]) -> None:
    """Call a Hydra main; after its `--help`, print the table of settings."""
    try:
        main()
    except SystemExit as end:
        if end.code in (0, None) and {"--help", "-h"} & set(sys.argv[1:]):
            print(f"== Settings ==\n{help_table(ROOTS.get(Path(sys.argv[0]).stem))}")
        raise


def child_environment() -> dict[str, str]:
    """Return the environment for a program that this one starts: that of the user, without what `run` set."""
    environment = dict(os.environ)
    if environment.pop(_SET_HERE, None) is not None:
        del environment[_FULL_ERROR]
    return environment


def typed_command(program: str) -> str:
    """Return what was typed to start a program, as it was."""
    return shlex.join(["python", "-m", f"experiments.{program}", *sys.argv[1:]])


def portable_command(program: str) -> str:
    """Return what was typed to start a program, without paths of this machine: for results that are kept.

    An absolute path outside of the working directory becomes `.../` and its last part.
    """
    return shlex.join(["python", "-m", f"experiments.{program}", *map(_without_place, sys.argv[1:])])


def _without_place(argument: str) -> str:
    key, equals, value = argument.rpartition("=")
    return f"{key}{equals}{portable_path(value)}"


def portable_path(path: str) -> str:
    """Return a path as it may stand in a result: relative, or `.../` and its last part.

    >>> portable_path("outputs/bundle"), portable_path("/somewhere/else/bundle")
    ('outputs/bundle', '.../bundle')
    """
    if not Path(path).is_absolute():
        return path
    if Path(path).is_relative_to(Path.cwd()):
        return str(Path(path).relative_to(Path.cwd()))
    return f".../{Path(path).name}"


def is_for_the_user(error: BaseException) -> bool:
    """Whether the message alone helps: wrong values (`VLAError`), missing files, failures that we define."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.split(".")[0] in OUR_PACKAGES


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or torch got no memory for something."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(one in str(error) for one in words)


def _end(code: int, message: str) -> NoReturn:
    sys.stdout.flush()
    print(message, file=sys.stderr)
    sys.exit(code)


def explain_setting_error(error: SettingError) -> str:
    """Return the message of a wrong setting; of a key that was renamed, its current name instead."""
    unknown = _UNKNOWN_SETTING.search(str(error))
    if unknown and unknown[2] in RENAMED:
        return f"unknown key {unknown[1]!r}; it is now {RENAMED[unknown[2]]}"
    return str(error)


def explain_config_error(error: BaseException, *, program: type | None = None) -> str:
    """Return what Hydra found wrong: one line if it is a key or a value, else Hydra's message.

    The line has the form of a `SettingError`: the key, what it is, what it may be.

    Args:
        error: raised by Hydra or OmegaConf.
        program: the declaration of the program whose keys come into question; None: all of them.
    """
    text = "\n".join(_chain(error))
    unknown, group, gone = (pattern.search(text) for pattern in (_UNKNOWN_KEY, _GROUP_TYPO, _NO_SUCH_KEY))
    if unknown:
        name, owner = unknown.groups()
        key, file = _FULL_KEY.search(text), _IN_FILE.search(text)
        place = f" in {file[1]}" if file else ""
        candidates = (keys_of(owner) if owner else ()) or all_keys()
        return f"unknown key {(key[1] if key else name)!r}{place}; {_nearest(name, candidates)}"
    if group or gone:
        key = (group or gone)[1]  # pyright: ignore[reportOptionalSubscript]
        return f"unknown key {key!r}; {_nearest(key, whole_keys(program) if program else all_keys())}"
    no_value, option = _NO_VALUE.search(text), _NO_OPTION.search(text)
    if no_value:
        return f"{no_value[1]} has no value; give {no_value[1]}=<value>"
    if option:
        folder, _, name = option[1].rpartition("/")
        return f"{folder} is {name!r}; {did_you_mean(name, option[2].split())}"
    return _explain_value(error) or text


def explain_group_error(arguments: Sequence[str]) -> str:
    """Return the line for a number, or null, where a file of `conf/` is chosen: ``trainer=5``."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and (CONF / key).is_dir():
            names = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
            if value not in names:
                return f"{key} is {value!r}; {did_you_mean(value, names)}"
    return f"one of {' '.join(arguments)} is a number where a name is wanted"


def _explain_value(error: BaseException | None) -> str | None:
    """Return the line for a value that OmegaConf could not assign; None if that is not what happened."""
    while error is not None:
        if isinstance(error, OmegaConfBaseException) and error.full_key:
            allowed = allowed_in(error.object_type, str(error.key))
            if isinstance(error, ValidationError) and allowed is not None:
                return f"{error.full_key} is {shown(error.value)}; it must be {allowed}"
            return f"{error.full_key}: {str(error).splitlines()[0]}"
        error = error.__cause__
    return None


def _chain(error: BaseException) -> list[str]:
    """Return the messages of an error and of its causes, without repetitions."""
    messages: list[str] = []
    current: BaseException | None = error
    while current is not None:
        lines = str(current).strip().splitlines()
        message = "\n".join(line for line in lines if not line.startswith("To append to your config"))
        if message and not any(message in earlier for earlier in messages):
            messages.append(message)
        current = current.__cause__
    return messages


def _nearest(name: str, candidates: tuple[str, ...]) -> str:
    """Return what was meant: of many candidates only the few that are like it."""
    last = name.rpartition(".")[2]
    if last in RENAMED:
        return f"it is now {RENAMED[last]}"
    if len(candidates) > _MOST_SHOWN:
        candidates = tuple(difflib.get_close_matches(name, candidates, n=5))
    return did_you_mean(name, candidates) if candidates else "--help lists all keys"
