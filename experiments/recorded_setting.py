"""Keeps with a policy the setting of its demonstrations, so that it is put to work where it belongs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.registry import ENVIRONMENTS, with_current_names
from experiments.config.trained_setting import TrainedSetting
from vla.data.origin import read_extra_info

_SHARE = "same_color_share"  # may be another one while recording


def recorded_setting(
    datasets: Iterable[str | Path],
    *,
    tasks: Sequence[str],
    cameras: Sequence[str],
    env: Mapping[str, Any],
    recording_same_color_share: float | None,
) -> TrainedSetting | None:
    """Return the setting of recordings in simulation; None if no simulator made them.

    Args:
        datasets: their directories.
        tasks: that the policy is trained on.
        cameras: that it sees.
        env: the environment of the run.
        recording_same_color_share: that share while the run records, where it is another one; what the policy
            is measured on has that of `env`.

    Raises:
        DatasetError: a directory holds no dataset.
    """
    drawn = [with_current_names(read_extra_info(Path(dataset)).get("env", {})) for dataset in datasets]
    drawn = [one for one in drawn if "family" in one]
    if not drawn:
        return None
    family = drawn[0]["family"]
    drawn = [one for one in drawn if one["family"] == family]
    if family == env["family"] and recording_same_color_share is not None:
        for one in drawn:
            if one.get(_SHARE) == recording_same_color_share:
                one[_SHARE] = env[_SHARE]
    varied = {}
    for key in dict.fromkeys(key for one in drawn for key in one):
        values = [one.get(key) for one in drawn]
        distinct = [value for i, value in enumerate(values) if value not in values[:i]]
        if len(distinct) > 1 and key != "cameras":
            varied[key] = distinct
    seen = {"cameras": list(cameras)} if "cameras" in drawn[0] else {}
    known = ENVIRONMENTS.get(family).TASKS if family in ENVIRONMENTS.names() else ()
    in_order = [task for task in known if task in tasks] + [task for task in tasks if task not in known]
    return TrainedSetting(env={**drawn[0], **seen}, tasks=in_order, varied=varied)
