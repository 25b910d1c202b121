"""One table of many runs: what each changed, how it did, and the difference to the first, episode by episode.

    python -m experiments.train --multirun trainer.learning_rate=1e-3,2e-3 out_dir=outputs/train/rates
    python -m experiments.sweep_table runs=[outputs/train/rates]

A run is a directory of `experiments.train` or `experiments.evaluate`; a sweep's directory stands for all its
runs. The first run is what the others are compared with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from envs.evaluation.comparison import PairedCounts, compare
from envs.evaluation.results import Evaluation, load_evaluation
from experiments.compare import evaluation_folder, open_evaluation, require_same_scenes
from experiments.config import cli, schema
from experiments.config.run_record import OVERRIDES, RECORD
from experiments.reports.charts import Series
from experiments.reports.html import Chart
from experiments.reports.pages import write_sweep_page
from experiments.reports.tables import format_table, markdown_table, save_results
from vla.files import DamagedFile, read_json_object
from vla.model.checkpoint import PROCESSOR_NAME, list_checkpoints, resolve_checkpoint
from vla.spec import RobotSpec
from vla.training.metrics import read_metrics

schema.register("sweep_table")

PICTURES = ("cameras", "image_size", "render_quality")  # of the same scene: such runs may be compared
PLACES = ("out_dir", "dataset", "record", "data.cache_dir")  # overrides that say where, not what
HEADER = [
    *("changed", "success", "episodes", "difference to the first", "p", "steps", "held-out accuracy"),
    *("samples/s", "ids per chunk", "jerk"),
]
NOTE = (
    "Brackets: Wilson's 95 % intervals, Tango's for differences in points; p: McNemar's exact test. "
    "Samples/s: median of the training's log. Jerk: root mean square of the third derivative of what was "
    "commanded, of channels in m [m/s^3] or, without such, in rad [rad/s^3]."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRow:
    """A run of the table; `paired` is None for the first, training is None for a run that only evaluated."""

    path: Path
    changed: str
    evaluation: Evaluation
    paired: PairedCounts | None
    steps: int | None
    held_out_accuracy: float | None
    samples_per_s: float | None
    ids_per_chunk: float | None
    jerk: float | None

    def cells(self) -> list[str]:
        """Return the row as text, in the order of `HEADER`."""
        found = self.evaluation
        return [
            self.changed,
            f"{100 * found.mean_success_rate:.1f} % {found.pooled_interval.in_percent()}",
            str(len(found.rows)),
            ""
            if self.paired is None
            else f"{100 * self.paired.difference:+.1f} {self.paired.interval.in_percent('+.0f')}",
            "" if self.paired is None else f"{self.paired.p_value:.2g}",
            "" if self.steps is None else str(self.steps),
            "" if self.held_out_accuracy is None else f"{self.held_out_accuracy:.3f}",
            "" if self.samples_per_s is None else f"{self.samples_per_s:.0f}",
            "" if self.ids_per_chunk is None else f"{self.ids_per_chunk:.1f}",
            "" if self.jerk is None else f"{self.jerk:.1f}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready data, the success of each task included."""
        found, paired = self.evaluation, self.paired
        return {
            "path": cli.short_path(str(self.path)),
            "changed": self.changed,
            "policy_id": found.policy_id,
            "mean_success_rate": found.mean_success_rate,
            "wilson_95": [found.pooled_interval.low, found.pooled_interval.high],
            "episodes": len(found.rows),
            "seeds": [min(row.seed for row in found.rows), max(row.seed for row in found.rows)],
            "tasks": {task: [result.successes, result.episodes] for task, result in found.tasks.items()},
            "difference": None if paired is None else paired.difference,
            "difference_95": None if paired is None else [paired.interval.low, paired.interval.high],
            "p_value": None if paired is None else paired.p_value,
            "steps": self.steps,
            "held_out_accuracy": self.held_out_accuracy,
            "samples_per_s": self.samples_per_s,
            "ids_per_chunk": self.ids_per_chunk,
            "jerk": self.jerk,
        }


def find_runs(paths: list[str]) -> list[Path]:
    """Return run directories in order; one that is no run itself stands for the runs right below it.

    Raises:
        FileNotFoundError: a path holds no run.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        below = [] if _is_run(path) else sorted((p.parent for p in path.glob(f"*/{RECORD}")), key=_by_number)
        if not below and not _is_run(path):
            raise FileNotFoundError(f"{path} holds no run: neither it nor a directory in it has .hydra/")
        found += below or [path]
    return found


def _by_number(run: Path) -> tuple[bool, int, str]:
    """Order a sweep's directories as Hydra numbers them, 2 before 10, and others by name after these."""
    return (not run.name.isdigit(), int(run.name) if run.name.isdigit() else 0, run.name)


def _is_run(path: Path) -> bool:
    return (path / RECORD / OVERRIDES).exists()


def overrides(run: Path) -> dict[str, str]:
    """Return what a run's command line set, by key, places left out.

    Raises:
        DamagedFile: its record is none.
    """
    path = run / RECORD / OVERRIDES
    lines = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(lines, list):
        raise DamagedFile(f"{path} is no list of what a command line set; restore it from a copy")
    pairs = (str(line).partition("=") for line in lines)  # ~key, which takes a key away, has no value
    return {key: value for key, _, value in pairs if key not in PLACES}


def _evaluation(run: Path) -> Path:
    return run / "evaluation" if (run / "evaluation").exists() else run


