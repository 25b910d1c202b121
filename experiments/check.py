"""Finds what is wrong with a recording, an environment, a robot or a codec before it is used.

    python -m experiments.check dataset=outputs/datasets/mine
    python -m experiments.check dataset=outputs/datasets/mine mend=outputs/datasets/mended
    python -m experiments.check env=tabletop tasks=[reach]
    python -m experiments.check robot=sim tasks=[reach]
    python -m experiments.check codec=quantile dataset=outputs/datasets/mine

Prints what was looked at and what was found, and writes `report.html`, a page to look at, and
`findings.json`. Ends with code 1 if there are errors.
"""

import dataclasses
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from experiments.checks.examination import table_rows
from experiments.config import cli, schema
from experiments.config.checking import CheckRun
from experiments.config.found import DATASET
from experiments.config.robot_draft import write_draft
from experiments.config.robot_file import read_robot_file
from experiments.config.run_record import write_record
from experiments.reports.part import write_part_page
from experiments.reports.recording import summary, write_recording_page
from experiments.reports.tables import format_lines, format_table
from vla.data.lerobot_v3 import Dataset
from vla.data.origin import read_origin
from vla.data.quality.examine import examine
from vla.data.quality.findings import SEVERITIES, Finding
from vla.data.quality.mend import write_mended
from vla.data.quality.opening import open_examined
from vla.files import atomic_write_json
from vla.registry import SettingError

schema.register("check")

WIDTH = 110  # of the terminal
MEASURED_WIDTH = 70  # of the last column of a table


def with_bar(doing: str, episodes: Sequence[int]) -> Iterable[int]:
    """Return the episodes with a progress bar."""
    return tqdm(episodes, desc=doing, unit="episode", mininterval=1.0)


def print_findings(findings: Sequence[Finding], num_episodes: int) -> None:
    """Print the findings as a table, each followed by what to do."""
    if not findings:
        print("\nNothing was found.")
        return
    counts = Counter(one.severity for one in findings)
    listed = ", ".join(
        f"{counts[name]} {name}{'s' * (counts[name] != 1)}" for name in SEVERITIES if counts[name]
    )
    print(f"\n{listed}:")
    for one in findings:
        place = ", ".join(text for text in (one.channel, one.camera) if text)
        print(f"\n{one.severity:<8} {one.check}" + (f"  [{place}]" if place else ""))
        print(textwrap.fill(one.message, WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9))
        if one.episodes and len(one.episodes) < num_episodes:
            shown = ", ".join(map(str, one.episodes[:15]))
            rest = len(one.episodes) - 15
            print(
                f"         episodes {shown}"
                + (f" and {rest} more (findings.json lists them)" if rest > 0 else "")
            )
        print(textwrap.fill(f"-> {one.advice}", WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 12))


def check_dataset(run: CheckRun, out_dir: Path) -> list[Finding]:
    """Examine a dataset, print and write what was found, and write the mended copy if there is to be one.

    Raises:
        ValueError: a convention was given for a dataset that states its own.
        DatasetError: the mended copy cannot be written.
    """
    assert run.dataset is not None, "this is what is checked"
    opened = open_examined(
        run.dataset,
        robot_spec=None if run.robot_file is None else read_robot_file(run.robot_file).spec,
        action_convention=run.action_convention,
        gripper_sign=run.gripper_sign,
    )
    dataset = opened.dataset
    findings = opened.findings
    if dataset is not None:
        for title, header, rows in summary(dataset):
            print(f"{title}\n{textwrap.indent(format_table(header, rows), '  ')}\n")
        for guess in opened.guesses:
            print(
                textwrap.fill(
                    f"guessed: {guess}; give the key if that is wrong", WIDTH, subsequent_indent="  "
                )
            )
        findings = findings + examine(
            dataset, settings=run.examine, progress=lambda episodes: with_bar("looking at pictures", episodes)
        )
    print_findings(findings, 0 if dataset is None else dataset.num_episodes)
    _write_findings(out_dir, findings, about={"dataset": run.dataset, "guesses": opened.guesses})
    page = out_dir / "report.html"
    write_recording_page(
        page,
        dataset,
        findings=findings,
        guesses=opened.guesses,
        name=run.dataset,
        command=cli.typed_command("check"),
    )
    print(f"\nreport: {page}")
    if dataset is not None and run.robot_file is None and not states_its_spec(dataset):
        draft = out_dir / "robot.yaml"
        is_new = write_draft(draft, dataset)
        print(
            f"robot file, drafted: {draft} (look at every line, then give it as robot_file=)"
            if is_new
            else f"robot file, left as it is: {draft}"
        )
    if run.mend is not None:
        _mend(dataset, findings, run)
    return findings


