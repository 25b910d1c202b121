"""Turns camera frames into tokens: a convolutional patch stem, one sequence of tokens for each frame.

A stride-4 patch convolution, a stride-2 one and a last one of stride `patch_size / 8` make one token of each
`patch_size` x `patch_size` pixels. Early convolutions train faster and more stably than one large patch
(arXiv:2106.14881); coarse first is three times cheaper on a CPU than full resolution first. Knows nothing of
cameras' names or of what follows.
"""

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

PATCH_SIZES = (16, 24, 32)  # pixels a side of one token


class ImageTokenizer(nn.Module):
    """Frames uint8 [batch images h w 3] to tokens [batch images*patches width], with learned positions."""

    def __init__(
        self,
        *,
        num_images: int,
        image_size: int,
        width: int,
        stem_channels: tuple[int, int],
        patch_size: int = 16,
    ) -> None:
        super().__init__()
        if patch_size not in PATCH_SIZES:
            raise ValueError(f"patch_size {patch_size} is none of {PATCH_SIZES}; change conf/model")
        if image_size % patch_size:
            raise ValueError(
                f"image_size {image_size} is no multiple of patch_size {patch_size}; change one of them"
            )
        first, second = stem_channels
        self.image_size = image_size
        self.num_patches = (image_size // patch_size) ** 2
        self.patchify = nn.Conv2d(3, first, kernel_size=4, stride=4)
        self.middle = nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1)
        stride = patch_size // 8
        padding = 1 if stride == 2 else 0
        self.last = nn.Conv2d(second, width, kernel_size=max(3, stride), stride=stride, padding=padding)
        self.position = nn.Parameter(torch.randn(num_images, self.num_patches, width) * 0.02)

    def forward(self, images: UInt8[Tensor, "batch images h w 3"]) -> Float[Tensor, "batch tokens width"]:
        """Return the tokens of all frames, frame after frame, row by row."""
        num_images = images.shape[1]
        x = rearrange(images, "b k h w c -> (b k) c h w").to(self.patchify.weight.dtype)
        x = (x / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.patchify(x))
        x = F.relu(self.middle(x))
        x = rearrange(self.last(x), "(b k) d h w -> b k (h w) d", k=num_images)
        return rearrange(x + self.position.to(x.dtype), "b k n d -> b (k n) d")
