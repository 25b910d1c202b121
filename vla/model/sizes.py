"""The sizes that a model is built from, checked at once, as checkpoints keep them. Knows no torch."""

import dataclasses
from typing import Any

DECODINGS = ("parallel", "autoregressive")
PATCH_SIZES = (16, 24, 32)  # pixels a side of one image token


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of `vla.model.vla.VLAModel`.

    `vocab_size` is that of the shared id space, `action_offset` the id of bin 0, `bins_per_dim` how many of
    `num_bins` each action dimension may use, `num_images` frames x cameras, `stem_channels` those of the
    image stem's two first convolutions, `patch_size` the pixels a side of an image token, `max_committed` how
    many first actions of a chunk may be given instead of chosen.
    """

    vocab_size: int
    num_bins: int
    action_offset: int
    bins_per_dim: list[int]
    action_horizon: int
    num_images: int
    image_size: int
    state_dim: int
    max_text_tokens: int
    width: int = 256
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: int = 4
    stem_channels: list[int] = dataclasses.field(default_factory=lambda: [64, 128])
    patch_size: int = 16
    num_future_states: int = 0
    max_committed: int = 0
    decoding: str = "parallel"

    def __post_init__(self) -> None:
        if self.decoding not in DECODINGS:
            raise ValueError(f"decoding {self.decoding!r} is none of {DECODINGS}; change conf/model")
        if not all(1 <= bins <= self.num_bins for bins in self.bins_per_dim):
            raise ValueError(f"bins_per_dim {self.bins_per_dim} must lie in [1, num_bins={self.num_bins}]")
        if len(self.stem_channels) != 2:
            raise ValueError(f"stem_channels {self.stem_channels} must be two numbers; change conf/model")
        if self.patch_size not in PATCH_SIZES:
            raise ValueError(f"patch_size {self.patch_size} is none of {PATCH_SIZES}; change conf/model")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}; "
                "change one of them"
            )

    @property
    def action_dim(self) -> int:
        """Number of action dimensions."""
        return len(self.bins_per_dim)

    def to_json(self) -> dict[str, Any]:
        """Return the sizes as JSON-ready data; `ModelSizes(**these)` rebuilds them."""
        return dataclasses.asdict(self)
