"""What the check of an environment, a robot or a codec looked at and found; every check with its cure.

A check passes with what was measured, is found wrong, or was not tried. What is wrong is a `Finding`, as of a
recording: an ``error`` (nothing that is built on it can be trusted), a ``warning`` or a ``note``.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from envs.opengl import NoOpenGL
from vla.data.quality.findings import SEVERITIES, Finding
from vla.registry import NotInstalled

T = TypeVar("T")
PASSED, NOT_TRIED = "passed", "not tried"

# Check -> what to do when it finds something.
CHECKS = {
    # environments
    "env_raises": "mend the line that the message names",
    "env_form": "correct the method or the robot spec: both must name the same shape and type",
    "camera_frozen": "draw the scene anew in every render_camera, from what it is like now",
    "camera_empty": "look at the camera's place, the light and the colors: the picture shows nothing",
    "camera_ignores_scene": "aim the camera at what differs between scenes: a policy sees no more than this",
    "seed_ignored": "draw the scene in _reset_scene with self.np_random, which follows the seed",
    "seed_not_kept": "draw with self.np_random alone, and set everything anew in _reset_scene: time, "
    "`random`, np.random, the order of a set or what an earlier episode left must decide nothing",
    "expert_fails": "watch its episode in report.html; correct expert_action, _goal_holds or max_steps",
    "expert_clipped": "keep expert_action within the limits of the robot spec: what is recorded is clipped",
    "expert_lost": "let expert_action see where things are and begin again, gripper open: practice "
    "(experiments.improve) asks it where policies fail, and records only what it finishes",
    "success_at_rest": "begin where the goal does not hold yet, or a policy that does nothing succeeds",
    "instruction_empty": "return the sentence from _reset_scene, and another from swapped_instruction",
    "swapped_same": "name another goal of the scene in swapped_instruction, or that control says nothing",
    "tasks_alike": "give tasks different sentences: a policy is told no other way which one is meant",
    "action_unused": "use the channel in _apply, or leave it out of the robot spec",
    "state_constant": "measure the channel in read_state, or leave it out of the robot spec",
    "state_out_of_range": "widen the channel's range in the robot spec, or correct its unit",
    "worker_differs": "let nothing depend on the process: hash order, time, files, a global",
    # codecs
    "codec_raises": "mend the line that the message names",
    "codec_form": "let encode, specs and decode agree: what head and processor see is what specs names",
    "codec_loses": "keep more of the action: more bins, another range, or a codec that fits the recording",
    "codec_bounds": "clip in decode to the limits that fit was given: what it returns is sent to a robot",
    "codec_unsteady": "let encode and decode depend on their arguments alone, and change none of them",
    "codec_batch": "treat every chunk of a batch by itself",
    "codec_json": "write all that fit found into to_json, and read it back in from_json",
    "codec_drifts": "let decode return what encode maps to the same tokens",
    "codec_takes_nan": "raise ValueError for what is not finite: a head would learn it",
    "codec_decodes_nonsense": "raise vla.interface.DecodeError for what stands for no action",
    "codec_committed": "encode the first num_committed actions alone; those behind them count for nothing",
    # robots
    "robot_raises": "mend the line that the message names, or what the driver reports",
    "robot_lacks": "give the class what the message names; vla/interface.py and experiments/config/robot.py "
    "say what each must do",
    "robot_limits": "give limits for every action channel of the robot spec, in its order",
    "robot_observes": "look at the driver",  # where the line of the dry run has none
    "reading_reused": "return new arrays from every observe: a policy looks at earlier frames too",
    "stop_slow": "let stop send and return: it waits for no camera, and may be called from any thread",
    "stop_does_nothing": "bring the robot to rest in stop; until then, keep a hand on the emergency stop",
    "runs_on": "let every command end by itself after a control period: the computer may fail",
    "command_ignored": "look at the channel's sign, unit and measured_by, and whether it is sent at all",
    "reopens": "release everything on leaving `open`: the next run needs it",
}


@dataclass(kw_only=True)
class Examination:
    """All that was looked at so far, in the order in which it was.

    Attributes:
        rows: what a table shows: check, place, verdict, what was measured.
        findings: what is wrong.
        strips: for the page: a caption and pictures that stand side by side.
    """

    rows: list[list[str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    strips: list[tuple[str, list[np.ndarray]]] = field(default_factory=list)

    def passed(self, check: str, measured: str, *, place: str = "") -> None:
        """Note a check that found nothing.

        Args:
            check: in words.
            measured: in numbers, if there are any.
            place: which task, channel or camera; empty for all.
        """
        self.rows.append([check, place, PASSED, measured])

    def not_tried(self, check: str, reason: str) -> None:
        """Note a check that was left out, and why."""
        self.rows.append([check, "", NOT_TRIED, reason])

    def found(
        self,
        check: str,
        severity: str,
        message: str,
        *,
        what: str,
        place: str = "",
        channel: str | None = None,
        camera: str | None = None,
        advice: str = "",
    ) -> None:
        """Note something wrong.

        Args:
            check: its name in `CHECKS`.
            severity: one of `SEVERITIES`.
            message: what was found, with numbers.
            what: the check in words, as in `passed`.
            place: which task; empty for all.
            channel: ``state/<name>`` or ``action/<name>``, if it concerns one.
            camera: its name, if it concerns one.
            advice: in place of that of `CHECKS`.
        """
        assert severity in SEVERITIES
        where = ", ".join(text for text in (place, channel, camera) if text)
        self.rows.append([what, where, severity, message])
        self.findings.append(
            Finding(
                check=check,
                severity=severity,
                message=f"{place}: {message}" if place else message,
                advice=advice or CHECKS[check],
                episodes=[],
                channel=channel,
                camera=camera,
            )
        )

    def tried(self, make: Callable[[], T], check: str, *, what: str, place: str = "") -> T | None:
        """Return what code of the user returns; what it raises is found, and None returned.

        Args:
            make: calls the code.
            check: its name in `CHECKS`, for what is raised.
            what: the check in words.
            place: which task.

        Raises:
            NotInstalled, NoOpenGL: as there; they say what to install.
        """
        try:
            return make()
        except (NotInstalled, NoOpenGL):  # nothing that the user wrote
            raise
        except Exception as error:  # noqa: BLE001  whatever code of the user may raise is what is looked for
            self.found(check, "error", raised(error), what=what, place=place)
            return None


def raised(error: BaseException) -> str:
    """Return what was raised, and the last line of the user's that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(__file__).parent
    theirs = [one for one in frames if not Path(one.filename).is_relative_to(ours)] or list(frames)
    return f"{type(error).__name__}: {error} (at {theirs[-1].filename}:{theirs[-1].lineno})"


def table_rows(rows: Sequence[Sequence[str]], *, width: int) -> list[list[str]]:
    """Return the rows with long measurements cut for a terminal."""
    return [[*row[:-1], row[-1] if len(row[-1]) <= width else f"{row[-1][: width - 3]}..."] for row in rows]
