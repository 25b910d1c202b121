"""What of draccus is used: `decode` for LeRobot's registry of configurations."""

import dataclasses

from draccus import utils as utils


def decode(registry, values):
    kind = registry.get_known_choices()[values["type"]]
    given = {key: value for key, value in values.items() if key != "type"}
    unknown = sorted(set(given) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise utils.DecodingError(f"the fields {unknown} are not valid for {kind.__name__}")
    return kind(**given)
