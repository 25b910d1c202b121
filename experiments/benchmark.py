"""Measures the project's speed next to what the machine can do at most, measured in the same run.

    python -m experiments.benchmark simulation          (or data, training, threads, latency, serving)
    python -m experiments.benchmark training model=vla_small trainer.batch_size=64
    python -m experiments.benchmark training peer_python=/path/to/lerobot/bin/python     (LeRobot next to it)

Prints a table and writes it as JSON and Markdown. Measure on a machine that does nothing else. How each part
is timed is in experiments/benchmarks.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.benchmarks.measure import Row, save, terminal_table
from experiments.collect import collect_dataset
from experiments.config import cli, schema

schema.register("benchmark")


def simulation(run: schema.BenchmarkRun) -> list[Row]:
    """Time the first task of the environment, seen by its first camera.

    Raises:
        ValueError: the environment is not Meta-World, whose own package is what ours is compared with.
    """
    if run.env["family"] != "metaworld":
        raise ValueError(
            f"this part compares Meta-World with its own package; {run.env['family']!r} has none"
        )
    from experiments.benchmarks.simulation import measure

    return measure(
        task=run.tasks[0],
        image_size=run.env["image_size"],
        camera=run.env["cameras"][0],
        execute_horizon=run.evaluation.execute_horizon,
        seed=run.first_seed,
        repeats=run.repeats,
    )


def data(run: schema.BenchmarkRun) -> list[Row]:
    """Time the making of batches."""
    from experiments.benchmarks.data import measure

    record_what_is_read(run)
    return measure(run, repeats=run.repeats)


def training(run: schema.BenchmarkRun) -> list[Row]:
    """Time the trainer."""
    import torch

    from experiments.benchmarks.peers import training_row
    from experiments.benchmarks.training import measure

    record_what_is_read(run)
    rows = measure(run, repeats=run.repeats)
    if run.peer_python is not None:
        ours = next(row.value for row in rows if row.unit == "samples/s")
        threads = run.trainer.num_threads or torch.get_num_threads()
        rows.append(training_row(run, python=run.peer_python, num_threads=threads, ours=ours))
    return rows


def threads(run: schema.BenchmarkRun) -> list[Row]:
    """Time the trainer on one thread, on all and as it chooses, next to busy neighbors."""
    from experiments.benchmarks.threads import measure

    record_what_is_read(run)
    return measure(run, repeats=run.repeats)


def latency(run: schema.BenchmarkRun) -> list[Row]:
    """Time both decodings of the model in every backend, on one thread.

    Raises:
        ValueError: a backend is unknown.
    """
    from experiments.benchmarks.latency import measure
    from experiments.benchmarks.peers import latency_row

    record_what_is_read(run)
    rows = measure(run)
    if run.peer_python is not None:
        rows.append(latency_row(run, python=run.peer_python))
    return rows


def serving(run: schema.BenchmarkRun) -> list[Row]:
    """Time the policy server with a policy that answers at once."""
    from experiments.benchmarks.serving import measure

    return measure(repeats=run.repeats)


PARTS: dict[str, Callable[[schema.BenchmarkRun], list[Row]]] = {
    "simulation": simulation,
    "data": data,
    "training": training,
    "threads": threads,
    "latency": latency,
    "serving": serving,
}


def record_what_is_read(run: schema.BenchmarkRun) -> None:
    """Record what the measurement reads, unless there is a dataset, to which nothing is added."""
    if run.record and not (Path(run.dataset) / "meta" / "info.json").exists():
        from experiments.training_parts import require_trainable

        require_trainable(run)
        collect_dataset(root=Path(run.dataset), env=run.env, tasks=run.tasks, collect=run.collect)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="benchmark")
def main(config: DictConfig) -> None:
    """Measure one part."""
    run = schema.typed(config, schema.BenchmarkRun)
    rows = PARTS[run.part](run)
    command = cli.portable_command("benchmark")
    path = save(rows, part=run.part, command=command, out_dir=Path(HydraConfig.get().runtime.output_dir))
    print(terminal_table(rows))
    print(f"written to {path}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in PARTS:
        sys.argv[1] = f"part={sys.argv[1]}"
    cli.run(main)
