"""The parts of a model by name. To add one, write its file and a line here."""

from typing import TYPE_CHECKING

from vla.registry import Registry

if TYPE_CHECKING:  # names alone need no torch
    from vla.model.interface import AuxiliaryTarget, Backbone, Embedder, Head

BACKBONES: "Registry[Backbone]" = Registry("backbone", {"scene": "vla.model.backbone:SceneBackbone"})
EMBEDDERS: "Registry[Embedder]" = Registry("embedder", {})
HEADS: "Registry[Head]" = Registry(
    "head",
    {
        "parallel": "vla.model.heads.parallel:ParallelHead",
        "autoregressive": "vla.model.heads.autoregressive:AutoregressiveHead",
        "fast": "vla.model.heads.fast:FastHead",
        "flow": "vla.model.heads.flow:FlowHead",
    },
)
AUXILIARIES: "Registry[AuxiliaryTarget]" = Registry(
    "auxiliary target",
    {
        "later_states": "vla.model.later_states:LaterStates",
        "depth": "vla.model.depth:Depth",
        "keypoints": "vla.model.keypoints:Keypoints",
        "traces": "vla.model.traces:Traces",
        "past_actions": "vla.model.past_actions:PastActions",
    },
)
