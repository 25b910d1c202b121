"""The page of a training run: its curves, what it ended with, and the evaluation after it."""

import math
from collections.abc import Mapping
from pathlib import Path

from envs.evaluation.results import Evaluation
from experiments.reports.html import Headline, Section, Table, write_report
from experiments.reports.pages import (
    closing_sections,
    headlines,
    machine,
    success_sections,
    training_section,
)
from vla.model.checkpoint import which_checkpoint
from vla.training.settings import TrainingResult
from vla.training.validation import HELD_OUT_LOSS

_ERRORS = "validation/error/"


def write_training_page(
    path: Path, result: TrainingResult, *, run_dir: Path, results: Mapping[str, Evaluation], command: str
) -> None:
    """Write the report of a training run.

    Args:
        path: of the page.
        result: how the training ended.
        run_dir: of the run.
        results: of the evaluation after it, by instruction mode; empty without one.
        command: that trained.
    """
    tiles = [Headline(label="samples", value=f"{result.num_samples:,}", note=f"{result.step:,} steps")]
    if HELD_OUT_LOSS in result.metrics:
        value = f"{result.metrics[HELD_OUT_LOSS]:.3f}"
        tiles.append(Headline(label="held-out loss of actions", value=value, note="at the end"))
    end = (
        result.end
        if math.isnan(result.samples_per_s)
        else f"{result.end}, {result.samples_per_s:.0f} samples/s"
    )
    facts = [
        ["end", end],
        ["minutes of training", f"{result.elapsed_s / 60:.1f}"],
        ["newest checkpoint", which_checkpoint(result.checkpoint)],
    ]
    offline = run_dir / "evaluation" / "offline.html"
    if offline.exists():
        facts.append(["compared with held-out episodes", str(offline)])
    write_report(
        path,
        title=f"Training, {run_dir.name}",
        subtitle=machine(),
        headlines=[*tiles, *headlines(results, with_aims=False)],
        sections=[
            *(success_sections(results) if results else []),
            training_section(run_dir / "metrics.jsonl"),
            Table(title="Run", header=["what", ""], rows=facts),
            *_errors(result.metrics),
            *closing_sections([(command, "this run; the same command continues it")]),
        ],
    )


def _errors(metrics: Mapping[str, float]) -> list[Section]:
    rows = [[key.removeprefix(_ERRORS), f"{x:.4g}"] for key, x in metrics.items() if key.startswith(_ERRORS)]
    return (
        [Table(title="Held-out errors", header=["channel", "mean absolute error"], rows=rows)] if rows else []
    )
