"""What a program returns to a sweeper is named before it runs, and is a number."""

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from program_fixtures import composed

from experiments.objective import NoSuchMetric, objective, require_metric
from experiments.train import require_settings
from vla.registry import SettingError


@pytest.mark.parametrize(
    "metric",
    [
        "success/original",
        "validation/action_loss",
        "validation/loss/later_states",
        "validation/error/delta_x [m]",
    ],
)
def test_what_a_run_measures_can_be_returned(metric: str) -> None:
    require_settings(composed("train", f"metric='{metric}'"))
    assert objective(metric, {metric: 0.25, "other": 1.0}) == 0.25


@pytest.mark.parametrize(
    ("metric", "nearest"),
    [
        ("validation/actionloss", "validation/action_loss"),
        ("success/swapped", "success/original"),
        ("sucess/original", "success/original"),
        ("loss", "validation/loss"),
    ],
)
def test_what_a_run_will_not_measure_is_refused_before_it(metric: str, nearest: str) -> None:
    with pytest.raises(SettingError, match=f"{metric}.*{nearest}"):
        require_settings(composed("train", f"metric={metric}"))
    with pytest.raises(SettingError, match="does not measure"):
        require_metric("validation/action_loss", modes=["original"], losses=())  # as `evaluate` does


def test_nothing_is_returned_unless_asked_for_and_a_missing_number_is_named() -> None:
    assert objective(None, {"success/original": 1.0}) is None
    with pytest.raises(NoSuchMetric, match=r"token_accuracy.*\['validation/action_loss'\]"):
        objective("validation/token_accuracy", {"validation/action_loss": 1.0})


@pytest.mark.parametrize(("sweeper", "is_refused"), [("basic", False), ("optuna", True)])
def test_a_sweeper_that_needs_a_number_is_told_so(
    monkeypatch: pytest.MonkeyPatch, sweeper: str, is_refused: bool
) -> None:
    hydra = OmegaConf.create({"mode": RunMode.MULTIRUN, "runtime": {"choices": {"hydra/sweeper": sweeper}}})
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: hydra))
    if is_refused:
        with pytest.raises(SettingError, match="hydra/sweeper=optuna needs a number"):
            require_metric(None, modes=["original"], losses=["loss"])
    else:
        require_metric(None, modes=["original"], losses=["loss"])
