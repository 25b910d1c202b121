"""What Pillow raises for a picture that is damaged, of another format, or far too large."""

import struct
import zlib

from PIL import Image

PICTURE_ERRORS = (
    OSError,  # truncated or damaged data, or another format
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
