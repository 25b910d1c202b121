"""The heads of pi0: FAST never answers what is no chunk; flow matching follows its velocity."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_fixtures import DIMS, HORIZON, inputs, tiny_model, tiny_specs

from vla.interface import NOTHING, ArraySpec
from vla.processing.fast import FastCodec

FLOW_COMMITTED = {
    "committed": ArraySpec("float32", (HORIZON, DIMS)),
    "num_committed": ArraySpec("int64", ()),
}


def flow_specs(*, committed: bool = False):
    specs = tiny_specs()
    given = {**specs.inputs, **FLOW_COMMITTED} if committed else specs.inputs
    return specs._replace(inputs=given, targets={"actions": ArraySpec("float32", (HORIZON, DIMS))})


@pytest.fixture(scope="module")
def codec() -> FastCodec:
    rng = np.random.default_rng(0)
    start, end = rng.uniform(-1, 1, size=(2, 400, 1, DIMS))
    chunks = (start + (end - start) * np.linspace(0, 1, HORIZON)[:, None]).astype(np.float32)
    limits = np.ones(DIMS, dtype=np.float32)
    return FastCodec.fit(chunks[:, 0], chunks, low=-limits, high=limits, scale=4.0, vocab_size=128)


def fast_specs(codec: FastCodec, *, committed: bool = False):
    specs = tiny_specs()
    given = {**specs.inputs, **FLOW_COMMITTED} if committed else specs.inputs
    return specs._replace(inputs=given, targets=dict(codec.specs()), constants=codec.constants())


@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.01, 30.0))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fast_answers_is_a_whole_chunk(codec: FastCodec, seed: int, spread: float) -> None:
    model = tiny_model("fast", specs=fast_specs(codec))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_(std=spread)
        ids = model.sample(inputs(5))["action_ids"]
    assert ids.shape == (5, HORIZON * DIMS)
    actions = codec.decode({"action_ids": ids.numpy()})
    assert np.isfinite(actions).all()
    assert (np.abs(actions) <= 1).all()


def test_cached_decoding_of_fast_equals_teacher_forcing(codec: FastCodec) -> None:
    for committed in (False, True):
        model = tiny_model("fast", specs=fast_specs(codec, committed=committed))
        given_inputs = inputs(6)
        if committed:
            values = torch.randn(6, HORIZON, DIMS, generator=torch.Generator().manual_seed(3))
            given_inputs |= {"committed": values, "num_committed": torch.tensor([0, 1, 2, 0, 1, 2])}
        with torch.no_grad():
            ids = model.sample(given_inputs)["action_ids"]
            prefix = model.backbone.prefill(given_inputs)
            logits = model.head.logits(model.backbone, prefix, {**given_inputs, "action_ids": ids})
        is_id = ids != NOTHING
        assert torch.equal(logits.argmax(dim=-1)[is_id], ids[is_id])


def test_a_sequence_of_fast_does_not_depend_on_longer_ones_in_its_batch(codec: FastCodec) -> None:
    model = tiny_model("fast", specs=fast_specs(codec))
    with torch.no_grad():
        together = model.sample(inputs(8))["action_ids"]
        for row in range(8):
            alone = model.sample({name: tensor[row : row + 1] for name, tensor in inputs(8).items()})
            assert torch.equal(alone["action_ids"][0], together[row])
    assert len({int((row != NOTHING).sum()) for row in together}) > 1, "all are of one length"


def test_a_broken_fast_model_answers_what_does_not_decode(codec: FastCodec) -> None:
    model = tiny_model("fast", specs=fast_specs(codec))
    with torch.no_grad():
        model.head.logits_out.bias[0] = float("nan")
        ids = model.sample(inputs())["action_ids"]
    with pytest.raises(ValueError, match="hold the last command"):
        codec.decode({"action_ids": ids.numpy()})


def flow_batch(batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        **inputs(batch),
        "actions": torch.randn(batch, HORIZON, DIMS, generator=generator),
        "noise": torch.randn(batch, HORIZON, DIMS, generator=generator),
        "noise_time": torch.randn(batch, generator=generator),
        "valid": torch.ones(batch, HORIZON, dtype=torch.bool),
    }


def test_with_the_true_velocity_any_number_of_steps_ends_at_the_actions(monkeypatch) -> None:
    model, batch = tiny_model("flow", specs=flow_specs()), flow_batch()
    velocity = batch["actions"] - batch["noise"]
    monkeypatch.setattr(model.head, "velocity", lambda prefix, noisy, times: velocity)
    for num_steps in (1, 3, 10):
        model.head.num_steps = num_steps
        torch.testing.assert_close(model.sample(batch)["actions"], batch["actions"], rtol=0, atol=1e-5)
    assert float(model.loss(batch)["loss"]) < 1e-10


def test_times_are_early_more_often_than_late(monkeypatch) -> None:
    """Beta(1.5, 1) mirrored: the mean is 0.4 (times 0.999)."""
    model, seen = tiny_model("flow", specs=flow_specs()), []

    def record(prefix, noisy, times):
        seen.append(times)
        return torch.zeros_like(noisy)

    monkeypatch.setattr(model.head, "velocity", record)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        model.loss({**flow_batch(64), "noise_time": torch.randn(64, generator=generator)})
    times = torch.cat(seen)[:, 0]
    assert 0 <= float(times.min()) < 0.01 < 0.9 < float(times.max()) <= 0.999
    assert abs(float(times.mean()) - 0.4) < 0.02


def test_committed_and_missing_steps_carry_no_flow_loss() -> None:
    model, batch = tiny_model("flow", specs=flow_specs(committed=True)), flow_batch()
    batch |= {"committed": batch["actions"].clone(), "num_committed": torch.tensor([0, 1, 2])}
    batch["valid"][0, 3] = False
    with torch.no_grad():
        before = model.loss(batch)["loss"]
        late = {**batch, "noise": batch["noise"].clone()}
        late["noise"][2, :2] += 1.0  # of committed steps: they stand at their actions
        torch.testing.assert_close(model.loss(late)["loss"], before)
        late["noise"][2, 2] += 1.0
        assert model.loss(late)["loss"] != before


def test_what_may_change_after_training_is_said() -> None:
    config = tiny_model("flow", specs=flow_specs()).config
    assert config.with_head({"num_steps": 2}).head["num_steps"] == 2
    with pytest.raises(ValueError, match=r"'expert_width' of head 'flow' cannot be changed.*\['num_steps'\]"):
        config.with_head({"expert_width": 8})
    with pytest.raises(ValueError, match=r"num_steps is 11"):
        config.with_head({"num_steps": 11})
