"""Muon is the published one in any type; a step computes all its products in the chosen type."""

from pathlib import Path

import pytest
import torch
from training_fixtures import make_processor, make_windows, tiny_model, train_for

from experiments.benchmarks.product_types import ProductTypes
from vla.data.demonstrations import DemonstrationSource
from vla.training.hardware import ProductRates, choose_precision, measure_product_rates
from vla.training.metrics import read_metrics
from vla.training.muon import Muon, orthogonalize
from vla.training.optimizer import WeightAverage, learning_rate_factor
from vla.training.settings import TrainerSettings
from vla.training.trainer import Trainer


def matrices(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(12, 8), (8, 8), (8, 16), (12, 8)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_in_bf16_it_steps_as_the_muon_of_torch() -> None:
    ours, theirs = matrices(0), matrices(0)
    optimizers = [
        Muon(ours, lr=0.01, weight_decay=0.05, product_dtype=torch.bfloat16),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(4):
        for mine, other, gradient in zip(ours, theirs, matrices(step + 1), strict=True):
            mine.grad, other.grad = gradient.detach().clone(), gradient.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0.01 * 0.2 * 4 * 0.1)


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (2, 8, 8)])
def test_orthogonalized_matrices_keep_singular_vectors_and_lose_singular_values(shape) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(given, torch.float32)
    assert torch.linalg.svdvals(result).sub(1).abs().max() < 0.35
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    off_diagonal = left.mT @ result @ right.mT
    off_diagonal.diagonal(dim1=-2, dim2=-1).zero_()
    assert off_diagonal.abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(2, 8, 40), (2, 64, 16)])
def test_wide_matrices_are_treated_alike_by_the_shorter_way(shape) -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(shape, generator=generator) * torch.logspace(0, -4, shape[-1])
    wanted = orthogonalize(given.double(), torch.float64)  # by the plain iteration
    torch.testing.assert_close(orthogonalize(given, torch.float32).double(), wanted, rtol=0, atol=1e-4)


def test_parameters_without_a_gradient_stay() -> None:
    params = matrices(0)
    params[0].grad = torch.ones_like(params[0])
    before = [p.detach().clone() for p in params]
    Muon(params, lr=0.01, weight_decay=0.1, product_dtype=torch.float32).step()
    assert [torch.equal(p, b) for p, b in zip(params, before, strict=True)] == [False, True, True, True]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head", ["parallel", "autoregressive"])
def test_every_product_of_a_step_is_of_the_chosen_type(tmp_path: Path, precision, head) -> None:
    source = DemonstrationSource(make_windows(tmp_path))
    processor = make_processor(source)
    trainer = Trainer(
        TrainerSettings(
            num_samples=32, batch_size=8, learning_rate=1e-3, precision=precision, num_threads=1, device="cpu"
        ),
        model=tiny_model(processor, head=head),
        processor=processor,
        train=source,
        validation=source,
        run_dir=tmp_path / "run",
        provenance={},
    )
    try:
        with ProductTypes() as recorded:
            trainer._train_one(iter(trainer.prefetcher))
    finally:
        trainer.close()
    counted = recorded.counts
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert {dtype for _, dtype in counted} == {wanted}, counted
    assert {"bmm", "baddbmm", "convolution", "convolution_backward"} <= {name for name, _ in counted}


def test_the_faster_type_is_chosen_and_a_resumed_run_keeps_its_own() -> None:
    slow, fast = ProductRates(fp32=60e9, bf16=1e9), ProductRates(fp32=100e9, bf16=400e9)
    assert choose_precision("auto", rates=slow)[0] is torch.float32
    assert choose_precision("auto", rates=fast)[0] is torch.bfloat16
    kept, why = choose_precision("auto", rates=slow, begun_with="bf16")
    assert kept is torch.bfloat16
    assert "trainer.precision=fp32 would be faster here" in why
    assert "fp32 60, bf16 1 GFLOP/s" in why
    assert choose_precision("fp32", rates=fast, begun_with="bf16")[0] is torch.float32
    with pytest.raises(ValueError, match=r"'half' is none of .*trainer\.precision"):
        choose_precision("half", rates=fast)


def test_rates_are_those_of_a_computer(tmp_path: Path) -> None:
    model = tiny_model(make_processor(DemonstrationSource(make_windows(tmp_path))))
    rates = measure_product_rates(model, torch.device("cpu"))
    assert 1e6 < rates.fp32 < 1e15
    assert 1e5 < rates.bf16 < 1e15


def test_the_first_step_already_learns() -> None:
    one_step = 64 / 150_000
    assert 0 < learning_rate_factor(one_step, warmup=0.03) < 0.02
    assert learning_rate_factor(1.0, warmup=0.03) == pytest.approx(0.02)


def test_the_only_step_of_a_run_is_taken_at_the_peak_rate(tmp_path: Path) -> None:
    train_for(tmp_path / "run", tmp_path, steps=1, log_every_steps=1)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["learning_rate"] for row in rows if "learning_rate" in row] == [1e-3]


def test_the_average_moves_by_its_decay() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=0.5)
    torch.nn.init.ones_(model.weight)
    average.update(model)
    expected = 1 - 2 / 11  # the decay of the first update is (1 + 1) / (10 + 1)
    torch.testing.assert_close(average.weights()["weight"], torch.full((1, 2), expected))
