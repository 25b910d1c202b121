"""The number that a program returns, so that a sweeper of Hydra such as Optuna's can improve it."""

from collections.abc import Collection, Mapping

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from envs.evaluation.results import Evaluation
from vla.errors import VLAError
from vla.registry import SettingError, did_you_mean

SUCCESS, HELD_OUT = "success/", "validation/"
_ERRORS = f"{HELD_OUT}error/"  # followed by a channel and its unit


class NoSuchMetric(VLAError):
    """A run that is over did not measure what it should return."""


def require_metric(metric: str | None, *, modes: Collection[str], losses: Collection[str]) -> None:
    """Check before a run that it will measure what it is to return.

    Args:
        metric: a name, or None for nothing.
        modes: instruction modes that will be evaluated.
        losses: names of held-out numbers that will be there, `validation/` left out.

    Raises:
        SettingError: it will not, or a sweeper needs a number and none is named.
    """
    offered = [*(f"{SUCCESS}{mode}" for mode in modes), *(f"{HELD_OUT}{loss}" for loss in losses)]
    if metric is None:
        hydra = HydraConfig.get() if HydraConfig.initialized() else None
        sweeper = "basic" if hydra is None else hydra.runtime.choices.get("hydra/sweeper")
        if hydra is not None and hydra.mode == RunMode.MULTIRUN and sweeper != "basic":
            raise SettingError(f"hydra/sweeper={sweeper} needs a number: give metric=, one of {offered}")
        return
    if metric not in offered and not (losses and metric.startswith(_ERRORS)):
        raise SettingError(
            f"metric is {metric!r}, which this run does not measure; {did_you_mean(metric, tuple(offered))}"
        )


def success_rates(results: Mapping[str, Evaluation]) -> dict[str, float]:
    """Return mean success by its name as a metric."""
    return {f"{SUCCESS}{mode}": found.mean_success_rate for mode, found in results.items()}


def objective(metric: str | None, measured: Mapping[str, float]) -> float | None:
    """Return the number of that name; None if none is asked for.

    Raises:
        NoSuchMetric: it was not measured.
    """
    if metric is None:
        return None
    if metric not in measured:
        raise NoSuchMetric(f"metric={metric}, but this run measured {sorted(measured) or 'nothing'} alone")
    return float(measured[metric])
