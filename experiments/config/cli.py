"""Runs a Hydra main as a well-behaved program: short errors, nearest key, signals, exit codes.

Exit codes: 0 done, 1 the run failed, 2 the configuration is wrong or asks for what is refused, 129 SIGHUP
(the terminal was closed), 130 Ctrl-C, 143 SIGTERM. control.py adds its own codes. Whole tracebacks are shown
with `HYDRA_FULL_ERROR=1`.
"""

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import re
import shlex
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

import conf
from experiments.config.declared import all_keys, allowed_in, help_table, keys_of, whole_keys
from experiments.config.earlier_settings import with_earlier_settings
from experiments.config.overrides import as_value
from experiments.config.plugins import CONF, GROUPS, PLUGIN_HINT, load_plugins, plugins_in
from experiments.config.run_record import FolderOfAnother, JobFailed
from experiments.config.schema import ROOTS, Program
from experiments.config.streams import make_streams_lenient
from vla.disk_faults import explain_disk_fault
from vla.errors import Refusal
from vla.registry import FilePath, SettingError, UnknownPart, did_you_mean, settings_of, shown
from vla.spec import is_utf8

OUR_PACKAGES = ("vla", "envs", "policies", "experiments", "__main__")  # __main__: the program that runs
EXIT_FAILED, EXIT_CONFIG, EXIT_HUNG_UP, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 129, 130, 143
_UNKNOWN_KEY = re.compile(r"Key '([^']+)' (?:not in '(\w+)'|is not in struct)")
_UNKNOWN_SETTING = re.compile(r"unknown key '((?:[^']*\.)?([^'.]+))'")
_FULL_ERROR, _SET_HERE = "HYDRA_FULL_ERROR", "VLA_SET_HYDRA_FULL_ERROR"
_NO_VALUE = re.compile(r"(?:is not Optional|missing mandatory value: \S+)\s+full_key: (\S+)", re.IGNORECASE)
RENAMED = {
    "num_steps": "num_samples (a step trains on batch_size of them)",
    "time_budget_minutes": "num_samples, or max_minutes to end a run before them",
    "twin_share": "env.same_color_share, and collect.recording_same_color_share while recording",
    "colour": "color",
    "wandb_project": "wandb.project",
    "extensions": "plugins",
    "conditions": "instruction_modes ([original, swapped, blank]; original was called right)",
    "condition": "instruction_mode (original, which was called right, swapped or blank)",
}
_GROUPS, _GROUP_LINE = "== Configuration groups ==", re.compile(r"([\w/]+): .*")  # of Hydra's help
_SECOND_CHOICE = re.compile(r"Multiple values for (\S+)\. To override a value use 'override \S+: ([^']+)'")
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


class HungUp(Terminated):
    """SIGHUP arrived: the terminal was closed, or the connection to it was lost."""


ENDED_BY: Mapping[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
    signal.SIGHUP: HungUp,
}


def _raise_ended(number: int, _frame: FrameType | None) -> NoReturn:
    raise ENDED_BY[number]


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a program to end: SIGHUP only where it is not ignored, as under `nohup`."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if is_ignored else (signal.SIGHUP,)))


def run(main: Callable[[], object]) -> NoReturn:
    """Call a Hydra main and end the process with the right exit code.

    Errors that are for the user become one message and the place that raised them; anything else is a bug
    of ours and keeps its traceback.
    """
    wants_traceback = os.environ.get(_FULL_ERROR) == "1"
    if not wants_traceback:
        os.environ[_FULL_ERROR] = os.environ[_SET_HERE] = "1"  # Hydra raises instead of printing and exiting
    make_streams_lenient()
    for number in ending_signals()[1:]:  # Python itself makes Ctrl-C an exception
        signal.signal(number, _raise_ended)
    try:
        require_our_configuration(conf.__path__)
        require_readable(sys.argv[1:])
        load_plugins(plugins_in(sys.argv[1:]))
        if program_name() in ROOTS.names():
            typed = with_quoted_paths(sys.argv[1:], ROOTS.get(program_name()))
            sys.argv[1:] = with_earlier_settings(typed, program_name())
        _call(main)
    except SettingError as error:
        if wants_traceback:
            traceback.print_exc()
        _end(EXIT_CONFIG, explain_setting_error(error))
    except (HydraException, OmegaConfBaseException) as error:
        if wants_traceback:
            traceback.print_exc()
        _end(EXIT_CONFIG, explain_config_error(error, program=_this_program()))
    except Refusal as error:
        if wants_traceback:
            traceback.print_exc()
        _end(EXIT_CONFIG, explain_failure(error))
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if str(error).startswith(_NO_NAME):  # raised by Hydra
            _end(EXIT_CONFIG, explain_group_error(sys.argv[1:]))
        if wants_traceback or not is_for_the_user(error):
            raise
        _end(EXIT_FAILED, explain_failure(error))
    except FolderOfAnother as refusal:
        _end(EXIT_CONFIG, str(refusal))
    except HungUp:
        _end(EXIT_HUNG_UP, "the terminal is gone; the same command with the same output directory continues")
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
            "type `vla <program>`, which looks there last, start it from another folder, or rename that one"
        )


