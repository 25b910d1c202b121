"""Parallel decoding: one query for each control period, all in one pass (OpenVLA-OFT, arXiv:2502.19645).

Each query yields one categorical over bins for every action dimension.
"""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.interface import ModelSpecs
from vla.model.features import NUM_FEATURES, feature_labels, fourier_features
from vla.model.heads.bins import (
    BinLogits,
    bin_loss,
    closest_margin,
    keep_committed,
    learned_steps,
    most_likely,
    smoothed_targets,
)
from vla.model.interface import AxisLabels, AxisNames, Backbone, Head, Prefix, Tensors, require_targets
from vla.registry import Range


class ParallelHead(Head):
    """One categorical over bins for each action, none of them seeing another.

    Committed actions are added to the queries of their periods: training with them is real-time chunking
    without any cost at inference (arXiv:2512.05964).
    """

    learns = ("bins",)

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
        require_targets(specs, self.learns, head="parallel", codecs="uniform or quantile")
        horizon, dims = specs.targets["bins"].shape
        num_bins = specs.targets["bins"].num_ids
        self.position = nn.Parameter(torch.randn(horizon, backbone.width) * 0.02)
        if "committed" in specs.inputs:
            self.committed_tokenizer = nn.Linear(dims * NUM_FEATURES, backbone.width)
        self.bin_logits = BinLogits(width=backbone.width, dims=dims, num_bins=num_bins)
        self.targets: Tensor
        self.register_buffer(
            "targets", smoothed_targets(num_bins=num_bins, smoothing_bins=smoothing_bins), persistent=False
        )

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return labels of all that depends on the chunk, the action and its bins."""
        bins = self.bin_logits.axis_labels(names["action"], names["ids"])
        return {
            "position": (names["time"], None),
            "committed_tokenizer.weight": (None, feature_labels(names["action"])),
            **{f"bin_logits.{name}": labels for name, labels in bins.items()},
        }

    def logits(
        self, backbone: Backbone, prefix: Prefix, committed: Int[Tensor, "batch time action"] | None
    ) -> Float[Tensor, "batch time action bins"]:
        """Return the logits of all actions in one pass; `committed` holds bins, `NOTHING` behind them."""
        queries = prefix.context + self.position.to(prefix.context.dtype)
        if committed is not None:
            known = (committed >= 0).to(queries.dtype)
            features = fourier_features(self.bin_logits.centers[committed.clamp(min=0)])
            queries = queries + self.committed_tokenizer(features).to(queries.dtype) * known[..., :1]
        tokens, _ = backbone.extend(queries, prefix, causal=False)
        return self.bin_logits(tokens)

    def loss(self, backbone: Backbone, prefix: Prefix, batch: Tensors) -> dict[str, Tensor]:
        """Return the cross-entropy over bins and the share of bins guessed right."""
        logits = self.logits(backbone, prefix, batch.get("committed"))
        return bin_loss(logits, batch["bins"], learned_steps(batch), self.targets)

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return the number of existing steps that are not committed."""
        return learned_steps(batch).sum().float()

    def sample(self, backbone: Backbone, prefix: Prefix, inputs: Tensors) -> dict[str, Tensor]:
        """Return the most likely bins, those that are committed as they are."""
        committed = inputs.get("committed")
        chosen = most_likely(self.logits(backbone, prefix, committed))
        return {"bins": chosen if committed is None else keep_committed(committed, chosen)}

    def margins(
        self, backbone: Backbone, prefix: Prefix, inputs: Tensors, outputs: Tensors
    ) -> Float[Tensor, " batch"]:
        """Return by how much the closest bin was won, in logits."""
        committed = inputs.get("committed")
        is_choice = torch.ones_like(outputs["bins"] >= 0) if committed is None else committed < 0
        return closest_margin(self.logits(backbone, prefix, committed), is_choice)