def _write_findings(out_dir: Path, findings: Sequence[Finding], *, about: Mapping[str, Any]) -> None:
    content = {
        **about,
        "errors": sum(one.severity == "error" for one in findings),
        "findings": [dataclasses.asdict(one) for one in findings],
    }
    atomic_write_json(out_dir / "findings.json", content)


def subject_of(run: CheckRun) -> str:
    """Return what is to be checked: ``robot`` (in the scene of `env`), ``codec``, ``env`` or ``dataset``.

    Raises:
        SettingError: nothing is given, or several things are.
    """
    given = {"robot": run.robot, "codec": run.codec, "env": run.env, "dataset": run.dataset}
    named = [name for name, value in given.items() if value]
    if named in (["robot", "env"], ["codec", "dataset"]):  # a robot in a scene, a codec on recorded chunks
        return named[0]
    if len(named) == 1:
        return named[0]
    if not named:
        raise SettingError(
            f"nothing to check is named; give env=<name>, robot=<name>, codec=<name>, or "
            f"dataset=<{DATASET.kind}>: {DATASET.offer()}"
        )
    raise SettingError(
        f"{' and '.join(named)} are given; check one at a time (env goes with robot, dataset with codec)"
    )


def check_part(run: CheckRun, subject: str, out_dir: Path) -> list[Finding]:
    """Look at an environment, a robot or a codec, print and write what was found.

    Raises:
        ValueError: a scene lacks a task, or a robot may not be moved as it would have to be.
        DatasetError: the recording of which a codec is to take chunks cannot be read.
    """
    if subject == "env":
        kind = run.env["family"]
        from experiments.checks.environments import check_environment  # needs a simulator

        seen = check_environment(
            run.env,
            run.tasks,
            num_seeds=run.num_seeds,
            first_seed=run.first_seed,
            progress=lambda tasks: tqdm(tasks, desc="playing", unit="task"),
        )
    elif subject == "robot":
        assert run.robot is not None
        kind = HydraConfig.get().runtime.choices.get("robot") or "robot"
        from experiments.checks.robots import check_robot

        scene = {**run.env, "task": run.tasks[0]} if run.env else {}
        seen = check_robot(run.robot, scene, seed=run.first_seed, may_move=run.may_move)
    else:
        kind = run.codec["kind"]
        from experiments.checks.codecs import check_codec, random_chunks, recorded_chunks

        kinds = [random_chunks(action_horizon=run.action_horizon)]
        if run.dataset is not None:
            robot_file = None if run.robot_file is None else read_robot_file(run.robot_file).spec
            dataset = Dataset(run.dataset, robot_spec=robot_file)
            kinds.append(recorded_chunks(dataset, action_horizon=run.action_horizon))
        seen = check_codec(run.codec, kinds)
    title = f"{subject}={kind}"
    rows = table_rows(seen.rows, width=MEASURED_WIDTH)
    print(format_lines(["check", "where", "verdict", "measured"], rows))
    print_findings(seen.findings, 0)
    _write_findings(out_dir, seen.findings, about={"subject": title, "checks": seen.rows})
    page = out_dir / "report.html"
    write_part_page(page, seen, title=title, command=cli.typed_command("check"))
    print(f"\nreport: {page}")
    return seen.findings


def states_its_spec(dataset: Dataset) -> bool:
    """Whether the dataset says itself what its numbers mean."""
    return read_origin(dataset.root, dataset.info) is not None


def _mend(dataset: Dataset | None, findings: Sequence[Finding], run: CheckRun) -> None:
    assert run.mend is not None
    if dataset is None:
        raise ValueError(f"{run.dataset} cannot be opened, so no copy can be mended; see the errors above")
    lines = write_mended(
        dataset,
        Path(run.mend),
        findings=findings,
        settings=run.mending,
        progress=lambda episodes: with_bar("writing the copy", episodes),
    )
    print(f"\nmended copy: {run.mend}")
    print("\n".join(f"  {line}" for line in lines) or "  nothing had to be changed")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="check")
def main(config: DictConfig) -> None:
    """Check."""
    run = schema.typed(config, CheckRun)
    schema.require_inputs(run)
    subject, out_dir = subject_of(run), Path(HydraConfig.get().runtime.output_dir)
    is_recording = subject == "dataset"
    findings = check_dataset(run, out_dir) if is_recording else check_part(run, subject, out_dir)
    if any(one.severity == "error" for one in findings):
        write_record(config)
        sys.exit(cli.EXIT_FAILED)


if __name__ == "__main__":
    cli.run(main)
