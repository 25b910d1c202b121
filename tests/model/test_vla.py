"""The model: shapes, masks, heads over bins, and what may influence what."""

import pytest
import torch
from model_fixtures import LATER, committed_first, inputs, logits, some_bins, tiny_model, tiny_specs

from vla.interface import PAD_ID
from vla.model.attention import Attention, fuse_attention
from vla.model.masks import attention_bias
from vla.model.vla import ModelConfig, VLAModel

both_heads = pytest.mark.parametrize("head", ["parallel", "autoregressive"])


@both_heads
def test_logits_have_one_categorical_per_time_and_dimension(head: str) -> None:
    found = logits(tiny_model(head), inputs(), some_bins())
    assert found.shape == (3, 4, 3, 16)
    assert torch.isfinite(found).all()


@both_heads
def test_a_broken_model_yields_no_bin(head: str) -> None:
    model = tiny_model(head)
    with torch.no_grad():
        model.head.bin_logits.residual.bias[0] = float("nan")
        bins = model.sample(inputs())["bins"]
    assert (bins[..., 0] == -1).all()


def test_cached_decoding_equals_teacher_forcing() -> None:
    model = tiny_model("autoregressive")
    with torch.no_grad():
        bins = model.sample(inputs())["bins"]
        found = logits(model, inputs(), bins)
    assert torch.equal(found.argmax(dim=-1), bins)


@both_heads
def test_committed_actions_are_kept_and_change_what_follows(head: str) -> None:
    model, bins = tiny_model(head, specs=tiny_specs(committed=True)), some_bins(24)
    with torch.no_grad():
        free = model.sample({**inputs(24), "committed": committed_first(bins, [0] * 24)})["bins"]
        forced = model.sample({**inputs(24), "committed": committed_first(bins, [2] * 24)})["bins"]
        assert torch.equal(free, model.sample(inputs(24))["bins"])
    assert torch.equal(forced[:, :2], bins[:, :2])
    assert (forced[:, 2:] != free[:, 2:]).any()


def test_parallel_logits_see_committed_steps_and_no_others() -> None:
    model, bins = tiny_model(specs=tiny_specs(committed=True)), some_bins()

    def found(bins: torch.Tensor) -> torch.Tensor:
        return logits(model, {**inputs(), "committed": committed_first(bins, [0, 1, 2])}, bins)

    before = found(bins)
    late, early = bins.clone(), bins.clone()
    late[:, 2:], early[:, 0] = 1 - late[:, 2:], 1 - early[:, 0]
    torch.testing.assert_close(before, found(late))
    changed = (found(early) - before).abs().amax(dim=(1, 2, 3))
    assert changed[0] < 1e-5
    assert (changed[1:] > 1e-4).all()


def test_autoregressive_logits_do_not_depend_on_later_actions() -> None:
    model, bins = tiny_model("autoregressive"), some_bins()
    changed = bins.clone()
    changed[:, 2, 1] = 1 - changed[:, 2, 1].clamp(max=1)
    before, after = (logits(model, inputs(), one).flatten(1, 2) for one in (bins, changed))
    position = 2 * 3 + 1
    torch.testing.assert_close(before[:, : position + 1], after[:, : position + 1])
    assert not torch.allclose(before[:, position + 1 :], after[:, position + 1 :])


@pytest.mark.parametrize("name", ["images", "text_ids", "state"])
def test_every_input_reaches_the_actions(name: str) -> None:
    model, given, bins = tiny_model(), inputs(), some_bins()
    before = logits(model, given, bins)
    given[name] = given[name].roll(1, dims=0)
    assert not torch.allclose(before, logits(model, given, bins), atol=1e-4)