def _call(main: Callable[[], object]) -> None:
    """Call a Hydra main; its `--help` shows this program's groups alone, and explains each setting."""
    if not {"--help", "-h"} & set(sys.argv[1:]):
        try:
            main()
        except JobFailed as failed:
            raise failed.error from None
        return
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            main()
    except SystemExit as end:
        root = ROOTS.get(program_name())
        print(of_used_groups(shown.getvalue(), CONF / f"{program_name()}.yaml"))
        if end.code in (0, None):
            print(f"== Settings ==\n{help_table(root)}")
        raise


def of_used_groups(text: str, root: Path) -> str:
    """Return Hydra's help without the groups that a program has nothing from.

    Args:
        text: of the help, which lists all groups below a heading, one in a line.
        root: the file of the program, whose defaults name the groups.
    """
    defaults = OmegaConf.to_container(OmegaConf.load(root))
    assert isinstance(defaults, dict), root
    named = [key for one in defaults["defaults"] if isinstance(one, dict) for key in one]
    used = {str(key).split()[-1].split("@")[0] for key in named}
    head, heading, rest = text.partition(_GROUPS)
    groups, blanks, config = rest.partition("\n\n\n")
    kept = [
        line
        for line in groups.splitlines()
        if not (match := _GROUP_LINE.fullmatch(line)) or match[1].split("/")[0] in used
    ]
    if not used:
        return head + config
    return head + heading + "\n".join(kept) + blanks + config


def program_name() -> str:
    """Return the name of the program that runs, as `ROOTS` has it."""
    return Path(sys.argv[0]).stem


def require_readable(arguments: Sequence[str]) -> None:
    """Check that the arguments are text.

    Raises:
        SettingError: one holds bytes that this environment cannot read as text.
    """
    for argument in arguments:
        if not is_utf8(argument):
            raise SettingError(
                f"{argument!a} holds bytes that are no text in {sys.getfilesystemencoding()}, the encoding "
                "that LC_ALL and LANG ask for; set PYTHONUTF8=1, or rename what it names"
            )


def with_quoted_paths(arguments: Sequence[str], program: type) -> list[str]:
    """Return a command line whose paths Hydra takes as they are, whatever characters they hold.

    Hydra gives a meaning to ``= , ( ) [ ] {`` and to letters beyond ASCII; ``out_dir=lr=0.1`` becomes
    ``out_dir='lr=0.1'``. Left alone are values that are quoted already, null, interpolations, and lists of
    values for `--multirun`.

    Args:
        arguments: of the command line.
        program: the class that declares its settings.
    """
    paths = {
        setting.name
        for setting in settings_of(program)
        if isinstance(setting.constraint, FilePath) and typing.get_origin(setting.type) is not list
    }
    is_sweep = bool({"--multirun", "-m"} & set(arguments))
    return [_with_quoted_path(argument, paths, is_sweep=is_sweep) for argument in arguments]


