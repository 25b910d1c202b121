"""Exports a checkpoint to a bundle for numpy and onnxruntime, after proving that both answer the same.

    python -m experiments.export checkpoint=outputs/train/tabletop bundle=outputs/bundle

Golden observations are rendered in the environments. Knows nothing of the graph; policies/export.py does.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.config import cli, schema
from experiments.config.simulation import sample_observations
from policies.export import ExportReport, export_bundle
from vla.training.checkpoint import load_policy_checkpoint

schema.register()


def export_checkpoint(
    *,
    checkpoint: Path,
    bundle: Path,
    env: schema.EnvConfig,
    tasks: Sequence[str],
    num_golden: int,
    golden_seed: int,
    replace: bool = False,
) -> ExportReport:
    """Write the bundle and return what parity was measured.

    Raises:
        ParityError: the graph answers differently; nothing was written.
        FileExistsError: `bundle` exists, and `replace` is false.
        CheckpointError: there is no checkpoint.
    """
    loaded = load_policy_checkpoint(checkpoint)
    chosen = tasks[:: math.ceil(len(tasks) / num_golden)]
    observations = sample_observations(
        env,
        chosen,
        num_per_task=math.ceil(num_golden / len(chosen)),
        first_seed=golden_seed,
        num_frames=len(loaded.processor.frame_offsets),
    )
    return export_bundle(
        model=loaded.model,
        processor=loaded.processor,
        provenance={**loaded.provenance, "checkpoint_id": loaded.checkpoint_id},
        out_dir=bundle,
        golden_observations=observations,
        replace=replace,
    )


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="export")
def main(config: DictConfig) -> None:
    """Export."""
    run = schema.typed(config, schema.ExportRun)
    report = export_checkpoint(
        checkpoint=Path(run.checkpoint),
        bundle=Path(run.bundle),
        env=run.env,
        tasks=run.tasks,
        num_golden=run.num_golden,
        golden_seed=run.golden_seed,
        replace=run.replace,
    )
    print(report.table())


if __name__ == "__main__":
    cli.run(main)
