"""FAST: a chunk as a short sequence of ids, chosen one after another (pi0-FAST, arXiv:2501.09747).

An id stands for one or more of the symbols that make a chunk. At each position only ids are allowed that fit
into what is still missing, so that every sequence that can be chosen is a whole chunk.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.interface import NOTHING, ModelSpecs
from vla.model.features import NUM_FEATURES, feature_labels, fourier_features
from vla.model.heads.bins import most_likely
from vla.model.heads.stepwise import Decoding, StepwiseHead
from vla.model.interface import AxisLabels, AxisNames, Backbone, Prefix, Tensors, require_targets
from vla.model.masks import FORBIDDEN


class FastHead(StepwiseHead):
    """Ids of `FastCodec`; committed actions are tokens of their own before the first id."""

    learns = ("action_ids",)
    may_end_early = True
    output = "action_ids"

    def __init__(self, *, specs: ModelSpecs, backbone: Backbone) -> None:
        super().__init__()
        require_targets(specs, self.learns, head="fast", codecs="fast")
        (self.max_ids,) = self.output_shape = specs.targets["action_ids"].shape
        num_ids = specs.targets["action_ids"].num_ids
        self.position = nn.Parameter(torch.randn(self.max_ids, backbone.width) * 0.02)
        if "committed" in specs.inputs:
            horizon, dims = specs.inputs["committed"].shape
            self.committed_tokenizer = nn.Linear(dims * NUM_FEATURES, backbone.width)
            self.committed_position = nn.Parameter(torch.randn(horizon, backbone.width) * 0.02)
        self.logits_out = nn.Linear(backbone.width, num_ids)
        nn.init.normal_(self.logits_out.weight, std=0.002)
        nn.init.zeros_(self.logits_out.bias)
        self.num_symbols: Tensor
        table = torch.as_tensor(specs.constants["num_symbols"], dtype=torch.int64)
        self.register_buffer("num_symbols", table, persistent=False)

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return labels of all that depends on the chunk, on committed actions and on ids."""
        return {
            "position": (range(self.max_ids), None),
            "committed_tokenizer.weight": (None, feature_labels(names["action"])),
            "committed_position": (names["time"], None),
            "logits_out.weight": (names["ids"], None),
            "logits_out.bias": (names["ids"],),
        }

    def logits(
        self, backbone: Backbone, prefix: Prefix, batch: Tensors
    ) -> Float[Tensor, "batch position ids"]:
        """Return teacher-forced logits: each position sees the true ids before it."""
        ids = batch["action_ids"]
        prefix = self._with_committed(backbone, prefix, batch)
        tokens = backbone.embed_actions(ids[:, :-1].clamp(min=0))
        start = tokens.new_zeros(tokens.shape[0], 1, tokens.shape[2])
        suffix = torch.cat((start, tokens), dim=1) + (self.position[: ids.shape[1]] + prefix.context)
        tokens, _ = backbone.extend(suffix, prefix, causal=True)
        taken = self.num_symbols[ids.clamp(min=0)] * (ids >= 0)
        missing = self.max_ids - torch.cumsum(taken, dim=1) + taken
        return self._allowed(self.logits_out(tokens), missing)

    def loss(self, backbone: Backbone, prefix: Prefix, batch: Tensors) -> dict[str, Tensor]:
        """Return the mean cross-entropy per id, and the share of ids guessed right."""
        ids, logits = batch["action_ids"], self.logits(backbone, prefix, batch).float()
        is_id = ids >= 0
        cross_entropy = (
            torch.logsumexp(logits, dim=-1) - logits.gather(2, ids.clamp(min=0)[..., None])[..., 0]
        )
        weight = is_id.float() / is_id.sum().clamp(min=1)
        accuracy = ((logits.argmax(dim=-1) == ids).float() * weight).sum()
        return {"loss": (cross_entropy * weight).sum(), "token_accuracy": accuracy}

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return the number of ids."""
        return (batch["action_ids"] >= 0).sum().float()

    def begin(
        self, backbone: Backbone, prefix: Prefix, inputs: Tensors
    ) -> tuple[tuple[Tensor, ...], Decoding]:
        """Return what is added to each token, and a token before the first; no symbol is there yet."""
        prefix = self._with_committed(backbone, prefix, inputs)
        added = self.position + prefix.context
        token = added.new_zeros(added.shape[0], 1, added.shape[2])
        missing = torch.full_like(prefix.valid[:, 0], self.max_ids, dtype=torch.int64)
        return (added,), Decoding(token=token, prefix=prefix, state=(missing,))

    def step(
        self, backbone: Backbone, position: Int[Tensor, "1"], given: tuple[Tensor, ...], last: Decoding
    ) -> tuple[Int[Tensor, " batch"], Decoding]:
        """Return the most likely id that fits, `NOTHING` where the chunk is whole already."""
        (added,), (missing,) = given, last.state
        suffix = last.token + added.index_select(1, position)
        tokens, prefix = backbone.extend(suffix, last.prefix, causal=True)
        logits = self._allowed(self.logits_out(tokens.reshape(-1, tokens.shape[2])), missing)
        chosen = most_likely(logits)
        ids = torch.where(missing > 0, chosen, NOTHING)
        seen = ids.clamp(min=0)
        missing = missing - self.num_symbols[seen] * (missing > 0)
        return ids, Decoding(token=backbone.embed_actions(seen[:, None]), prefix=prefix, state=(missing,))

    def is_over(self, last: Decoding) -> Bool[Tensor, ""]:
        """Return whether all chunks are whole."""
        return (last.state[0] <= 0).all()

    def margins(
        self, backbone: Backbone, prefix: Prefix, inputs: Tensors, outputs: Tensors
    ) -> Float[Tensor, " batch"]:
        """Return by how much the closest id was won, in logits."""
        ids = outputs["action_ids"]
        logits = self.logits(backbone, prefix, {**inputs, "action_ids": ids})
        best = logits.topk(2, dim=-1).values
        return (best[..., 0] - best[..., 1]).masked_fill(ids < 0, torch.inf).amin(dim=1)

    def _allowed(
        self, logits: Float[Tensor, "*positions ids"], missing: Int[Tensor, "*positions"]
    ) -> Float[Tensor, "*positions ids"]:
        """Return logits in which ids are forbidden that stand for more symbols than are missing."""
        return logits.masked_fill(self.num_symbols > missing.clamp(min=1)[..., None], FORBIDDEN)

    def _with_committed(self, backbone: Backbone, prefix: Prefix, inputs: Tensors) -> Prefix:
        """Return the prefix with a token for each committed action behind it."""
        if "committed" not in inputs:
            return prefix
        committed = inputs["committed"]
        steps = torch.arange(committed.shape[1], device=committed.device)
        tokens = self.committed_tokenizer(fourier_features(committed)) + self.committed_position
        is_given = steps < inputs["num_committed"][:, None]
        _, prefix = backbone.extend(tokens, prefix, valid=is_given, causal=False)
        return prefix
