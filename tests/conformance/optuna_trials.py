"""A search of a few trials by Hydra's Optuna sweeper on toy data, run by hand: two minutes on a core.

    python tests/conformance/optuna_trials.py /tmp/optuna

It needs `pip install hydra-optuna-sweeper 'optuna<3' 'sqlalchemy<2'`, prints learning rate and loss of
each trial, and fails unless the best that Optuna found is the least of them.
"""

import os
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from experiments.sweep_table import find_runs, overrides
from vla.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
METRIC, RATE = "validation/action_loss", "trainer.learning_rate"
SEARCH = [
    *("--multirun", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1"),
    *("hydra.sweeper.direction=minimize", "hydra.sweeper.sampler.seed=1", f"metric={METRIC}"),
    f"{RATE}=tag(log,interval(1e-4,3e-2))",
]
TOY = [
    *("plugins=[toy_parts]", "data=toy_points", "model.auxiliaries.later_states=null"),
    *("model.backbone.width=16", "model.backbone.depth=1", "model.backbone.num_heads=2"),
    *("model.backbone.stem_channels=[4,8]", "model.backbone.patch_size=16"),
    *("processor.inputs.text.vocab_size=260", "evaluation.instruction_modes=[]"),
    *("trainer.num_samples=320", "trainer.batch_size=16", "trainer.num_threads=1", "trainer.precision=fp32"),
]


def main(folder: Path) -> None:
    """Search in a folder, and compare what Optuna found with the logs of the trials."""
    paths = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests" / "experiments"), os.environ.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-m", "experiments.train", *SEARCH, *TOY, f"out_dir={folder}"]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths})
    losses = {}
    for run in find_runs([str(folder)]):
        validated = [row for row in read_metrics(run / "metrics.jsonl") if METRIC in row]
        losses[float(overrides(run)[RATE])] = validated[-1][METRIC]
    for rate, loss in losses.items():
        print(f"{RATE} {rate:.2e}  {METRIC} {loss:.4f}")
    found = OmegaConf.load(folder / "optimization_results.yaml")
    best_rate = min(losses, key=lambda rate: losses[rate])
    assert found["best_value"] == losses[best_rate], (found, losses)
    print(f"the best of {len(losses)} trials: {best_rate:.2e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
