"""Feeds mutated bytes to the codec for as long as one likes; run by hand, never collected.

    pip install atheris
    python tests/fuzz/wire_atheris.py -max_total_time=600 -max_len=4096 corpus/

Anything but a `WireError`, and any message that takes longer than 50 ms, is a finding.
"""

import contextlib
import sys
import time

import atheris

with atheris.instrument_imports(include=["policies"]):
    from policies.serving.wire import Dialect, PackedImage, WireError, decode, encode
    from policies.serving.wire_images import unpack_image

SLOW_S = 0.05
MAX_PIXELS = 64 * 64


def check(data: bytes) -> None:
    """Decode in both dialects, unpack images, and encode again what was read."""
    for dialect in Dialect:
        start = time.process_time()
        try:
            message = decode(data, dialect=dialect)
            if encode(message, dialect=dialect) is None:
                raise AssertionError("nothing was encoded")
        except WireError:
            message = {}
        for value in message.values():
            if isinstance(value, PackedImage):
                with contextlib.suppress(WireError):
                    unpack_image(value, max_pixels=MAX_PIXELS)
        seconds = time.process_time() - start
        if seconds > SLOW_S:
            raise AssertionError(f"{len(data)} bytes took {seconds:.3f} s")


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
