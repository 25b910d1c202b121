"""Configurations composed as a program composes them, and what a running program prints."""

from hydra import compose, initialize_config_module

from experiments.config import schema


def composed(root, *overrides):
    """Return the typed configuration of a program."""
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        return schema.typed(compose(root, list(overrides)), schema.ROOTS.get(root))


def read_until(process, words):
    """All lines up to the one with these words."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"{words!r} never came:\n{''.join(lines)}")
