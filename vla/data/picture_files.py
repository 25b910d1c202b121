"""PNG and JPEG pictures of a dataset, which nobody vouches for: format and size are checked before a pixel.

Pillow would open anything else as well, PostScript by running Ghostscript.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.data.layout import DatasetError
from vla.picture_errors import PICTURE_ERRORS
from vla.spec import MOST_PIXELS_A_SIDE

FORMATS = ("PNG", "JPEG")
MODES = ("RGB", "L", "P", "RGBA")  # of 8 bits; converting others, such as 16 bits, loses what they say


def decode_picture(
    content: bytes, *, where: str, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture as RGB.

    Args:
        content: of a PNG or JPEG file.
        where: what the picture is, for errors.
        size: the height and width that it must have; None for any up to those of a camera.

    Raises:
        DatasetError: it is damaged, of another format, of another size, or not of 8 bits.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            width, height = opened.size
            if size is not None and (height, width) != size:
                raise DatasetError(
                    f"{where} is {height}x{width} (h x w), but info.json says {size[0]}x{size[1]}"
                )
            if max(height, width) > MOST_PIXELS_A_SIDE:
                raise DatasetError(
                    f"{where} is {height}x{width} (h x w); at most {MOST_PIXELS_A_SIDE} a side are read"
                )
            if opened.mode not in MODES:
                raise DatasetError(f"{where} has the pixel format {opened.mode}; those read are {MODES}")
            return np.asarray(opened.convert("RGB"))
    except DatasetError:
        raise
    except PICTURE_ERRORS as error:
        raise DatasetError(
            f"{where} is damaged, or no PNG or JPEG ({type(error).__name__}: {error}); restore the file from "
            "a copy"
        ) from error
