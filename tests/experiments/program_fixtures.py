"""Configurations composed as a program composes them."""

from hydra import compose, initialize_config_module

from experiments.config import schema


def composed(root, *overrides):
    """Return the typed configuration of a program."""
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        return schema.typed(compose(root, list(overrides)), schema.ROOTS.get(root))
