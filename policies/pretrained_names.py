"""Pretrained policies that come with the repository: short names in place of paths.

`pretrained/<name>` stands for a folder of `policies/pretrained/`, wherever the path of a checkpoint is taken.
A wheel holds the one that the demo plays, a checkout all. experiments/release.py makes them.
"""

import re
from pathlib import Path

from vla.errors import Refusal, did_you_mean
from vla.files import MANIFEST_NAME
from vla.registry import absolute_path

FOLDER = Path(__file__).with_name("pretrained")
_SHORT = re.compile(r"pretrained/([A-Za-z0-9_.-]+)/?")


class NoPretrainedPolicy(Refusal):
    """There is no pretrained policy of that name."""


def is_short_name(path: str) -> bool:
    """Tell whether this is the short name of a pretrained policy, and no path that exists."""
    return _SHORT.fullmatch(path) is not None and not Path(path).exists()


def policy_path(path: str, *, folder: Path = FOLDER) -> str:
    """Return the absolute path of a policy. A path that exists is taken before a short name.

    Args:
        path: of a checkpoint or a run, or `pretrained/<name>`.
        folder: that holds the pretrained policies.
    """
    match = _SHORT.fullmatch(path)
    return str(folder / match[1]) if match and is_short_name(path) else absolute_path(path)


def pretrained_names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the pretrained policies that are here."""
    return sorted(manifest.parent.name for manifest in folder.glob(f"*/{MANIFEST_NAME}"))


def require_pretrained(path: Path, *, folder: Path = FOLDER) -> None:
    """Check that a place in the folder of the pretrained policies is one of them; other places pass.

    Args:
        path: absolute.
        folder: that holds the pretrained policies.

    Raises:
        NoPretrainedPolicy: it is not; the message says which ones there are.
    """
    if path.parent != folder or path.exists():
        return
    names = pretrained_names(folder)
    if not names:
        raise NoPretrainedPolicy(
            f"there is no pretrained policy {path.name!r}, as {folder} is empty; make a policy with `make "
            "quickstart`, and show it with: python -m experiments.demo path=outputs/quickstart/train"
        )
    raise NoPretrainedPolicy(
        f"there is no pretrained policy {path.name!r}; {did_you_mean(path.name, names)}. A wheel holds the "
        "one of the demo, a checkout all"
    )
