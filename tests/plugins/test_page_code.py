"""The code of the page on plug-ins, quickly: that of codec and environment is tried by their checks."""

import pytest
import torch
from plugin_pages import imported
from torch import nn

from experiments.checks.robots import check_robot
from experiments.config.robot import ROBOTS
from policies.runtime.clock import SimulatedClock
from vla.interface import ArraySpec, ModelSpecs
from vla.model.interface import Prefix
from vla.model.registry import HEADS
from vla.registry import SettingError


class Behind(nn.Module):
    """Stands for a backbone: what runs behind the prefix sees its mean."""

    width = 8

    def extend(self, values, prefix, *, valid=None, causal):
        return values + prefix.context, prefix


@pytest.fixture
def head(tmp_path, monkeypatch):
    monkeypatch.setattr(HEADS, "_entries", HEADS.entries())
    imported("A head", tmp_path, monkeypatch)
    specs = ModelSpecs(inputs={}, targets={"actions": ArraySpec("float32", (5, 2))}, constants={})

    def build(**settings):
        return HEADS.build({"kind": "regression", **settings}, specs=specs, backbone=Behind())

    return build


def test_the_head_of_the_page_learns_what_is_valid(head):
    torch.manual_seed(0)
    made = head(distance="l2")
    prefix = Prefix(cache=[], valid=torch.ones(3, 1, dtype=torch.bool), context=torch.randn(3, 1, 8))
    batch = {"actions": torch.randn(3, 5, 2), "valid": torch.arange(5) < torch.tensor([[5], [4], [2]])}
    optimizer = torch.optim.Adam(made.parameters(), 0.05)
    losses = []
    for _ in range(60):
        loss = made.loss(Behind(), prefix, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert made.num_terms(batch) == 11
    before = made.loss(Behind(), prefix, batch)["loss"]
    batch["actions"][2, 2:] += 100.0  # behind the end of an episode
    assert torch.equal(before, made.loss(Behind(), prefix, batch)["loss"])
    assert made.sample(Behind(), prefix, {})["actions"].shape == (3, 5, 2)


def test_its_setting_is_checked(head):
    with pytest.raises(SettingError, match=r"head.distance is 'l3'; choose from l1, l2"):
        head(distance="l3")


def test_the_robot_of_the_page_has_no_finding_and_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(ROBOTS, "_entries", ROBOTS.entries())
    monkeypatch.setattr("experiments.checks.robots.OBSERVE_S", 0.5)
    module = imported("A robot", tmp_path, monkeypatch)
    setup = ROBOTS.build({"kind": "slider", "robot_file": str(tmp_path / "slider.yaml")})
    seen = check_robot(setup, {}, seed=0, may_move=True)
    assert seen.findings == []
    clock = SimulatedClock()
    with setup.open({}, seed=0, clock=clock) as slider:
        assert isinstance(slider, module.Slider)
        slider.command([0.5])
        clock.advance(0.1)
        slider.stop()
        there = slider.observe().state[0]
        clock.advance(1.0)
        assert there == slider.observe().state[0]
        assert 0.3 < there < 0.6
