"""Flow matching: an expert with weights of its own turns noise into actions (pi0, arXiv:2410.24164).

The expert is a second, narrower transformer whose layers attend to the keys and values that the backbone's
layers made of the inputs. It learns the velocity of the straight path from noise to actions
(arXiv:2210.02747); to sample, a few Euler steps follow that velocity. Time runs from 0, noise, to 1, actions.
"""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.interface import ArraySpec, ModelSpecs
from vla.model.features import NUM_FEATURES, fourier_features
from vla.model.interface import AxisLabels, AxisNames, Backbone, Head, Prefix, Tensors, require_targets
from vla.model.masks import attention_bias
from vla.model.transformer import Transformer
from vla.registry import Range

LATEST_TIME = 0.999  # that is trained: at 1 there is nothing left to learn
TIME_EXPONENT = 2 / 3  # of a uniform number; its complement has more early than late times, Beta(1.5, 1)


class FlowHead(Head):
    """Real-valued chunks; committed actions stand at time 1 from the start (arXiv:2512.05964)."""

    learns = ("actions",)
    changeable = ("num_steps",)

    def __init__(
        self,
        *,
        specs: ModelSpecs,
        backbone: Backbone,
        num_steps: Annotated[int, Range(1, 10), "Euler steps from noise to actions"] = 5,
        expert_width: Annotated[int, Range(4, 16384), "width of the expert's tokens"] = 128,
        mlp_ratio: Annotated[int, Range(1, 16), "width of its MLP as a multiple of that"] = 4,
    ) -> None:
        super().__init__()
        require_targets(specs, self.learns, head="flow", codecs="continuous")
        self.num_steps = num_steps
        self._shape = horizon, dims = specs.targets["actions"].shape
        self.position = nn.Parameter(torch.randn(horizon, expert_width) * 0.02)
        self.actions_in = nn.Linear(dims, expert_width)
        self.time_in = nn.Sequential(
            nn.Linear(NUM_FEATURES, expert_width), nn.SiLU(), nn.Linear(expert_width, expert_width)
        )
        self.context_in = nn.Linear(backbone.width, expert_width)
        self.expert = Transformer(
            width=expert_width,
            depth=backbone.depth,
            num_heads=backbone.num_heads,
            head_dim=backbone.width // backbone.num_heads,
            mlp_ratio=mlp_ratio,
        )
        self.velocity_out = nn.Linear(expert_width, dims)
        nn.init.zeros_(self.velocity_out.weight)
        nn.init.zeros_(self.velocity_out.bias)

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return labels of all that depends on the chunk and on the action."""
        return {
            "position": (names["time"], None),
            "actions_in.weight": (None, names["action"]),
            "velocity_out.weight": (names["action"], None),
            "velocity_out.bias": (names["action"],),
        }

    def noise_specs(self, *, training: bool) -> Mapping[str, ArraySpec]:
        """Return where a chunk starts, and in training a number from which its time is drawn."""
        specs = {"noise": ArraySpec("float32", self._shape)}
        return {**specs, "noise_time": ArraySpec("float32", ())} if training else specs

    def velocity(
        self, prefix: Prefix, noisy: Float[Tensor, "batch time action"], times: Float[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time action"]:
        """Return where each noisy action should go, given how far along its path it is."""
        context = prefix.context
        tokens = self.actions_in(noisy) + self.time_in(fourier_features(times[..., None]))
        tokens = (tokens + self.context_in(context) + self.position).to(prefix.cache[0][0].dtype)
        seen = torch.cat((prefix.valid, prefix.valid.new_ones(noisy.shape[:2])), dim=1)
        bias = attention_bias(seen, num_new=noisy.shape[1], causal=False, dtype=tokens.dtype)
        tokens, _ = self.expert.extend(tokens, prefix.cache, bias=bias)
        return self.velocity_out(tokens).float()

    def loss(self, backbone: Backbone, prefix: Prefix, batch: Tensors) -> dict[str, Tensor]:
        """Return the mean squared error of the velocity over existing steps that are not committed."""
        actions, noise = batch["actions"], batch["noise"]
        uniform = 0.5 * (1.0 + torch.erf(batch["noise_time"] / math.sqrt(2.0)))
        time = LATEST_TIME * (1.0 - uniform**TIME_EXPONENT)
        is_given = self._is_committed(batch)
        times = torch.where(is_given, 1.0, time[:, None])
        noisy = times[..., None] * actions + (1.0 - times[..., None]) * noise
        error = (self.velocity(prefix, noisy, times) - (actions - noise)).square().mean(dim=-1)
        learned = batch["valid"] & ~is_given
        return {"loss": (error * learned).sum() / learned.sum().clamp(min=1)}

    def num_terms(self, batch: Tensors) -> Float[Tensor, ""]:
        """Return the number of existing steps that are not committed."""
        return (batch["valid"] & ~self._is_committed(batch)).sum().float()

    def sample(self, backbone: Backbone, prefix: Prefix, inputs: Tensors) -> dict[str, Tensor]:
        """Return actions after `num_steps` Euler steps from the noise given."""
        is_given = self._is_committed(inputs)
        actions = inputs["noise"]
        if "committed" in inputs:
            actions = torch.where(is_given[..., None], inputs["committed"], actions)
        for step in range(self.num_steps):
            times = torch.where(is_given, 1.0, step / self.num_steps)
            velocity = self.velocity(prefix, actions, times)
            actions = actions + torch.where(is_given[..., None], 0.0, velocity / self.num_steps)
        return {"actions": actions}

    def _is_committed(self, inputs: Tensors) -> Bool[Tensor, "batch time"]:
        steps = torch.arange(self._shape[0], device=inputs["noise"].device)
        if "num_committed" not in inputs:
            return torch.zeros_like(inputs["noise"][..., 0], dtype=torch.bool)
        return steps < inputs["num_committed"][:, None]
