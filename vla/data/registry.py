"""Training sources by name. To add one, write its file and a line here."""

from vla.data.source import Source
from vla.registry import Registry

SOURCES: Registry[tuple[Source, Source]] = Registry(
    "training source", {"demonstrations": "vla.data.demonstrations:DemonstrationSource"}, maker="open"
)