def test_samples_of_a_batch_do_not_see_one_another() -> None:
    model, bins = tiny_model(), some_bins()
    together = logits(model, inputs(), bins)
    alone = logits(model, {name: tensor[1:2] for name, tensor in inputs().items()}, bins[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_specs_and_config_rebuild_the_model() -> None:
    model = tiny_model(patch_size=16, auxiliaries=LATER)
    twin = VLAModel(specs=model.specs, config=ModelConfig(**model.config.to_json()))
    assert [p.shape for p in twin.parameters()] == [p.shape for p in model.parameters()]
    assert twin.config.head == {"kind": "parallel", "smoothing_bins": 1.0}, "defaults are spelled out"


def test_the_drawn_masks_are_the_masks() -> None:
    valid = torch.tensor([[True, False, True]])
    causal, both_ways = (
        attention_bias(
            torch.cat((valid, valid.new_ones(1, 3)), dim=1), num_new=3, causal=causal, dtype=torch.float32
        )[0, 0]
        for causal in (True, False)
    )
    assert (causal == 0).int().tolist() == [[1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0], [1, 0, 1, 1, 1, 1]]
    assert (both_ways == 0).int().tolist() == [[1, 0, 1, 1, 1, 1]]


@both_heads
def test_padding_changes_nothing(head: str) -> None:
    model, bins = tiny_model(head, auxiliaries=LATER), some_bins()
    with torch.no_grad():
        model.backbone.token_embedding.weight[PAD_ID] = 0  # as it is made and, having no gradient, stays
    given = inputs()
    given["text_ids"] = given["text_ids"].clamp(min=1)
    given["text_ids"][:, 4:], given["text_ids"][1, 2:] = PAD_ID, PAD_ID
    short = {**given, "text_ids": given["text_ids"][:, :4]}
    alone = {name: tensor[1:2] for name, tensor in given.items()}
    alone["text_ids"] = alone["text_ids"][:, :2]
    with torch.no_grad():
        padded, cut, one = (
            logits(model, given, bins),
            logits(model, short, bins),
            logits(model, alone, bins[1:2]),
        )
        chosen = [model.sample(one)["bins"] for one in (given, short)]
    torch.testing.assert_close(padded, cut, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(padded[1:2], one, rtol=1e-4, atol=1e-4)
    assert torch.equal(*chosen)


def test_what_trains_is_what_the_batch_has_targets_for() -> None:
    model = tiny_model(auxiliaries=LATER)
    batch = {**inputs(), "bins": some_bins(), "valid": torch.ones(3, 4, dtype=torch.bool)}
    later = {"later_states": torch.zeros(3, 1, 5)}
    whole, alone = model.loss({**batch, **later}), model.loss(batch)
    assert set(whole) == {"loss", "action_loss", "token_accuracy", "loss/later"}
    assert set(alone) == {"loss", "action_loss", "token_accuracy"}
    torch.testing.assert_close(whole["loss"], alone["loss"] + 3.0 * whole["loss/later"])
    torch.testing.assert_close(whole["action_loss"], alone["loss"])
    assert set(model.loss({**inputs(), **later})) == {"loss", "loss/later"}
    with pytest.raises(ValueError, match="no targets that this model learns"):
        model.loss(inputs())


def test_fused_attention_is_the_same_attention() -> None:
    model, bins = tiny_model("autoregressive"), some_bins()
    plain = logits(model, inputs(), bins)
    assert fuse_attention(model, torch.device("cpu")) == "attention as plain matrix products"
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused = True
    torch.testing.assert_close(logits(model, inputs(), bins), plain, rtol=1e-4, atol=1e-4)


def test_wrong_sizes_are_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match="conf/model"):
        Attention(width=30, num_heads=4)
    with pytest.raises(ValueError, match="multiple of patch_size"):
        tiny_model(specs=tiny_specs(image_size=40))
    with pytest.raises(ValueError, match=r"model\.head.*'sideways'"):
        tiny_model("sideways")
    with pytest.raises(ValueError, match="two numbers"):
        tiny_model(stem_channels=[8])
    specs = tiny_specs()
    with pytest.raises(ValueError, match=r"inputs \['sound'\], which no part of the model reads"):
        tiny_model(specs=specs._replace(inputs={**specs.inputs, "sound": specs.inputs["state"]}))
    with pytest.raises(ValueError, match=r"learns \['bins'\], but the codec gives \['actions'\]"):
        tiny_model(specs=specs._replace(targets={"actions": specs.inputs["state"]}))
