"""Images on their way from the wire to a policy: unpacking PNG and JPEG under limits.

The size is read from the file's own header and compared with what was announced before a pixel is
decompressed.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from policies.serving.wire import PackedImage, WireError
from vla.picture_errors import PICTURE_ERRORS


def unpack_image(packed: PackedImage, *, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decompress an RGB image.

    Args:
        packed: the image as it was sent.
        max_pixels: the largest height times width that is decompressed.

    Raises:
        WireError: it is larger than allowed, not what was announced, not RGB with 8 bits, or damaged.
    """
    if len(packed.shape) != 3 or packed.shape[2] != 3:
        raise WireError(
            "image_form", f"an image is announced as {list(packed.shape)}; [height, width, 3] is read"
        )
    height, width, _ = packed.shape
    if height * width > max_pixels or height * width == 0:
        raise WireError(
            "image_size", f"image of {height}x{width} pixels; between 1 and {max_pixels} are read"
        )
    try:
        with Image.open(io.BytesIO(packed.data), formats=[packed.format.upper()]) as image:
            if image.size != (width, height) or image.mode != "RGB":
                raise WireError(
                    "image_form",
                    f"an image announced as {height}x{width} RGB holds {image.size[1]}x{image.size[0]} "
                    f"{image.mode}",
                )
            return np.asarray(image, dtype=np.uint8)
    except WireError:
        raise
    except UnidentifiedImageError as error:
        raise WireError("image_data", f"an image announced as {packed.format} is none") from error
    except PICTURE_ERRORS as error:
        raise WireError(
            "image_data", f"a {packed.format} image is damaged ({type(error).__name__})"
        ) from error
