"""One table of many runs: what each changed, how it did, and how it differs from a baseline by episodes.

    python -m experiments.train --multirun trainer.learning_rate=1e-3,2e-3 out_dir=outputs/train/rates
    python -m experiments.sweep_table runs=[outputs/train/rates]

A run is a directory of `experiments.train` or `experiments.evaluate`; a sweep's directory stands for all its
runs. The first run is the baseline, with which the others are compared. Runs that were never evaluated are
compared by their held-out numbers. Runs that differ in `seed` alone share a row of a second table.
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
from experiments.config.run_record import OVERRIDES, RECORD, runs_below
from experiments.reports.charts import Series
from experiments.reports.html import Chart
from experiments.reports.pages import write_sweep_page
from experiments.reports.tables import format_table, markdown_table, save_results
from experiments.resumed_run import newest_weights, recorded_overrides
from experiments.sweep_seeds import SEED, seeds_table
from vla.files import DamagedFile, read_json_object
from vla.model.checkpoint import PROCESSOR_NAME, list_checkpoints, resolve_checkpoint
from vla.spec import RobotSpec
from vla.training.metrics import read_metrics

schema.register("sweep_table")

LOSS = "validation/action_loss"
PICTURES = ("cameras", "image_size", "render_quality")  # of the same scene: such runs may be compared
PLACES = ("out_dir", "dataset", "record", "data.cache_dir")  # overrides that say where, not what
BASELINE = "(the baseline)"
EVALUATED = ("success", "episodes", "difference", "p")  # columns of runs with an evaluation
HEADER = [
    *("changed", *EVALUATED, "steps", "held-out loss", "held-out accuracy"),
    *("samples/s", "ids per chunk", "jerk"),
]
NOTE = (
    "Brackets: Wilson's 95 % intervals, Tango's for differences to the baseline in points; p: McNemar's "
    "exact test. Over seeds: Student's 95 % intervals over runs. Held-out loss: of actions. "
    "Samples/s: median of the training's log. Jerk: root mean square of the third derivative of what was "
    "commanded, of channels in m [m/s^3] or, without such, in rad [rad/s^3]."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRow:
    """A run of the table: what was not measured is None, and so is `paired` for the baseline."""

    path: Path
    changed: str
    evaluation: Evaluation | None
    paired: PairedCounts | None
    steps: int | None
    held_out_loss: float | None
    held_out_accuracy: float | None
    samples_per_s: float | None
    ids_per_chunk: float | None
    jerk: float | None

    def cells(self) -> list[str]:
        """Return the row as text, in the order of `HEADER`."""
        found = self.evaluation
        return [
            self.changed,
            ""
            if found is None
            else f"{100 * found.mean_success_rate:.1f} % {found.pooled_interval.in_percent()}",
            "" if found is None else str(len(found.rows)),
            ""
            if self.paired is None
            else f"{100 * self.paired.difference:+.1f} {self.paired.interval.in_percent('+.0f')}",
            "" if self.paired is None else f"{self.paired.p_value:.2g}",
            "" if self.steps is None else str(self.steps),
            "" if self.held_out_loss is None else f"{self.held_out_loss:.3f}",
            "" if self.held_out_accuracy is None else f"{self.held_out_accuracy:.3f}",
            "" if self.samples_per_s is None else f"{self.samples_per_s:.0f}",
            "" if self.ids_per_chunk is None else f"{self.ids_per_chunk:.1f}",
            "" if self.jerk is None else f"{self.jerk:.1f}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready data, the success of each task included."""
        paired = self.paired
        return {
            "path": cli.short_path(str(self.path)),
            "changed": self.changed,
            **({} if self.evaluation is None else _evaluation_json(self.evaluation)),
            "difference": None if paired is None else paired.difference,
            "difference_95": None if paired is None else [paired.interval.low, paired.interval.high],
            "p_value": None if paired is None else paired.p_value,
            "steps": self.steps,
            "held_out_loss": self.held_out_loss,
            "held_out_accuracy": self.held_out_accuracy,
            "samples_per_s": self.samples_per_s,
            "ids_per_chunk": self.ids_per_chunk,
            "jerk": self.jerk,
        }


def _evaluation_json(found: Evaluation) -> dict[str, Any]:
    return {
        "policy_id": found.policy_id,
        "mean_success_rate": found.mean_success_rate,
        "wilson_95": [found.pooled_interval.low, found.pooled_interval.high],
        "episodes": len(found.rows),
        "seeds": [min(row.seed for row in found.rows), max(row.seed for row in found.rows)],
        "tasks": {task: [result.successes, result.episodes] for task, result in found.tasks.items()},
    }


