"""What produced a result: versions of the interpreter, of the packages that matter and of this repository."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("mujoco", "numpy", "gymnasium", "metaworld", "torch", "onnxruntime")


def software_versions() -> dict[str, str]:
    """Return versions by name; packages that are not installed are left out. Imports none of them."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions | {"revision": source_revision()}


def source_revision() -> str:
    """Return the git commit of the source, ``+changes`` added when files differ from it, or ``unknown``."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "--no-optional-locks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
