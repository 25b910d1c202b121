"""Which parameters train: patterns, optimizers that leave frozen parts alone, and slower parts."""

import pytest
import torch
from training_fixtures import make_processor, make_windows, tiny_model

from vla.data.demonstrations import DemonstrationSource
from vla.registry import SettingError
from vla.training.optimizer import make_optimizers, set_learning_rate
from vla.training.parts import freeze_parameters, learning_rate_scales, parts_table

NAMES = ["backbone.trunk.blocks.0.up.weight", "backbone.image_tokenizer.position", "head.position"]


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(
        SettingError, match=r"trainer\.freeze: no parameter matches 'hed\.position'; .*head\.pos"
    ):
        learning_rate_scales(NAMES, freeze=["hed.position"], scales={})
    message = (
        r"trainer\.learning_rate_scale: no parameter matches 'vision\.\*'.*backbone\.image_tokenizer\.\*"
    )
    with pytest.raises(SettingError, match=message):
        learning_rate_scales(NAMES, freeze=[], scales={"vision.*": 0.5})
    with pytest.raises(SettingError, match=r"freezes all 3 parameters"):
        learning_rate_scales(NAMES, freeze=["*"], scales={})


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_frozen_parts_have_no_gradient_and_scaled_ones_learn_by_so_much(tmp_path, kind: str) -> None:
    source = DemonstrationSource(make_windows(tmp_path))
    processor = make_processor(source)
    moved = {}
    for scale in (1.0, 0.5):
        model = tiny_model(processor)
        names = [name for name, _ in model.named_parameters()]
        scales = learning_rate_scales(
            names, freeze=["backbone.image_tokenizer.*"], scales={"*.blocks.*": scale}
        )
        freeze_parameters(model, scales)
        optimizers = make_optimizers(
            model,
            kind=kind,
            weight_decay=0.0,
            betas=(0.9, 0.98),
            product_dtype=torch.float32,
            scales=scales,
        )
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        batch = source.batch(torch.arange(4).numpy(), processor=processor, requests={}, seed=None)
        model.loss({name: torch.from_numpy(array) for name, array in batch.items()})["loss"].backward()
        set_learning_rate(optimizers, 0.01)
        for optimizer in optimizers:
            optimizer.step()
        moved[scale] = {name: (p - before[name]).detach().norm() for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            if name.startswith("backbone.image_tokenizer."):
                assert parameter.grad is None
                assert moved[scale][name] == 0
    up, head = "backbone.trunk.blocks.1.down.weight", "head.bin_logits.residual.weight"
    assert moved[1.0][up] > 0
    torch.testing.assert_close(moved[0.5][up], 0.5 * moved[1.0][up], rtol=1e-3, atol=0)
    torch.testing.assert_close(moved[0.5][head], moved[1.0][head])


def test_only_muon_is_left_where_all_else_is_frozen(tmp_path) -> None:
    model = tiny_model(make_processor(DemonstrationSource(make_windows(tmp_path))))
    scales = {name: float("blocks." in name and p.ndim == 2) for name, p in model.named_parameters()}
    (optimizer,) = make_optimizers(
        model, kind="muon", weight_decay=0.1, betas=(0.9, 0.98), product_dtype=torch.float32, scales=scales
    )
    assert type(optimizer).__name__ == "Muon"
    table = parts_table(model, scales=scales, kept=None)
    assert any(line.startswith("head.position") and line.endswith("frozen") for line in table)