def find_runs(paths: list[str]) -> list[Path]:
    """Return run directories in order; one that is no run itself stands for the runs right below it.

    Raises:
        FileNotFoundError: a path holds no run.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        below = [] if _is_run(path) else runs_below(path)
        if not below and not _is_run(path):
            raise FileNotFoundError(f"{path} holds no run: neither it nor a directory in it has .hydra/")
        found += below or [path]
    return found


def _is_run(path: Path) -> bool:
    return (path / RECORD / OVERRIDES).exists()


def overrides(run: Path) -> dict[str, str]:
    """Return what a run's command line set, by key, places left out.

    Raises:
        DamagedFile: its record is none.
    """
    path = run / RECORD / OVERRIDES
    kept = recorded_overrides(run)  # of the weights, whatever command came last
    lines = OmegaConf.to_container(OmegaConf.load(path)) if kept is None else kept
    if not isinstance(lines, list):
        raise DamagedFile(f"{path} is no list of what a command line set; restore it from a copy")
    pairs = (str(line).partition("=") for line in lines)  # ~key, which takes a key away, has no value
    return {key: value for key, _, value in pairs if key not in PLACES}


def _is_evaluated(run: Path, mode: str) -> bool:
    folder = evaluation_folder(run, mode)
    if not (folder / "plan.json").exists():
        return False
    found, weights = load_evaluation(folder), newest_weights(run)
    return found.is_complete and weights in (None, found.policy_id)


def _has_numbers(run: Path) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and _last(read_metrics(path), LOSS) is not None


def split_unevaluated(runs: list[Path], mode: str) -> tuple[list[Path], list[Path]]:
    """Return the runs of a sweep that can be in its table, and those not evaluated to the end yet.

    Where none has begun an evaluation, those with held-out numbers can be in it.

    Raises:
        ValueError: the first is among the latter.
    """
    is_evaluated = [_is_evaluated(run, mode) for run in runs]
    begun = [run for run in runs if (evaluation_folder(run, mode) / "plan.json").exists()]
    is_ready = is_evaluated if begun else [_has_numbers(run) for run in runs]
    if not is_ready[0]:
        others = [cli.short_path(str(run)) for run, ready in zip(runs, is_ready, strict=True) if ready]
        what = f"no finished evaluation in the instruction mode {mode!r}" if begun else "no held-out numbers"
        raise ValueError(
            f"{runs[0]}, which the others are compared with, has {what}; did it fail? Repeat it with the "
            f"command that began it, or give runs that begin with another: runs=[{','.join(others)}]"
        )
    ready = [run for run, one in zip(runs, is_ready, strict=True) if one]
    return ready, [run for run in runs if run not in ready]


def changes(given: Mapping[str, str], baseline: Mapping[str, str]) -> str:
    """Return in which settings a run differs from the baseline."""
    changed = [f"{key}={value}" for key, value in given.items() if baseline.get(key) != value]
    changed += [f"{key} as by default" for key in baseline if key not in given]
    return ", ".join(changed)


def name_of_baseline(given: Sequence[Mapping[str, str]]) -> str:
    """Return what distinguishes the first run from the others."""
    keys = [key for key in given[0] if any(other.get(key) != given[0][key] for other in given)]
    return " ".join([", ".join(f"{key}={given[0][key]}" for key in keys), BASELINE]).strip()


def read_rows(runs: list[Path], mode: str) -> list[SweepRow]:
    """Return one row per run; where the first has no evaluation in this instruction mode, none is looked for.

    Raises:
        FileNotFoundError: another run has no evaluation in this mode.
        ValueError: an evaluation is not finished, or two runs met other scenes.
    """
    given, rows = [overrides(run) for run in runs], list[SweepRow]()
    is_evaluated = (evaluation_folder(runs[0], mode) / "plan.json").exists()
    for run, mine in zip(runs, given, strict=True):
        evaluation = open_evaluation(run, mode) if is_evaluated else None
        paired = None
        if evaluation is not None and rows and rows[0].evaluation is not None:
            require_same_scenes(rows[0].evaluation, evaluation, ignore=PICTURES)
            paired = compare(evaluation.rows, rows[0].evaluation.rows).overall
        logged = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
        rows.append(
            SweepRow(
                path=run,
                changed=changes(mine, given[0]) if rows else name_of_baseline(given),
                evaluation=evaluation,
                paired=paired,
                steps=logged[-1]["step"] if logged else None,
                held_out_loss=_last(logged, LOSS),
                held_out_accuracy=_last(logged, "validation/token_accuracy"),
                samples_per_s=_median(logged, "samples_per_s"),
                ids_per_chunk=_last(logged, "validation/ids_per_chunk"),
                jerk=None if evaluation is None else jerk_of(evaluation, run),
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


def number_chart(
    given: Sequence[Mapping[str, str]], rows: Sequence[SweepRow], over_seeds: Sequence[Mapping[str, Any]]
) -> Chart | None:
    """Return success, or held-out loss without it, over the one number in which all runs differ.

    None if they do not differ in one number, their seed apart. With several seeds it shows means over them.
    """
    is_evaluated = rows[0].evaluation is not None
    title = "success [%]" if is_evaluated else "held-out loss"
    keys = {key for one in given for key in one if any(other.get(key) != one[key] for other in given)}
    keys -= {SEED}
    if len(keys) != 1:
        return None
    (key,) = keys
    points: list[tuple[str | None, Sequence[float | None]]]
    if over_seeds:
        points = [(one["settings"].get(key), one["means"].get(title) or ()) for one in over_seeds]
    else:
        points = [(one.get(key), _with_interval(row)) for one, row in zip(given, rows, strict=True)]
    try:
        known = sorted((float(x), y) for x, y in points if x is not None and y)
    except ValueError:
        return None
    if len(known) < len(points):
        return None
    series = []
    for i, name in enumerate((title, "95 % interval, low", "95 % interval, high")):
        line = [(x, value) for x, y in known if (value := y[i]) is not None]
        if line:
            series.append(Series(name=name, x=[x for x, _ in line], y=[value for _, value in line]))
    return Chart(caption=f"{title} over {key}", series=series, x_label=key, y_label=title)


def _with_interval(row: SweepRow) -> Sequence[float | None]:
    found = row.evaluation
    if found is None:
        return [row.held_out_loss, None, None]
    return [
        100 * one for one in (found.mean_success_rate, found.pooled_interval.low, found.pooled_interval.high)
    ]


def over_seeds_columns(rows: Sequence[SweepRow]) -> dict[str, tuple[str, list[float | None]]]:
    """Return what is averaged over seeds: by title the style of its numbers and the value of each run."""
    success = [None if row.evaluation is None else 100 * row.evaluation.mean_success_rate for row in rows]
    return {
        "success [%]": (".1f", success),
        "held-out loss": (".3f", [row.held_out_loss for row in rows]),
        "held-out accuracy": (".3f", [row.held_out_accuracy for row in rows]),
    }


def without_empty_columns(
    header: Sequence[str], cells: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Return a table without the columns, the first apart, in which no row has anything."""
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in cells)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in cells]


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="sweep_table")
def main(config: DictConfig) -> None:
    """Read, print, write."""
    run = schema.typed(config, schema.SweepTableRun)
    schema.require_inputs(run)
    ready, waiting = split_unevaluated(find_runs(run.runs), run.instruction_mode)
    rows, given = read_rows(ready, run.instruction_mode), [overrides(one) for one in ready]
    header, cells = without_empty_columns(HEADER, [row.cells() for row in rows])
    seeds_header, seeds_cells, over_seeds = seeds_table(given, over_seeds_columns(rows))
    tables = {"Runs": (header, cells), **({"Over seeds": (seeds_header, seeds_cells)} if seeds_cells else {})}
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    path = save_results(
        out_dir / "sweep",
        results={"runs": [row.to_json() for row in rows], "over_seeds": over_seeds},
        markdown="\n".join(f"{markdown_table(*table)}\n" for table in tables.values()),
    )
    for table in tables.values():
        print(f"{format_table(*table)}\n")
    print(f"baseline: {cli.short_path(str(ready[0]))}")
    if waiting:
        print(f"not evaluated yet, and so not in the table: {', '.join(map(str, waiting))}")
    print(NOTE)
    page = out_dir / "sweep.html"
    write_sweep_page(
        page,
        tables=tables,
        chart=number_chart(given, rows, over_seeds),
        note=f"Baseline: {cli.short_path(str(ready[0]))}. {NOTE}",
        command=cli.typed_command("sweep_table"),
    )
    print(f"written to {path} and {page}")


if __name__ == "__main__":
    cli.run(main)