def _is_evaluated(run: Path, mode: str) -> bool:
    folder = evaluation_folder(_evaluation(run), mode)
    return (folder / "plan.json").exists() and load_evaluation(folder).is_complete


def split_unevaluated(runs: list[Path], mode: str) -> tuple[list[Path], list[Path]]:
    """Return the runs of a sweep that can be in its table, and those not evaluated to the end yet.

    Raises:
        ValueError: the first is among the latter.
    """
    if not _is_evaluated(runs[0], mode):
        others = [cli.short_path(str(run)) for run in runs[1:] if _is_evaluated(run, mode)]
        raise ValueError(
            f"{runs[0]}, which the others are compared with, has no finished evaluation in the instruction "
            f"mode {mode!r}; did it fail? Repeat it with the command that began it, or give runs that begin "
            f"with another: runs=[{','.join(others)}]"
        )
    waiting = [run for run in runs[1:] if not _is_evaluated(run, mode)]
    return [run for run in runs if run not in waiting], waiting


def read_rows(runs: list[Path], mode: str) -> list[SweepRow]:
    """Return one row per run.

    Raises:
        FileNotFoundError: a run has no evaluation in this instruction mode.
        ValueError: an evaluation is not finished, or two runs met other scenes.
    """
    first, rows = overrides(runs[0]), list[SweepRow]()
    for run in runs:
        mine = overrides(run)
        changed = [f"{key}={value}" for key, value in mine.items() if first.get(key) != value]
        changed += [f"{key} as by default" for key in first if key not in mine]
        evaluation = open_evaluation(_evaluation(run), mode)
        paired = None
        if rows:
            require_same_scenes(rows[0].evaluation, evaluation, ignore=PICTURES)
            paired = compare(evaluation.rows, rows[0].evaluation.rows).overall
        logged = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
        rows.append(
            SweepRow(
                path=run,
                changed=", ".join(changed) if rows else "(the first)",
                evaluation=evaluation,
                paired=paired,
                steps=logged[-1]["step"] if logged else None,
                held_out_accuracy=_last(logged, "validation/token_accuracy"),
                samples_per_s=_median(logged, "samples_per_s"),
                ids_per_chunk=_last(logged, "validation/ids_per_chunk"),
                jerk=jerk_of(evaluation, run),
            )
        )
    return rows


def _last(logged: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in logged if key in row]
    return values[-1] if values else None


def _median(logged: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in logged if key in row]
    return float(np.median(values)) if values else None


def jerk_of(evaluation: Evaluation, run: Path) -> float | None:
    """Return how jerky the executed actions of a training run's policy are, None without its checkpoint.

    It is the root mean square of the third derivative of the commanded position over all episodes, of the
    channels in m, or of those in rad where there are none.
    """
    if not list_checkpoints(run):
        return None
    processor = read_json_object(resolve_checkpoint(run) / PROCESSOR_NAME)
    spec = RobotSpec.from_json(processor["robot_spec"])
    unit = "m" if any(channel.unit == "m" for channel in spec.action) else "rad"
    chosen = [channel.unit == unit for channel in spec.action]
    order = 3 if spec.action_convention.endswith("target") else 2  # a delta is a first derivative already
    squares = [
        np.diff(actions[:, chosen].astype(np.float64), n=order, axis=0) ** 2
        for actions in (np.load(path) for path in sorted((evaluation.run_dir / "actions").glob("*.npy")))
        if len(actions) > order
    ]
    if not squares:
        return None
    return float(np.sqrt(np.concatenate(squares).mean()) * spec.control_hz**3)


def success_chart(runs: Sequence[Path], rows: Sequence[SweepRow]) -> Chart | None:
    """Return success over the one number in which all runs differ, or None if it is not one number."""
    given = [overrides(run) for run in runs]
    keys = {key for one in given for key in one if any(other.get(key) != one[key] for other in given)}
    if len(keys) != 1:
        return None
    (key,) = keys
    try:
        points = sorted((float(one[key]), row.evaluation) for one, row in zip(given, rows, strict=True))
    except (KeyError, ValueError):
        return None
    x = [value for value, _ in points]
    lines = {
        "success": [found.mean_success_rate for _, found in points],
        "95 % interval, low": [found.pooled_interval.low for _, found in points],
        "95 % interval, high": [found.pooled_interval.high for _, found in points],
    }
    series = [Series(name=name, x=x, y=[100 * one for one in y]) for name, y in lines.items()]
    return Chart(caption=f"success [%] over {key}", series=series, x_label=key, y_label="success [%]")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="sweep_table")
def main(config: DictConfig) -> None:
    """Read, print, write."""
    run = schema.typed(config, schema.SweepTableRun)
    evaluated, waiting = split_unevaluated(find_runs(run.runs), run.instruction_mode)
    rows = read_rows(evaluated, run.instruction_mode)
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    cells = [row.cells() for row in rows]
    results = [row.to_json() for row in rows]
    path = save_results(out_dir / "sweep", results=results, markdown=markdown_table(HEADER, cells) + "\n")
    print(format_table(HEADER, cells))
    if waiting:
        print(f"not evaluated yet, and so not in the table: {', '.join(map(str, waiting))}")
    print(NOTE)
    page = out_dir / "sweep.html"
    write_sweep_page(
        page,
        header=HEADER,
        rows=cells,
        chart=success_chart(evaluated, rows),
        note=NOTE,
        command=cli.typed_command("sweep_table"),
    )
    print(f"written to {path} and {page}")


if __name__ == "__main__":
    cli.run(main)
