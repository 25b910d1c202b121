"""Where the rounds of an improvement lie: its policies, and the demonstrations that each has added."""

import re
from pathlib import Path

_ROUND = re.compile(r"round_([0-9]+)")


def folder(out_dir: Path, number: int) -> Path:
    """Return the directory of a round of the improvement in a directory; 0 is the policy as it came."""
    return out_dir / (f"round_{number}" if number else "before")


def recording(out_dir: Path, number: int) -> Path:
    """Return the demonstrations that a round adds."""
    return folder(out_dir, number) / "dataset"


def recordings(out_dir: Path, number: int) -> list[Path]:
    """Return the demonstrations that the rounds up to one have added, in their order."""
    return [recording(out_dir, one) for one in range(1, number + 1)]


def recordings_behind(out_dir: Path, policy: Path) -> list[Path]:
    """Return the demonstrations that a policy has seen more than the one which the improvement began with.

    Args:
        out_dir: of the improvement, or of another run, which has no rounds.
        policy: a training in there, or one of its checkpoints.
    """
    inside = policy.relative_to(out_dir).parts
    named = _ROUND.fullmatch(inside[0]) if inside else None
    return recordings(out_dir, int(named[1])) if named else []
