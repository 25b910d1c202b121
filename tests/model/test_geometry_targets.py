"""Depth, keypoints, traces, past actions: what is right costs nothing, is learned, and no policy has it."""

import math

import pytest
import torch
from model_fixtures import DIMS, inputs, some_bins, tiny_model, tiny_specs
from torch import Tensor

from vla.geometry import OUTSIDE, VISIBLE
from vla.interface import ArraySpec
from vla.model.depth import Depth
from vla.model.keypoints import Keypoints
from vla.model.past_actions import PastActions
from vla.model.soft_bins import expected_place, soft_bin_loss
from vla.model.traces import Traces
from vla.model.vla import VLAModel

GEOMETRY = {
    "depth": {"kind": "depth", "cells": 8, "bins": 16},
    "keypoints": {"kind": "keypoints", "points": ["hand", "goal"]},
    "traces": {"kind": "traces", "points": ["hand", "goal"], "offsets": [0, 4]},
    "past": {"kind": "past_actions", "offsets": [1, 3]},
}


def targets(batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    traces = torch.rand(batch, 2, 2, 2, 3, generator=generator)
    traces[..., 2] = VISIBLE
    traces[0, 0, 1, 1] = OUTSIDE
    # Planes, each at a distance of its own: maps of 4 x 4 features cannot hold noise of 8 x 8 cells.
    depth = 0.3 + 3 * torch.rand(batch, 2, 1, 1, generator=generator) + 0.1 * torch.arange(8)[:, None]
    depth = depth.expand(-1, -1, 8, 8).clone()
    depth[:, :, 0] = 0.0
    exists = torch.ones(batch, 2, dtype=torch.bool)
    exists[0, 1] = False
    return {
        "depth": depth,
        "points": traces[:, :, 0],
        "traces": traces,
        "past_actions": 2 * torch.rand(batch, 2, DIMS, generator=generator) - 1,
        "past_exists": exists,
    }


def a_batch() -> dict[str, Tensor]:
    return {**inputs(), **targets(), "bins": some_bins(), "valid": torch.ones(3, 4, dtype=torch.bool)}


def parts_of(model: VLAModel) -> tuple[Depth, Keypoints, Traces, PastActions]:
    depth, keypoints, traces, past = (model.auxiliaries[name] for name in GEOMETRY)
    assert isinstance(depth, Depth)
    assert isinstance(keypoints, Keypoints)
    assert isinstance(traces, Traces)
    assert isinstance(past, PastActions)
    return depth, keypoints, traces, past


def test_the_right_distribution_costs_nothing_and_others_do() -> None:
    places = torch.tensor([0.25, 2.0, 3.0, 9.0])  # the last lies beyond the bins
    counts = torch.tensor([True, True, True, False])
    right = torch.full((4, 4), -30.0)
    right[0, 0], right[0, 1], right[1, 2], right[2, 3] = math.log(0.75), math.log(0.25), 0.0, 0.0
    assert float(soft_bin_loss(right, places, counts)) == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(expected_place(right)[:3], places[:3], rtol=0, atol=1e-4)
    assert float(soft_bin_loss(torch.zeros(4, 4), places, counts)) > 1.0
    assert float(soft_bin_loss(right, places, torch.zeros(4, dtype=torch.bool))) == 0.0


def test_depths_are_spread_evenly_in_the_logarithm() -> None:
    depth, _, _, _ = parts_of(tiny_model(auxiliaries=GEOMETRY))
    middle = math.sqrt(depth.near_m * depth.far_m)
    places = depth.places(torch.tensor([0.0, depth.near_m, middle, depth.far_m]))
    torch.testing.assert_close(places, torch.tensor([0.0, 0.0, 7.5, 15.0]))


def test_a_tiny_model_learns_all_by_heart() -> None:
    torch.manual_seed(0)
    model, batch = tiny_model(auxiliaries=GEOMETRY).train(), a_batch()
    depth, keypoints, traces, past = parts_of(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(batch)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        prefix = model.backbone.prefill(batch)
        logits, guesses, acted = depth.logits(prefix), traces.logits(prefix), past.predict(prefix)
        shares = keypoints.logits(prefix).softmax(dim=-1).unflatten(-1, (keypoints.rows, keypoints.columns))
    something = batch["depth"].flatten(2) > 0
    errors = expected_place(logits) - depth.places(batch["depth"].flatten(2))
    assert float(errors[something].abs().mean()) < 1.0, "bins of depth"
    places = (expected_place(guesses) + 0.5) / traces.bins
    is_inside = batch["traces"][..., 2] != OUTSIDE
    assert float((places - batch["traces"][..., :2])[is_inside].abs().mean()) < 0.02, "of the picture's width"
    middles = (torch.arange(keypoints.columns) + 0.5) / keypoints.columns
    found = torch.stack((shares.sum(dim=-2) @ middles, shares.sum(dim=-1) @ middles), dim=-1)
    missed = (found - batch["points"][..., :2].clamp(middles[0], middles[-1]))[is_inside[:, :, 0]]
    assert float(missed.abs().mean()) < 0.06, "of the picture's width"
    missed = (acted - batch["past_actions"])[batch["past_exists"]]
    assert float(missed.abs().mean()) < 0.1


def test_losses_are_logged_by_component_and_count_what_there_is() -> None:
    model, batch = tiny_model(auxiliaries=GEOMETRY), a_batch()
    values, counts = model.loss(batch), model.num_terms(batch)
    total = values["action_loss"] + sum(
        part.weight * values[f"loss/{name}"] for name, part in model.auxiliary_targets().items()
    )
    torch.testing.assert_close(values["loss"], total)
    assert counts["loss/depth"] == 3 * 2 * 7 * 8
    assert counts["loss/keypoints"] == 3 * 2 * 2
    assert counts["loss/traces"] == 2 * (3 * 2 * 2 * 2 - 1)
    assert counts["loss/past"] == 5
    other = {**batch, "traces": batch["traces"].clone(), "past_actions": batch["past_actions"].clone()}
    other["traces"][0, 0, 1, 1, :2] = 0.9  # outside
    other["past_actions"][0, 1] = 9.0  # before the episode began
    again = model.loss(other)
    for name in GEOMETRY:
        torch.testing.assert_close(again[f"loss/{name}"], values[f"loss/{name}"])


def test_what_they_ask_for() -> None:
    assert tiny_model(auxiliaries=GEOMETRY).requests() == {
        "depth": 8,
        "points": ("hand", "goal"),
        "traces": {"points": ("hand", "goal"), "offsets": (0, 4)},
        "past_actions": (1, 3),
    }
    twice = {**GEOMETRY, "more": {"kind": "traces", "offsets": [9]}}
    with pytest.raises(ValueError, match="two auxiliary targets learn 'traces'"):
        tiny_model(auxiliaries=twice).requests()


def test_a_policy_answers_as_without_them() -> None:
    plain, rich = tiny_model(), tiny_model(auxiliaries=GEOMETRY)
    rich.load_state_dict(plain.state_dict(), strict=False)
    for name, answer in plain.sample(inputs()).items():
        assert torch.equal(rich.sample(inputs())[name], answer)


def test_labels_tell_what_each_output_is_of() -> None:
    model = tiny_model(auxiliaries=GEOMETRY)
    names = {"images": ["old", "new"], "action": ["x", "y", "z"], "state": range(5), "text_ids": range(44)}
    names |= {"ids": range(16), "time": range(4)}
    labels, parameters = model.axis_labels(names), dict(model.named_parameters())
    for name in (
        "depth.usual",
        "keypoints.read.weight",
        "traces.read.weight",
        "traces.read.bias",
        "past.actions.weight",
    ):
        key = f"auxiliaries.{name}"
        for axis, entries in enumerate(labels[key]):
            assert entries is None or len(entries) == parameters[key].shape[axis], key
    assert labels["auxiliaries.traces.read.bias"][0][0] == ("old", 0, "hand", "column", 0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="near_m=3 is not below far_m=2"):
        tiny_model(auxiliaries={"depth": {"kind": "depth", "near_m": 3.0, "far_m": 2.0}})
    with pytest.raises(ValueError, match="are none; name some"):
        tiny_model(auxiliaries={"traces": {"kind": "traces", "points": []}})
    ids = tiny_specs()._replace(targets={"fast_ids": ArraySpec("int64", (9,), 16)})
    backbone = tiny_model().backbone
    with pytest.raises(ValueError, match="codec=uniform, quantile or continuous"):
        PastActions(specs=ids, backbone=backbone)
    with pytest.raises(ValueError, match="points=\\[\\] are none; name some"):
        Keypoints(specs=tiny_specs(), backbone=backbone, points=[])
    backbone.feature_map = None
    with pytest.raises(ValueError, match="read off image features"):
        Depth(specs=tiny_specs(), backbone=backbone)
    with pytest.raises(ValueError, match="keypoints are read off image features"):
        Keypoints(specs=tiny_specs(), backbone=backbone)
