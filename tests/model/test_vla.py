"""The model: shapes, masks, decodings, and what may influence what."""

import pytest
import torch

from vla.model.attention import Attention
from vla.model.generation import generate
from vla.model.masks import padding_bias, suffix_bias
from vla.model.sizes import ModelSizes
from vla.model.vla import PAD_ID, VLAModel


def tiny_model(decoding: str = "parallel", **changes: object) -> VLAModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 60,
        "num_bins": 16,
        "action_offset": 44,
        "bins_per_dim": [16, 16, 2],
        "action_horizon": 4,
        "num_images": 2,
        "image_size": 32,
        "state_dim": 5,
        "max_text_tokens": 6,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "stem_channels": [8, 16],
        "decoding": decoding,
    }
    model = VLAModel(ModelSizes(**{**sizes, **changes}))  # type: ignore[arg-type]
    for parameter in model.parameters():  # zero-initialised branches would hide faults
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(0, 256, (batch, 2, 32, 32, 3), dtype=torch.uint8, generator=generator),
        torch.randint(0, 44, (batch, 6), generator=generator),
        torch.randn(batch, 5, generator=generator),
        torch.randint(0, 2, (batch, 4, 3), generator=generator),
    )


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
def test_logits_have_one_categorical_per_time_and_dimension(decoding: str) -> None:
    logits = tiny_model(decoding)(*inputs())
    assert logits.shape == (3, 4, 3, 16)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
def test_no_illegal_bin_is_ever_generated(decoding: str) -> None:
    model = tiny_model(decoding)
    with torch.no_grad():
        model.action_head.free.bias[5] = 1e4  # an illegal bin of the last dimension, as attractive as can be
        bins = generate(model, *inputs()[:3])
    assert bins.shape == (3, 4, 3)
    assert (bins[..., 2] < 2).all()


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
def test_a_broken_model_yields_no_bin(decoding: str) -> None:
    model = tiny_model(decoding)
    with torch.no_grad():
        model.action_head.free.bias[0] = float("nan")
        bins = generate(model, *inputs()[:3])
    assert (bins[..., 0] == -1).all()


def test_cached_decoding_equals_teacher_forcing() -> None:
    model = tiny_model("autoregressive")
    images, text_ids, state, _ = inputs()
    with torch.no_grad():
        bins = generate(model, images, text_ids, state)
        logits = model(images, text_ids, state, bins)
    assert torch.equal(logits.argmax(dim=-1), bins)


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
def test_committed_actions_are_kept_and_change_what_follows(decoding: str) -> None:
    model = tiny_model(decoding, max_committed=2)
    images, text_ids, state, bins = inputs(24)
    nothing = torch.full_like(bins, -1)
    committed = nothing.clone()
    committed[:, :2] = bins[:, :2]
    with torch.no_grad():
        free = generate(model, images, text_ids, state, nothing)
        forced = generate(model, images, text_ids, state, committed)
        assert torch.equal(free, generate(model, images, text_ids, state))
    assert torch.equal(forced[:, :2], bins[:, :2])
    assert (forced[:, 2:] != free[:, 2:]).any()


def test_parallel_logits_see_committed_steps_and_no_others() -> None:
    model = tiny_model(max_committed=2)
    images, text_ids, state, bins = inputs()
    count = torch.tensor([0, 1, 2])

    def logits(bins: torch.Tensor) -> torch.Tensor:
        return model.forward_with_future(images, text_ids, state, bins, num_committed=count)[0]

    before = logits(bins)
    late, early = bins.clone(), bins.clone()
    late[:, 2:], early[:, 0] = 1 - late[:, 2:], 1 - early[:, 0]
    torch.testing.assert_close(before, logits(late))
    changed = (logits(early) - before).abs().amax(dim=(1, 2, 3))
    assert changed[0] < 1e-5
    assert (changed[1:] > 1e-4).all()


def test_autoregressive_logits_do_not_depend_on_later_actions() -> None:
    model = tiny_model("autoregressive")
    images, text_ids, state, bins = inputs()
    changed = bins.clone()
    changed[:, 2, 1] = 1 - changed[:, 2, 1].clamp(max=1)
    before, after = model(images, text_ids, state, bins), model(images, text_ids, state, changed)
    position = 2 * 3 + 1
    before, after = before.flatten(1, 2), after.flatten(1, 2)
    torch.testing.assert_close(before[:, : position + 1], after[:, : position + 1])
    assert not torch.allclose(before[:, position + 1 :], after[:, position + 1 :])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_input_reaches_the_actions(which: int) -> None:
    model = tiny_model()
    arguments = list(inputs())
    before = model(*arguments)
    arguments[which] = arguments[which].roll(1, dims=0)
    assert not torch.allclose(before, model(*arguments), atol=1e-4)


def test_samples_of_a_batch_do_not_see_one_another() -> None:
    model = tiny_model()
    together = model(*inputs())
    alone = model(*(tensor[1:2] for tensor in inputs()))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_hyperparameters_rebuild_the_model() -> None:
    model = tiny_model(patch_size=16)
    twin = VLAModel(ModelSizes(**model.sizes.to_json()))
    assert [p.shape for p in twin.parameters()] == [p.shape for p in model.parameters()]


def test_the_drawn_masks_are_the_masks() -> None:
    prefix = padding_bias(torch.tensor([[True, False, True]]), torch.float32)
    causal = suffix_bias(prefix, num_suffix=3, causal=True)[0, 0]
    assert (causal == 0).int().tolist() == [[1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0], [1, 0, 1, 1, 1, 1]]
    both_ways = suffix_bias(prefix, num_suffix=3, causal=False)[0, 0]
    assert (both_ways == 0).int().tolist() == [[1, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("decoding", ["parallel", "autoregressive"])
def test_padding_changes_nothing(decoding: str) -> None:
    model = tiny_model(decoding, num_future_states=1)
    with torch.no_grad():
        model.token_embedding.weight[PAD_ID] = 0  # as it is made and, having no gradient, stays
    images, text_ids, state, bins = inputs()
    text_ids = text_ids.clamp(min=1)
    text_ids[:, 4:], text_ids[1, 2:] = PAD_ID, PAD_ID
    with torch.no_grad():
        padded = model.forward_with_future(images, text_ids, state, bins)
        short = model.forward_with_future(images, text_ids[:, :4], state, bins)
        alone = model.forward_with_future(images[1:2], text_ids[1:2, :2], state[1:2], bins[1:2])
        chosen = [generate(model, images, text, state) for text in (text_ids, text_ids[:, :4])]
    for long, cut, one in zip(padded, short, alone, strict=True):
        torch.testing.assert_close(long, cut, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(long[1:2], one, rtol=1e-4, atol=1e-4)
    assert torch.equal(*chosen)


def test_wrong_sizes_are_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match="conf/model"):
        Attention(width=30, num_heads=4)
    with pytest.raises(ValueError, match="multiple of patch_size"):
        tiny_model(image_size=40)
    with pytest.raises(ValueError, match="none of"):
        tiny_model("sideways")
    with pytest.raises(ValueError, match="bins_per_dim"):
        tiny_model(bins_per_dim=[17, 16, 2])
