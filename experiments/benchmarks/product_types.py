"""Records in which number type torch computes every matrix product and convolution."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = frozenset(
    {
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "addmv",
        "mv",
        "dot",
        "linear",
        "matmul",
        "convolution",
        "convolution_backward",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_backward",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_efficient_attention_backward",
    }
)
_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


class ProductTypes(TorchDispatchMode):
    """Counts products by name and type while it is active, in this thread.

    Attributes:
        counts: how often each (operator, type) was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator, and count it if it is a product."""
        name = str(func).split(".")[1]
        if name in PRODUCTS:
            first = next(value for value in args if isinstance(value, Tensor))
            self.counts[name, first.dtype] += 1
        return func(*args, **(kwargs or {}))

    def names(self) -> str:
        """Return the types that occurred, the most frequent first; "none" if there was no product."""
        by_type: Counter[torch.dtype] = Counter()
        for (_, dtype), count in self.counts.items():
            by_type[dtype] += count
        return ", ".join(_SHORT.get(dtype, str(dtype)) for dtype, _ in by_type.most_common()) or "none"
