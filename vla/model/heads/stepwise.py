"""Heads that choose token after token: what is carried from one to the next, and the loop.

The loop exists twice: here, in Python, and as a `Loop` of an exported graph; both run the same `step`, which
has no data-dependent control flow.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.interface import NOTHING
from vla.model.interface import Backbone, Head, Prefix, Tensors


class Decoding(NamedTuple):
    """What one step hands to the next."""

    token: Float[Tensor, "batch 1 width"]  # of the id chosen last
    prefix: Prefix
    state: tuple[Tensor, ...]  # whatever else a head keeps count of, batch first


class StepwiseHead(Head):
    """A head whose answer is a sequence of ids.

    Attributes:
        max_ids: most ids of a chunk.
        may_end_early: whether a sequence may be shorter; its end is filled up with `NOTHING`.
        output: name of the answer.
        output_shape: its form for one observation; as many numbers as `max_ids`.
    """

    max_ids: int
    may_end_early: bool = False
    output: str
    output_shape: tuple[int, ...]

    @abstractmethod
    def begin(
        self, backbone: Backbone, prefix: Prefix, inputs: Tensors
    ) -> tuple[tuple[Tensor, ...], Decoding]:
        """Return what all steps look up, and what the first of them is handed."""

    @abstractmethod
    def step(
        self, backbone: Backbone, position: Int[Tensor, "1"], given: tuple[Tensor, ...], last: Decoding
    ) -> tuple[Int[Tensor, " batch"], Decoding]:
        """Return the id at a position, and what the next step is handed.

        Args:
            backbone: runs the token.
            position: of the id in the sequence, from 0.
            given: what all steps look up, from `begin`.
            last: what the step before handed over.
        """

    def is_over(self, last: Decoding) -> Tensor:
        """Return whether all sequences have ended, a scalar bool; never, if none may end early."""
        raise NotImplementedError(f"{type(self).__name__} may end early and must say when")

    def sample(self, backbone: Backbone, prefix: Prefix, inputs: Tensors) -> dict[str, Tensor]:
        """Return the most likely id at each position, each chosen knowing those before it."""
        given, last = self.begin(backbone, prefix, inputs)
        chosen: list[Tensor] = []
        for position in torch.arange(self.max_ids, device=prefix.valid.device)[:, None]:
            ids, last = self.step(backbone, position, given, last)
            chosen.append(ids)
            if self.may_end_early and bool(self.is_over(last)):
                break
        missing = self.max_ids - len(chosen)
        ids = torch.nn.functional.pad(torch.stack(chosen, dim=1), (0, missing), value=NOTHING)
        return {self.output: ids.unflatten(1, self.output_shape)}
