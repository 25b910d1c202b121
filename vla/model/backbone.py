"""The default backbone: images, text and state of a scene through one transformer, trained from scratch.

Images, text and state are embedded together, since they depend on each other: the instruction modulates the
image features (FiLM), and state, keypoints and instruction make one context token, which every head adds to
its own tokens. Further modalities append their tokens behind these.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.interface import PAD_ID, ModelSpecs
from vla.model.features import NUM_FEATURES, InstructionEncoder, feature_labels, fourier_features
from vla.model.image_tokenizer import ImageTokenizer
from vla.model.interface import AxisLabels, AxisNames, Backbone, Embedder, Prefix, Tensors, Tokens
from vla.model.masks import attention_bias
from vla.model.registry import EMBEDDERS
from vla.model.transformer import Transformer
from vla.registry import Range

PATCH_SIZES = (16, 24, 32)  # pixels a side of one image token
KEYPOINT_SCALE = 4.0  # keypoints vary by a few tenths, the other features by about one


class SceneBackbone(Backbone):
    """A prefix-LM over image, text and context tokens, with a suffix of action tokens or action queries.

    Raises:
        ValueError: an input is missing, images are not square, or sizes do not divide.
    """

    def __init__(
        self,
        *,
        specs: ModelSpecs,
        width: Annotated[int, Range(4, 16384), "of a token"] = 256,
        depth: Annotated[int, Range(1, 256), "number of transformer blocks"] = 4,
        num_heads: Annotated[int, Range(1, 256), "of attention"] = 4,
        mlp_ratio: Annotated[int, Range(1, 16), "width of the MLP as a multiple of the token's"] = 4,
        stem_channels: Annotated[
            Sequence[Annotated[int, Range(1, 4096)]], "of the image stem's two first convolutions"
        ] = (64, 128),
        patch_size: Annotated[int, Range(16, 32), "pixels a side of an image token: 16, 24 or 32"] = 16,
        embedders: Annotated[dict[str, Any] | None, "further modalities: {name: {kind: ...}}"] = None,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.num_heads = width, depth, num_heads
        num_images, image_size, state_dim, max_tokens, num_ids = _sizes(specs, patch_size=patch_size)
        if len(stem_channels) != 2:
            raise ValueError(f"stem_channels {list(stem_channels)} must be two numbers; change conf/model")
        self.image_tokenizer = ImageTokenizer(
            num_images=num_images,
            image_size=image_size,
            width=width,
            stem_channels=(stem_channels[0], stem_channels[1]),
            patch_size=patch_size,
        )
        self.feature_map = self.image_tokenizer.feature_map
        self.instruction_encoder = InstructionEncoder(width=width)
        self._action_offset = num_ids
        num_action_ids = max((spec.num_ids for spec in specs.targets.values()), default=0)
        self.token_embedding = nn.Embedding(num_ids + num_action_ids, width, padding_idx=PAD_ID)
        self.text_position = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        num_context = state_dim * NUM_FEATURES + self.image_tokenizer.num_keypoint_features + width
        self.context_tokenizer = nn.Sequential(
            nn.Linear(num_context, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.trunk = Transformer(width=width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)
        self.embedders = nn.ModuleDict(
            {
                name: EMBEDDERS.build(config, where=f"embedders.{name}", specs=specs, width=width)
                for name, config in (embedders or {}).items()
            }
        )
        further = [name for embedder in self._embedders().values() for name in embedder.reads]
        self.reads = ("images", "text_ids", "state", *further)

    def _embedders(self) -> Mapping[str, Embedder]:
        return {name: module for name, module in self.embedders.items() if isinstance(module, Embedder)}

    def reset_token_embedding(self) -> None:
        """Draw the table of text and action ids; padding says nothing."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.zeros_(self.token_embedding.weight[PAD_ID])

    def axis_labels(self, names: AxisNames) -> AxisLabels:
        """Return labels of all that depends on cameras, state, words and action ids."""
        images = self.image_tokenizer
        num_ids = self.token_embedding.num_embeddings - self._action_offset
        ids = names["ids"][:num_ids]
        context = (
            *(("state", label) for label in feature_labels(names["state"])),
            *(("keypoint", label) for label in images.keypoint_labels(names)),
            *(("instruction", number) for number in range(self.width)),
        )
        labels: dict[str, tuple[Sequence[Hashable] | None, ...]] = {
            "token_embedding.weight": (
                (*(("text", name) for name in names["text_ids"]), *(("action", name) for name in ids)),
                None,
            ),
            "text_position": (range(len(self.text_position)), None),
            "context_tokenizer.0.weight": (None, context),
        }
        parts: Mapping[str, AxisLabels] = {
            "image_tokenizer": images.axis_labels(names),
            **{f"embedders.{name}": part.axis_labels(names) for name, part in self._embedders().items()},
        }
        return labels | {f"{part}.{key}": value for part, one in parts.items() for key, value in one.items()}

    def embed_actions(self, ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n width"]:
        """Return the tokens of action ids, which lie behind those of text in one table."""
        return self.token_embedding(ids + self._action_offset)

    def prefill(self, inputs: Tensors) -> Prefix:
        """Run images, text, state and further modalities through the trunk.

        `text_ids` may be shorter than the longest instruction: padding changes nothing, and costs time.
        """
        text_ids = inputs["text_ids"]
        text, is_word = self.token_embedding(text_ids), text_ids != PAD_ID
        instruction = self.instruction_encoder(text, is_word)
        image_tokens, keypoints, maps = self.image_tokenizer(inputs["images"], instruction)
        dtype = image_tokens.dtype
        text_tokens = (text + self.text_position[: text_ids.shape[1]]).to(dtype)
        features = torch.cat(
            (fourier_features(inputs["state"]), KEYPOINT_SCALE * keypoints, instruction.float()), dim=-1
        )
        context = self.context_tokenizer(features)[:, None].to(dtype)
        seen = torch.ones_like(is_word[:, :1])
        tokens = [
            Tokens(image_tokens, seen.expand(-1, image_tokens.shape[1])),
            Tokens(text_tokens, is_word),
            Tokens(context, seen),
            *(embedder(inputs) for embedder in self._embedders().values()),
        ]
        values = torch.cat([each.values.to(dtype) for each in tokens], dim=1)
        valid = torch.cat([each.valid for each in tokens], dim=1)
        bias = attention_bias(valid, num_new=valid.shape[1], causal=False, dtype=dtype)
        cache = self.trunk.prefill(values, bias=bias)
        return Prefix(cache=cache, valid=valid, context=context, features=maps)

    def extend(
        self,
        values: Float[Tensor, "batch n width"],
        prefix: Prefix,
        *,
        valid: Bool[Tensor, "batch n"] | None = None,
        causal: bool,
    ) -> tuple[Float[Tensor, "batch n width"], Prefix]:
        """Run tokens that see the prefix and one another; return them normalized, and the longer prefix."""
        dtype = prefix.cache[0][0].dtype
        batch, num_new = values.shape[:2]
        if valid is None:
            valid = prefix.valid.new_ones(batch, num_new)
        seen = torch.cat((prefix.valid, valid), dim=1)
        bias = attention_bias(seen, num_new=num_new, causal=causal, dtype=dtype)
        tokens, cache = self.trunk.extend(values.to(dtype), prefix.cache, bias=bias)
        return tokens, prefix._replace(cache=cache, valid=seen)


def _sizes(specs: ModelSpecs, *, patch_size: int) -> tuple[int, int, int, int, int]:
    """Return number and size of images, state dimensions, longest text, text ids; check that they fit."""
    lacking = [name for name in ("images", "text_ids", "state") if name not in specs.inputs]
    if lacking:
        raise ValueError(
            f"the scene backbone needs the inputs {lacking}, the processor makes {sorted(specs.inputs)}; "
            "add them to processor.inputs, or choose another model.backbone"
        )
    num_images, height, width, _ = specs.inputs["images"].shape
    (max_tokens,), num_ids = specs.inputs["text_ids"].shape, specs.inputs["text_ids"].num_ids
    (state_dim,) = specs.inputs["state"].shape
    if height != width:
        raise ValueError(f"camera frames are {height} x {width} pixels; the image tokenizer wants squares")
    if patch_size not in PATCH_SIZES:
        raise ValueError(f"patch_size {patch_size} is none of {PATCH_SIZES}; change conf/model")
    if height % patch_size:
        raise ValueError(f"image size {height} is no multiple of patch_size {patch_size}; change one of them")
    return num_images, height, state_dim, max_tokens, num_ids
