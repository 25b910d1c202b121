"""Keeps how demonstrations were drawn with a policy, so that it is not evaluated on other pictures."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vla.data.origin import read_extra_info
from vla.errors import VLAError

LOOKS = "recorded_looks"  # in the provenance of a checkpoint and of a bundle
_QUALITY = "render_quality"


class LookDiffers(VLAError):
    """An evaluation would draw in another quality than the demonstrations were drawn in."""


def recorded_looks(datasets: Iterable[str | Path]) -> dict[str, list[str]]:
    """Return the render qualities of recordings by environment family; those of no simulator have none.

    Args:
        datasets: their directories.

    Raises:
        DatasetError: a directory holds no dataset.
    """
    looks: defaultdict[str, set[str]] = defaultdict(set)
    for dataset in datasets:
        env = read_extra_info(Path(dataset)).get("env", {})
        if "family" in env and _QUALITY in env:
            looks[env["family"]].add(env[_QUALITY])
    return {family: sorted(found) for family, found in looks.items()}


def require_recorded_look(provenance: Mapping[str, Any], env: Mapping[str, Any]) -> None:
    """Check that an environment draws as the demonstrations of a policy were drawn.

    Args:
        provenance: of the policy; one of before looks were kept, or of an unknown origin, passes.
        env: the environment of the evaluation.

    Raises:
        LookDiffers: it draws in another quality; the message says which to give.
    """
    recorded = provenance.get(LOOKS, {}).get(env["family"], [])
    if recorded and env.get(_QUALITY) not in recorded:
        raise LookDiffers(
            f"the policy was given demonstrations drawn with {_QUALITY}={' and '.join(recorded)}, but this "
            f"evaluation would draw with {env.get(_QUALITY)}. Give env.{_QUALITY}={recorded[0]}"
        )
