"""The vision-language-action model: a backbone, a head, and auxiliary targets, put together from names.

The model receives specs and arrays. Units, robots and files are none of its business.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.interface import ArraySpec, ModelSpecs
from vla.model.interface import AuxiliaryTarget, AxisLabels, AxisNames, Backbone, Head, Part, Tensors
from vla.model.registry import AUXILIARIES, BACKBONES, HEADS
from vla.registry import Registry


class ModelConfig(NamedTuple):
    """Which parts a model has: each ``{"kind": name, setting: value, ...}``, all settings spelled out."""

    backbone: dict[str, Any]
    head: dict[str, Any]
    auxiliaries: dict[str, dict[str, Any]]  # by a name of the user's choice

    @classmethod
    def complete(
        cls,
        *,
        backbone: Mapping[str, Any],
        head: Mapping[str, Any],
        auxiliaries: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> "ModelConfig":
        """Return checked parts with the defaults of all settings that are not given.

        An auxiliary target that is None is left out.

        Raises:
            ValueError: a kind or a setting is unknown, or a value is out of range.
        """
        return cls(
            backbone=_completed(BACKBONES, backbone, where="model.backbone"),
            head=_completed(HEADS, head, where="model.head"),
            auxiliaries={
                name: _completed(AUXILIARIES, part, where=f"model.auxiliaries.{name}")
                for name, part in (auxiliaries or {}).items()
                if part is not None
            },
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return self._asdict()

    def with_head(self, changes: Mapping[str, Any]) -> "ModelConfig":
        """Return the parts with other settings of the head, such as the number of its sampling steps.

        Raises:
            ValueError: a setting does not exist, or weights depend on it.
        """
        may = HEADS.get(self.head["kind"]).changeable
        wrong = sorted(set(changes) - set(may))
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} of head {self.head['kind']!r} cannot be changed after training; "
                f"what can be changed: {list(may) or 'nothing'}"
            )
        return self._replace(head=_completed(HEADS, {**self.head, **changes}, where="head"))


def _completed(registry: Registry[Any], part: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    given = registry.check(part, where=where)
    defaults = {setting.name: setting.default for setting in registry.settings(part["kind"])}
    values = {**defaults, **given}
    return {"kind": part["kind"]} | {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
    }


class VLAModel(nn.Module):
    """A model with random weights, drawn from torch's generator.

    Raises:
        ValueError: the parts do not fit one another or the specs; the message says what to change.
    """

    def __init__(self, *, specs: ModelSpecs, config: ModelConfig) -> None:
        super().__init__()
        self.specs, self.config = specs, config
        self.backbone: Backbone = BACKBONES.build(config.backbone, where="model.backbone", specs=specs)
        self.head: Head = HEADS.build(config.head, where="model.head", specs=specs, backbone=self.backbone)
        self.backbone.reset_token_embedding()
        self.auxiliaries = nn.ModuleDict(
            {
                name: AUXILIARIES.build(
                    part, where=f"model.auxiliaries.{name}", specs=specs, backbone=self.backbone
                )
                for name, part in config.auxiliaries.items()
            }
        )
        unread = sorted(set(specs.inputs) - {*self.backbone.reads, *self.head.reads})
        if unread and set(unread) <= {"committed", "num_committed"}:
            raise ValueError(
                f"model.head={config.head['kind']} does not read committed actions; give "
                "processor.max_committed=0, or another model/head"
            )
        if unread:
            raise ValueError(
                f"the processor makes the inputs {unread}, which no part of the model reads; add an embedder "
                "to model.backbone.embedders, or take them out of processor.inputs"
            )

    def num_parameters(self) -> int:
        """Count all weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def noise_specs(self, *, training: bool) -> Mapping[str, ArraySpec]:
        """Return the arrays of standard normal noise that `loss` or `sample` takes besides the inputs."""
        return self.head.noise_specs(training=training)

    def requests(self) -> Mapping[str, Any]:
        """Return what the auxiliary targets ask the training source for.

        Raises:
            ValueError: two of them ask for the same in different ways.
        """
        requests: dict[str, Any] = {}
        for part in self.auxiliary_targets().values():
            for name, value in part.requests().items():
                if requests.setdefault(name, value) != value:
                    raise ValueError(
                        f"two auxiliary targets learn {name!r}, one with {requests[name]}, one with {value}; "
                        "give both the same settings, or leave one out of model.auxiliaries"
                    )
        return requests

    def auxiliary_targets(self) -> Mapping[str, AuxiliaryTarget]:
        """Return the auxiliary targets by name."""
        return {name: part for name, part in self.auxiliaries.items() if isinstance(part, AuxiliaryTarget)}

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return what the entries of the parameters stand for; see `Part.axis_labels`."""
        auxiliaries = {f"auxiliaries.{name}": part for name, part in self.auxiliary_targets().items()}
        parts: dict[str, Part] = {"backbone": self.backbone, "head": self.head, **auxiliaries}
        return {
            f"{part}.{name}": labels
            for part, module in parts.items()
            for name, labels in module.axis_labels(names).items()
        }

    def loss(self, batch: Tensors, shares: Tensors | None = None) -> dict[str, Tensor]:
        """Return the `loss` of a batch, its parts, and what else is worth a curve, each a scalar.

        The parts are `action_loss`, that of the head, and `loss/<name>` of each auxiliary target, not yet
        weighted. What trains is what the batch has targets for.

        Args:
            batch: inputs, targets, `valid` and noise.
            shares: by what the values of the head (`loss`) and of each auxiliary target (`loss/<name>`) are
                multiplied, scalars; by nothing if None. With the share of each batch in the terms of all of
                them, see `num_terms`, the sum over batches is the value of one large batch.
        """
        prefix = self.backbone.prefill(batch)
        values: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        if set(self.head.learns) <= set(batch):
            values = self.head.loss(self.backbone, prefix, batch)
            if shares is not None:
                values = {name: value * shares["loss"] for name, value in values.items()}
            values["action_loss"] = values["loss"]
            losses.append(values["loss"])
        for name, part in self.auxiliary_targets().items():
            if set(part.learns) <= set(batch):
                key, value = f"loss/{name}", part.loss(prefix, batch)
                values[key] = value if shares is None else value * shares[key]
                losses.append(part.weight * values[key])
        if not losses:
            raise ValueError(f"the batch has no targets that this model learns; it has {sorted(batch)}")
        return {**values, "loss": torch.stack(losses).sum()}

    def num_terms(self, batch: Tensors) -> dict[str, Tensor]:
        """Return over how many terms the losses of a batch are means: `loss` of the head, `loss/<name>`.

        What the batch has no targets for has none.
        """
        parts: dict[str, Head | AuxiliaryTarget] = {
            "loss": self.head,
            **{f"loss/{name}": part for name, part in self.auxiliary_targets().items()},
        }
        return {
            name: part.num_terms(batch) if set(part.learns) <= set(batch) else torch.zeros(())
            for name, part in parts.items()
        }

    def sample(self, inputs: Tensors) -> dict[str, Tensor]:
        """Return what the codec decodes, for inputs and noise."""
        outputs = self.head.sample(self.backbone, self.backbone.prefill(inputs), inputs)
        half = (torch.bfloat16, torch.float16)  # what autocast leaves; NumPy and codecs know float32
        return {name: value.float() if value.dtype in half else value for name, value in outputs.items()}

    def margins(self, inputs: Tensors, outputs: Tensors) -> Float[Tensor, " batch"]:
        """Return by how much the closest choice of each answer was won, in logits."""
        return self.head.margins(self.backbone, self.backbone.prefill(inputs), inputs, outputs)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        """Return `loss(batch)`."""
        return self.loss(batch)
