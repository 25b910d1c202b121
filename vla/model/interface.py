"""The joints of the model: what a backbone, an embedder, a head and an auxiliary target are.

    inputs -> Backbone.prefill -> Prefix -> Head.sample -> outputs      (a policy)
                                         -> Head.loss, AuxiliaryTarget.loss      (training)

Each is an `nn.Module` in a file of its own, found by name in registry.py. All of them receive `ModelSpecs`,
which say what the arrays look like; sizes travel by no other way.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.interface import ArraySpec, ModelSpecs
from vla.model.attention import KeyValue

Tensors = Mapping[str, Tensor]  # by name; the first axis is the batch
AxisNames = Mapping[str, Sequence[Hashable]]  # of images, text_ids, state, action, time and ids of actions
AxisLabels = Mapping[str, tuple[Sequence[Hashable] | None, ...]]  # by parameter, for each axis


class Prefix(NamedTuple):
    """What a head looks back at: all inputs, and the suffix as far as it has come."""

    cache: list[KeyValue]  # keys and values of each block
    valid: Bool[Tensor, "batch n"]  # False where a token is padding, which nobody attends to
    context: Float[Tensor, "batch 1 width"]  # state, keypoints and instruction in one token
    # What is seen where in each frame, for auxiliary targets; None from a backbone without `feature_map`.
    features: Float[Tensor, "batch images channels rows columns"] | None = None


class FeatureMap(NamedTuple):
    """The size of `Prefix.features` for one frame."""

    channels: int
    rows: int
    columns: int


class Tokens(NamedTuple):
    """What an embedder adds to the prefix."""

    values: Float[Tensor, "batch n width"]
    valid: Bool[Tensor, "batch n"]


class Part(nn.Module, ABC):
    """Anything that a model is put together from."""

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return what the entries of its parameters stand for, where that follows from names.

        A model that begins with the weights of another one keeps the entries with labels that both have.
        Along an axis without labels (None), and in a parameter that is left out, all must be the same.

        Args:
            names: of what goes in and comes out, in the order of the arrays.
        """
        return {}


class Embedder(Part):
    """One more modality: named inputs to tokens, appended to the prefix.

    Its constructor takes `specs` and `width`, and its settings.

    Attributes:
        reads: names of the inputs that it takes.
    """

    reads: tuple[str, ...]

    @abstractmethod
    def forward(self, inputs: Tensors) -> Tokens:
        """Return the tokens of a batch."""


class Backbone(Part):
    """Turns inputs into a prefix and runs tokens that look back at it.

    Its constructor takes `specs`, and its settings.

    Attributes:
        reads: names of the inputs that it takes.
        width: of a token.
        depth: number of blocks, hence of pairs in a cache.
        num_heads: of attention.
        feature_map: of the features that it gives of each frame; None if it gives none.
    """

    reads: tuple[str, ...]
    width: int
    depth: int
    num_heads: int
    feature_map: FeatureMap | None = None

    @abstractmethod
    def prefill(self, inputs: Tensors) -> Prefix:
        """Run the inputs."""

    @abstractmethod
    def extend(
        self,
        values: Float[Tensor, "batch n width"],
        prefix: Prefix,
        *,
        valid: Bool[Tensor, "batch n"] | None = None,
        causal: bool,
    ) -> tuple[Float[Tensor, "batch n width"], Prefix]:
        """Run tokens that see the prefix and one another; return them normalized, and the longer prefix.

        Args:
            values: the tokens.
            prefix: what they look back at.
            valid: False where a token is padding, which nobody attends to; all are valid if None.
            causal: whether each sees only those before it, or all of them.
        """

    @abstractmethod
    def embed_actions(self, ids: Tensor) -> Tensor:
        """Return the tokens of action ids, from the table that text has its rows in (arXiv:2307.15818)."""

    @abstractmethod
    def reset_token_embedding(self) -> None:
        """Draw the table of text and action ids."""


class Head(Part):
    """What an action is to a model, in training and when it acts.

    Its constructor takes `specs` and `backbone`, and its settings.

    Attributes:
        learns: names of the targets of its loss; it trains when they are in the batch.
        reads: names of the inputs that it takes besides the prefix, where the policy has them.
        changeable: names of settings that may differ from those of training, as no weight depends on them.
    """

    learns: tuple[str, ...]
    reads: tuple[str, ...] = ("committed", "num_committed")
    changeable: tuple[str, ...] = ()

    @abstractmethod
    def loss(self, backbone: Backbone, prefix: Prefix, batch: Tensors) -> dict[str, Tensor]:
        """Return `loss` and whatever else is worth a curve, each a scalar.

        `batch` holds inputs and targets, `valid` [batch time] (False behind the end of an episode), and the
        noise that `noise_specs` names. Committed steps are given, so they carry no loss. All are means over
        the terms that `num_terms` counts.
        """

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return over how many terms, all equally long, the `loss` of a batch is a mean; here its samples.

        Several batches of one step count by it, so that they give the gradient of one large batch.
        """
        return num_samples(batch)

    @abstractmethod
    def sample(self, backbone: Backbone, prefix: Prefix, inputs: Tensors) -> dict[str, Tensor]:
        """Return what the codec decodes, by the names of its specs.

        `inputs` holds what is committed, where the policy takes that, and noise.
        """

    def noise_specs(self, *, training: bool) -> Mapping[str, ArraySpec]:
        """Return the arrays of standard normal noise that `loss` or `sample` takes, by name; often none."""
        return {}

    def margins(
        self, backbone: Backbone, prefix: Prefix, inputs: Tensors, outputs: Tensors
    ) -> Float[Tensor, " batch"]:
        """Return by how much the closest choice among ids was won, in logits; infinity without choices."""
        return torch.full_like(prefix.context[:, 0, 0], torch.inf)


class AuxiliaryTarget(Part):
    """Something else that is learned from the prefix; at inference it does not exist.

    Its constructor takes `specs` and `backbone`, and its settings.

    Attributes:
        learns: names of what the training source must give.
        weight: of its loss.
    """

    learns: tuple[str, ...]
    weight: float

    def requests(self) -> Mapping[str, Any]:
        """Return what the training source is asked for: by name, whatever the source needs to know."""
        return dict.fromkeys(self.learns)

    @abstractmethod
    def loss(self, prefix: Prefix, batch: Tensors) -> Float[Tensor, ""]:
        """Return the loss of a batch, not yet weighted."""

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return over how many terms the loss of a batch is a mean, as `Head.num_terms`; here its samples."""
        return num_samples(batch)


def num_samples(batch: Tensors) -> Float[Tensor, ""]:
    """Return how many samples a batch has, as a number to calculate with."""
    return torch.tensor(float(len(next(iter(batch.values())))))


def require_targets(specs: ModelSpecs, names: tuple[str, ...], *, head: str, codecs: str) -> None:
    """Check that the codec gives what a head learns.

    Raises:
        ValueError: it does not; the message says which codecs do.
    """
    if set(specs.targets) != set(names):
        raise ValueError(
            f"model.head={head} learns {list(names)}, but the codec gives {sorted(specs.targets)}; "
            f"choose codec={codecs}, or another model/head"
        )
