"""Exports a checkpoint to a bundle for numpy and onnxruntime, after proving that both answer the same.

    python -m experiments.export checkpoint=outputs/train/tabletop bundle=outputs/bundle

It is tried on the held-out moments that the checkpoint keeps; neither dataset nor simulator is needed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from experiments.config import cli, schema
from experiments.config.trained_setting import describe, read_provenance
from policies.export import ExportReport, export_bundle
from policies.vla_policy import load_policy_checkpoint

schema.register("export")


def export_checkpoint(
    *, checkpoint: Path, bundle: Path, head: Mapping[str, Any] | None = None, replace: bool = False
) -> ExportReport:
    """Write the bundle and return what parity was measured.

    Args:
        checkpoint: directory of a checkpoint or of a training run.
        bundle: directory to make.
        head: settings of the head that no weight depends on, in place of those of training.
        replace: whether an existing bundle gives way.

    Raises:
        ParityError: the graph answers differently; nothing was written.
        FileExistsError: `bundle` exists, and `replace` is false.
        CheckpointError: there is no checkpoint.
    """
    loaded = load_policy_checkpoint(checkpoint, head=head)
    return export_bundle(
        model=loaded.model,
        processor=loaded.processor,
        provenance={**loaded.provenance, "checkpoint_id": loaded.checkpoint_id},
        out_dir=bundle,
        golden_observations=loaded.golden,
        replace=replace,
    )


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="export")
def main(config: DictConfig) -> None:
    """Export."""
    run = schema.typed(config, schema.ExportRun)
    schema.require_inputs(run)
    report = export_checkpoint(
        checkpoint=Path(run.checkpoint), bundle=Path(run.bundle), head=run.head, replace=run.replace
    )
    print(report.table())
    print(describe(read_provenance(Path(run.bundle)) or {}, source=Path(run.bundle), env={}, tasks=[]))


if __name__ == "__main__":
    cli.run(main)
