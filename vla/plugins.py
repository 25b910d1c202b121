"""The plug-ins that a policy was trained with, named in the provenance of checkpoints and bundles.

A plug-in is a module of the user that adds parts by name. The provenance holds
``{"plugins": {"mylab": "1.2"}}``: each module with its `__version__`, or null. A file never has a module
imported; only the user does.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla.errors import VLAError
from vla.registry import UnknownPart

PLUGINS = "plugins"  # the key in provenance
READS_VERSIONS = "READS_VERSIONS"  # a plug-in's tuple of earlier versions whose policies it still reads


class PluginError(VLAError):
    """A policy needs a plug-in that is not here, or is here in another version."""


def plugin_version(module: str) -> str | None:
    """Return the `__version__` of an imported module, or None if it has none."""
    version = vars(sys.modules[module]).get("__version__")
    return None if version is None else str(version)


def missing_plugin(error: UnknownPart, provenance: Mapping[str, Any], *, source: Path) -> PluginError:
    """Return the error for a part of a stored policy whose name stands for nothing here.

    Args:
        error: says which.
        provenance: of the policy; it may name plug-ins.
        source: directory of the policy.
    """
    missing = [name for name in _recorded(provenance) if name not in sys.modules]
    if missing:
        versions = ", ".join(_called(name, version) for name, version in _recorded(provenance).items())
        way_out = (
            f"it was trained with the plug-ins {versions}. Pass plugins=[{','.join(missing)}] (names of "
            "modules, or paths of their files; in Python import them before)"
        )
    else:
        way_out = "if a plug-in of yours adds it, pass plugins=[<its module>] (in Python import it before)"
    return PluginError(f"{source} has a part that is unknown here: {error}; {way_out}")


def require_versions(provenance: Mapping[str, Any], *, source: Path) -> None:
    """Check that the plug-ins that are imported have the versions that a policy was trained with.

    A plug-in says with ``READS_VERSIONS = ("1.0",)`` that it reads what an earlier version of it wrote.

    Args:
        provenance: of the policy.
        source: its directory.

    Raises:
        PluginError: one has another version.
    """
    for name, trained_with in _recorded(provenance).items():
        if trained_with is None or name not in sys.modules:
            continue
        here, module = plugin_version(name), sys.modules[name]
        if trained_with not in (here, *vars(module).get(READS_VERSIONS, ())):
            raise PluginError(
                f"{source} was trained with plug-in {_called(name, trained_with)}, but {module.__file__} is "
                f"{'without version' if here is None else here}. Pass the file of version {trained_with}, "
                f'train again, or write {READS_VERSIONS} = ("{trained_with}",) in it if it reads what that '
                "wrote"
            )


def _recorded(provenance: Mapping[str, Any]) -> dict[str, str | None]:
    recorded = provenance.get(PLUGINS, {})
    return dict(recorded) if isinstance(recorded, Mapping) else {}


def _called(name: str, version: str | None) -> str:
    return name if version is None else f"{name} {version}"