def _with_quoted_path(argument: str, paths: Collection[str], *, is_sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or key not in paths or value == "null" or value[:1] in ("", "'", '"') or "${" in value:
        return argument
    if is_sweep and any(one in value for one in ",("):
        return argument
    return f"{key}={as_value(value)}"


def config_with_paths(run: Program, shown: Callable[[str], str]) -> dict[str, Any]:
    """Return a run's configuration for a record, with its paths as `shown` returns them."""
    config = dataclasses.asdict(run)
    for setting in settings_of(type(run)):
        if isinstance(setting.constraint, FilePath) and isinstance(config[setting.name], str):
            config[setting.name] = shown(config[setting.name])
    return config


def child_environment() -> dict[str, str]:
    """Return the environment for a program that this one starts: that of the user, without what `run` set."""
    environment = dict(os.environ)
    if environment.pop(_SET_HERE, None) is not None:
        del environment[_FULL_ERROR]
    return environment


def typed_command(program: str) -> str:
    """Return what was typed to start a program, as it was.

    Args:
        program: its name, for where the command line does not tell. A program that does the work of another,
            as `improve` does that of `train`, is named as it was typed.
    """
    start, arguments = _typed(program)
    return shlex.join([*start, *arguments])


def portable_command(program: str) -> str:
    """Return what was typed to start a program, without paths of this machine: for results that are kept.

    An absolute path outside of the working directory becomes `.../` and its last part.
    """
    start, arguments = _typed(program)
    return shlex.join([*start, *map(_without_place, arguments)])


def _typed(program: str) -> tuple[list[str], list[str]]:
    """Return how a program was started and its arguments as typed: Hydra's have what was laid under them."""
    words = sys.orig_argv
    for i, (one, other) in enumerate(itertools.pairwise(words)):
        if one == "-m" and other.startswith("experiments."):
            return ["python", one, other], words[i + 2 :]
        if i == 1 and Path(one).name == "vla":
            return ["vla", other], words[i + 2 :]
    return ["python", "-m", f"experiments.{program}"], sys.argv[1:]


def _without_place(argument: str) -> str:
    key, equals, value = argument.rpartition("=")
    return f"{key}{equals}{portable_path(value)}"


def portable_path(path: str) -> str:
    """Return a path as it may stand in a result: relative, or `.../` and its last part.

    >>> portable_path("outputs/bundle"), portable_path("/somewhere/else/bundle")
    ('outputs/bundle', '.../bundle')
    """
    short = short_path(path)
    return f".../{Path(short).name}" if Path(short).is_absolute() else short


def short_path(path: str) -> str:
    """Return a path relative to the working directory if it lies in there, else as it is."""
    inside = Path(path).is_absolute() and Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if inside else path


def is_for_the_user(error: BaseException) -> bool:
    """Whether the message alone helps: wrong values (`VLAError`), missing files, failures that we define."""
    is_ours = type(error).__module__.split(".")[0] in OUR_PACKAGES
    return is_ours or isinstance(error, ValueError | OSError) or _is_out_of_memory(error)


def explain_failure(error: BaseException) -> str:
    """Return one message and the place of an error that is for the user; of any other, the traceback."""
    if not is_for_the_user(error):
        return "".join(traceback.format_exception(error))
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"({type(error).__name__} at {frame.filename}:{frame.lineno}; HYDRA_FULL_ERROR=1 shows more)"
    message = explain_disk_fault(error) if isinstance(error, OSError) else error
    hint = _LESS_MEMORY if _is_out_of_memory(error) else ""
    return f"error: {message}{hint}\n{place}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or torch got no memory for something."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(one in str(error) for one in words)


def _end(code: int, message: str) -> NoReturn:
    sys.stdout.flush()
    print(printable(message), file=sys.stderr)
    sys.exit(code)


def printable(text: str) -> str:
    r"""Return a text with what would command a terminal or reorder its letters written as an escape.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode() for one in text
    )


def explain_setting_error(error: SettingError) -> str:
    """Return the message of a wrong setting; of a key that was renamed, its current name instead."""
    unknown = _UNKNOWN_SETTING.search(str(error))
    if unknown and unknown[2] in RENAMED:
        return f"unknown key {unknown[1]!r}; it is now {RENAMED[unknown[2]]}"
    return f"{error}; {PLUGIN_HINT}" if isinstance(error, UnknownPart) else str(error)


def explain_config_error(error: BaseException, *, program: type | None = None) -> str:
    """Return what Hydra found wrong: one line if it is a key or a value, else Hydra's message.

    The line has the form of a `SettingError`: the key, what it is, what it may be.

    Args:
        error: raised by Hydra or OmegaConf.
        program: the declaration of the program whose keys come into question; None: all of them.
    """
    text = "\n".join(_chain(error))
    unknown, group, gone = (pattern.search(text) for pattern in (_UNKNOWN_KEY, _GROUP_TYPO, _NO_SUCH_KEY))
    second = _SECOND_CHOICE.search(text)
    if second:
        key, name = second.groups()
        return f"+{key}={name} adds to the choice that is there already; type {key}={name}, which replaces it"
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
        hint = f"; {PLUGIN_HINT}" if folder in GROUPS else ""
        return f"{folder} is {name!r}; {did_you_mean(name, option[2].split())}{hint}"
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
                if error.value == {}:  # what a key below it makes of it: logger.mode=offline
                    return f"{error.full_key} is one value, {allowed}, and has no keys of its own"
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
