"""Autoregressive decoding: one token for each control period and dimension, causal (RT-2, arXiv:2307.15818).

Action tokens share one embedding table with text.
"""

import itertools
from typing import Annotated

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.interface import ModelSpecs
from vla.model.heads.bins import (
    BinLogits,
    bin_loss,
    closest_margin,
    keep_committed,
    learned_steps,
    most_likely,
    smoothed_targets,
)
from vla.model.heads.stepwise import Decoding, StepwiseHead
from vla.model.interface import AxisLabels, AxisNames, Backbone, Prefix, Tensors, require_targets
from vla.registry import Range


class AutoregressiveHead(StepwiseHead):
    """Bins one by one, each seeing those before it.

    Committed actions are kept as they are, and the others follow on from them (arXiv:2506.07339, for tokens
    by forced decoding).
    """

    learns = ("bins",)
    output = "bins"

    def __init__(
        self,
        *,
        specs: ModelSpecs,
        backbone: Backbone,
        smoothing_bins: Annotated[
            float, Range(0, 256), "width of the Gaussian over neighboring bins in the targets"
        ] = 1.0,
    ) -> None:
        super().__init__()
        require_targets(specs, self.learns, head="autoregressive", codecs="uniform or quantile")
        horizon, self._dims = specs.targets["bins"].shape
        num_bins = specs.targets["bins"].num_ids
        self.max_ids, self.output_shape = horizon * self._dims, (horizon, self._dims)
        self.position = nn.Parameter(torch.randn(self.max_ids, backbone.width) * 0.02)
        self.bin_logits = BinLogits(width=backbone.width, dims=1, num_bins=num_bins)
        self.targets: Tensor
        self.register_buffer(
            "targets", smoothed_targets(num_bins=num_bins, smoothing_bins=smoothing_bins), persistent=False
        )

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return labels of the positions and of the bins, which all dimensions share."""
        bins = self.bin_logits.axis_labels(("any dimension",), names["ids"])
        return {
            "position": (tuple(itertools.product(names["time"], names["action"])), None),
            **{f"bin_logits.{name}": labels for name, labels in bins.items()},
        }

    def logits(
        self, backbone: Backbone, prefix: Prefix, bins: Int[Tensor, "batch time action"]
    ) -> Float[Tensor, "batch time action bins"]:
        """Return teacher-forced logits: each position sees the true bins before it."""
        tokens = backbone.embed_actions(rearrange(bins, "b t a -> b (t a)")[:, :-1])
        start = tokens.new_zeros(tokens.shape[0], 1, tokens.shape[2])
        suffix = torch.cat((start, tokens), dim=1) + self.position + prefix.context
        tokens, _ = backbone.extend(suffix, prefix, causal=True)
        return rearrange(self.bin_logits(tokens), "b (t a) 1 v -> b t a v", a=self._dims)

    def loss(self, backbone: Backbone, prefix: Prefix, batch: Tensors) -> dict[str, Tensor]:
        """Return the cross-entropy over bins and the share of bins guessed right."""
        logits = self.logits(backbone, prefix, batch["bins"])
        return bin_loss(logits, batch["bins"], learned_steps(batch), self.targets)

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return the number of existing steps that are not committed."""
        return learned_steps(batch).sum().float()

    def begin(
        self, backbone: Backbone, prefix: Prefix, inputs: Tensors
    ) -> tuple[tuple[Tensor, ...], Decoding]:
        """Return what is added to each token (and committed bins, if any), and a token before the first."""
        added = self.position + prefix.context
        token = added.new_zeros(added.shape[0], 1, added.shape[2])
        committed = inputs.get("committed")
        given = (added,) if committed is None else (added, committed.reshape(-1, self.max_ids))
        return given, Decoding(token=token, prefix=prefix, state=())

    def step(
        self, backbone: Backbone, position: Int[Tensor, "1"], given: tuple[Tensor, ...], last: Decoding
    ) -> tuple[Int[Tensor, " batch"], Decoding]:
        """Return the most likely bin at a position, or the committed one."""
        added, *committed = given
        suffix = last.token + added.index_select(1, position)
        tokens, prefix = backbone.extend(suffix, last.prefix, causal=True)
        bins = most_likely(self.bin_logits.of_one_dimension(tokens.reshape(-1, tokens.shape[2])))
        if committed:
            bins = keep_committed(committed[0].index_select(1, position)[:, 0], bins)
        return bins, Decoding(token=backbone.embed_actions(bins[:, None]), prefix=prefix, state=())

    def margins(
        self, backbone: Backbone, prefix: Prefix, inputs: Tensors, outputs: Tensors
    ) -> Float[Tensor, " batch"]:
        """Return by how much the closest bin was won, in logits."""
        bins, committed = outputs["bins"], inputs.get("committed")
        is_choice = torch.ones_like(bins >= 0) if committed is None else committed < 0
        return closest_margin(self.logits(backbone, prefix, bins), is_choice)
