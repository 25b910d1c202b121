"""The codec: openpi's bytes exactly, vla-eval's spelling, and a refusal for everything else, at once."""

import contextlib
import io
import struct
import time

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from policies.serving.wire import DTYPES, Dialect, PackedImage, WireError, WireLimits, decode, encode
from policies.serving.wire_images import unpack_image
from vla.resize import resize_image

SLOW_S = 0.25  # of processor time for a refusal; the tests' shape checker makes the 1.5 ms of the worst 60
LENIENT = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda name: hnp.arrays(
        np.dtype(name), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4), elements=None
    )
)


def refused(data, *, dialect=Dialect.OPENPI, limits=None):
    """The code with which a message is refused, which has to happen quickly."""
    limits = limits or WireLimits()
    start = time.thread_time()
    with pytest.raises(WireError) as caught:
        decode(data, dialect=dialect, limits=limits)
    assert time.thread_time() - start < SLOW_S
    return caught.value.code


def array_map(*, data=b"\0" * 8, dtype="<f4", shape=(2,), **more):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(shape), **more}


def packed(value):
    return msgpack.packb({"a": value})


def test_an_array_has_the_bytes_of_the_openpi_client():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = (
        bytes.fromhex("81 a1 78 84 c4 0b")
        + b"__ndarray__"
        + bytes.fromhex("c3 c4 04")
        + b"data"
        + bytes.fromhex("c4 18")
        + array.tobytes()
        + bytes.fromhex("c4 05")
        + b"dtype"
        + bytes.fromhex("a3")
        + b"<f4"
        + bytes.fromhex("c4 05")
        + b"shape"
        + bytes.fromhex("92 02 03")
    )
    assert encode({"x": array}) == expected
    np.testing.assert_array_equal(decode(expected)["x"], array)


def test_a_chunk_of_20_by_7_takes_less_than_a_kilobyte():
    timing = {"infer_ms": 1.2345678, "queue_ms": 0.1234567, "prev_total_ms": 2.3456789}
    reply = {"actions": np.ones((20, 7), np.float32), "server_timing": timing, "seq": 2**40}
    assert len(encode(reply)) < 1000


def test_a_scalar_has_the_form_of_the_openpi_client():
    expected = msgpack.packb({"x": {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}})
    assert encode({"x": np.float32(0.5)}) == expected
    decoded = decode(expected)["x"]
    assert (decoded, decoded.dtype) == (0.5, np.float32)


@LENIENT
@given(st.dictionaries(st.text(max_size=8), plain, max_size=4))
def test_plain_values_survive_as_msgpack_reads_them(value):
    for dialect in Dialect:
        assert decode(encode(value, dialect=dialect), dialect=dialect) == value
    assert decode(msgpack.packb(value)) == msgpack.unpackb(msgpack.packb(value))


@LENIENT
@given(arrays, st.sampled_from(Dialect))
def test_arrays_survive_bit_for_bit(array, dialect):
    decoded = decode(encode({"a": array}, dialect=dialect), dialect=dialect)["a"]
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    assert decoded.tobytes() == array.tobytes()
    assert not decoded.flags.writeable


@LENIENT
@given(st.binary(max_size=300))
def test_random_bytes_are_read_or_refused_quickly(data):
    for dialect in Dialect:
        start = time.thread_time()
        with contextlib.suppress(WireError):
            assert isinstance(decode(data, dialect=dialect), dict)
        assert time.thread_time() - start < SLOW_S


@LENIENT
@given(st.data())
def test_damaged_messages_are_read_or_refused(data):
    whole = bytearray(encode({"a": np.zeros((2, 3), np.float32), "b": [1, "x"], "c": {"d": np.float64(1)}}))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        assert isinstance(decode(bytes(whole[: data.draw(st.integers(0, len(whole)))])), dict)


def test_what_msgpack_reads_alike_is_read_alike():
    numbers = [0, 127, 128, 255, 256, 65536, 2**32, 2**63, -1, -32, -33, -129, -32769, -(2**31) - 1, 1.5]
    texts = ["", "x" * 31, "x" * 32, "x" * 256, b"", b"x" * 256, b"x" * 65536]
    value = {
        "n": numbers,
        "t": texts,
        "f": [True, False, None],
        "l": [[0] * 16, {str(i): i for i in range(16)}],
    }
    assert decode(msgpack.packb(value)) == value
    assert decode(msgpack.packb({"f": 0.5}, use_single_float=True)) == {"f": 0.5}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (packed(array_map(dtype="|O")), "dtype"),
        (packed(array_map(dtype="|V0", data=b"", shape=[2**40])), "dtype"),
        (packed(array_map(dtype="<U4")), "dtype"),
        (packed(array_map(dtype="<c8")), "dtype"),
        (packed(array_map(dtype=">f4")), "dtype"),
        (packed(array_map(dtype="M8[ns]")), "dtype"),
        (packed(array_map(dtype=[["a", "<f4"]])), "dtype"),
        (packed(array_map(shape=[-1])), "shape"),
        (packed(array_map(shape=[2**40, 0])), "shape"),
        (packed(array_map(shape=[2**62, 4])), "shape"),
        (packed(array_map(shape=[4096, 4096])), "elements"),
        (packed(array_map(shape=[65536] * 4)), "elements"),  # 2^64: nothing, to who counts in 64 bits
        (packed(array_map(shape=[3])), "shape"),
        (packed(array_map(shape=[1])), "shape"),
        (packed(array_map(shape=[2.0])), "shape"),
        (packed(array_map(shape=[True, 2])), "shape"),
        (packed(array_map(shape=[1, 1, 1, 1, 1, 2])), "shape"),
        (packed(array_map(data="12345678")), "array_form"),
        (packed(array_map(dtype="|b1", data=b"\x02", shape=[1])), "array_form"),
        (packed(array_map(extra=1)), "array_form"),
        (packed({b"__ndarray__": True}), "array_form"),
        (packed({**array_map(), b"__ndarray__": False}), "array_form"),
        (packed({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "array_form"),
        (packed({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}), "array_form"),
        (packed({b"__npgeneric__": True, b"data": b"x" * 8, b"dtype": "|O"}), "dtype"),
        (packed({"__ndarray__": True, "data": b"", "dtype": "<f4", "shape": [0]}), "dialect"),
        (packed({b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [0], b"data": b""}), "dialect"),
        (packed({"nd": True, "type": "<f4", "kind": "O", "shape": [0], "data": b""}), "dialect"),
        (packed({b"key": 1}), "key"),
        (msgpack.packb({1: 2}), "key"),
        (b"\x82\xa1a\x01\xa1a\x02", "duplicate_key"),
        (packed(1) + b"\0", "trailing"),
        (packed([1, 2])[:-1], "truncated"),
        (b"", "truncated"),
        (msgpack.packb([1]), "not_a_map"),
        (packed(msgpack.ExtType(5, b"x")), "extension"),
        (packed(msgpack.Timestamp(1, 2)), "extension"),
        (b"\x81\xa1a\xc1", "extension"),
        (b"\x81\xa1a\xa2\xff\xfe", "utf8"),
        (packed("x" * 5000), "string_length"),
        (b"\xdd\xff\xff\xff\xff", "array_length"),
        (b"\xdf\xff\xff\xff\xff", "map_length"),
        (b"\xc6\xff\xff\xff\xff", "binary_length"),
        (b"\xdc\x03\xff", "truncated"),
        (b"\xde\x00\x7f", "truncated"),
        (b"\xdc\x03\xff\xc1", "truncated"),  # refused by its header, before what follows is read
    ],
)
def test_every_violation_has_its_code(message, code):
    assert refused(message) == code


def bombs():
    maps = b"\x80" * (20 << 20)
    yield "20 MB of empty maps", b"\xdd" + struct.pack(">I", len(maps)) + maps, WireLimits()
    yield "20 MB of nil", b"\xdd" + struct.pack(">I", 20 << 20) + b"\xc0" * (20 << 20), WireLimits()
    yield "7 MB of empty maps", b"\xdd" + struct.pack(">I", 7 << 20) + b"\x80" * (7 << 20), WireLimits()
    roomy = WireLimits(max_bytes=1 << 26, max_array_length=1 << 26)
    yield "20 MB of empty maps, long arrays allowed", b"\xdd" + struct.pack(">I", len(maps)) + maps, roomy
    rows = (b"\xdc\x04\x00" + b"\x80" * 1024) * 1000
    yield "a million empty maps in rows", b"\xdc\x03\xe8" + rows, WireLimits()
    yield "nested 1000", b"\x91" * 1000 + b"\xc0", WireLimits()
    yield "nested 100000", b"\x91" * 100_000 + b"\xc0", WireLimits()
    yield "nested maps", b"\x81\xa1a" * 100_000 + b"\xc0", WireLimits()


@pytest.mark.parametrize(
    ("data", "limits"), [bomb[1:] for bomb in bombs()], ids=[bomb[0] for bomb in bombs()]
)
def test_bombs_are_refused_at_once(data, limits):
    assert refused(data, limits=limits) in ("too_large", "array_length", "objects", "depth")


def test_limits_are_what_they_say():
    assert decode(
        packed([0] * 10), limits=WireLimits(max_objects=13)
    )  # the map, its key, the list, 10 numbers
    assert refused(packed([0] * 11), limits=WireLimits(max_objects=13)) == "objects"
    assert decode(packed([[1]]), limits=WireLimits(max_depth=3))
    assert refused(packed([[[1]]]), limits=WireLimits(max_depth=3)) == "depth"
    assert refused(packed(0), limits=WireLimits(max_bytes=3)) == "too_large"
    with pytest.raises(ValueError, match="max_depth"):
        WireLimits(max_depth=0)


def test_nan_passes_the_wire_because_it_is_the_readers_business():
    decoded = decode(encode({"a": np.array([np.nan, np.inf], np.float32), "b": float("nan")}))
    assert np.isnan(decoded["a"][0])
    assert np.isnan(decoded["b"])


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array(["x"]),
        np.zeros(2, dtype=">f4"),
        np.zeros(2, dtype=np.complex64),
        object(),
        {"a": {1, 2}},
        2**70,
    ],
)
def test_nothing_else_is_sent(value):
    with pytest.raises(WireError):
        encode({"a": value})


# ---- vla-eval's images


def png(image, **more):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", **more)
    return buffer.getvalue()


def image_message(*, data, image_format="png", shape=(6, 7, 3)):
    return msgpack.packb(
        {"a": {"__image__": True, "format": image_format, "data": data, "shape": list(shape)}}
    )


def noise():
    return np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)


def test_png_and_raw_images_arrive_unchanged_and_jpeg_nearly():
    image = noise()
    (sent,) = decode(image_message(data=png(image)), dialect=Dialect.VLA_EVAL).values()
    np.testing.assert_array_equal(unpack_image(sent, max_pixels=100), image)
    raw = {"__image__": True, "format": "raw", "data": image.tobytes(), "dtype": "|u1", "shape": [6, 7, 3]}
    np.testing.assert_array_equal(decode(packed(raw), dialect=Dialect.VLA_EVAL)["a"], image)
    smooth, buffer = np.full((6, 7, 3), 90, np.uint8), io.BytesIO()
    Image.fromarray(smooth).save(buffer, format="JPEG", quality=95)
    (sent,) = decode(
        image_message(data=buffer.getvalue(), image_format="jpeg"), dialect=Dialect.VLA_EVAL
    ).values()
    assert np.abs(unpack_image(sent, max_pixels=100).astype(int) - 90).max() <= 3


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"image_format": "webp"}, "image_format"),
        ({"image_format": "gif"}, "image_format"),
        ({"image_format": None}, "image_format"),
        ({"shape": (-6, 7, 3)}, "shape"),
        ({"shape": (2**40, 7, 3)}, "shape"),
    ],
)
def test_an_image_of_another_form_is_refused_on_the_wire(changes, code):
    assert refused(image_message(data=png(noise()), **changes), dialect=Dialect.VLA_EVAL) == code


@pytest.mark.parametrize(
    ("data", "shape", "code"),
    [
        (png(noise()), (7, 6, 3), "image_form"),
        (png(noise()), (6, 7), "image_form"),
        (png(noise()[..., 0]), (6, 7, 3), "image_form"),
        (png(noise()), (1000, 1000, 3), "image_size"),
        (png(noise()), (0, 7, 3), "image_size"),
        (png(noise())[:60], (6, 7, 3), "image_data"),
        (png(noise())[:-50], (6, 7, 3), "image_data"),
        (b"GIF89a not allowed here", (6, 7, 3), "image_data"),
        (b"", (6, 7, 3), "image_data"),
    ],
)
def test_a_compressed_image_must_be_what_was_announced(data, shape, code):
    with pytest.raises(WireError) as caught:
        unpack_image(PackedImage(format="png", data=data, shape=shape), max_pixels=10_000)
    assert caught.value.code == code


def test_a_decompression_bomb_is_refused_before_it_unfolds():
    width = 20_000  # 1.2 GB of pixels behind a few bytes
    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + b"\0" * 4
    start = time.thread_time()
    with pytest.raises(WireError) as caught:
        unpack_image(PackedImage(format="png", data=data, shape=(6, 7, 3)), max_pixels=10_000)
    assert time.thread_time() - start < SLOW_S
    assert caught.value.code in ("image_data", "image_form")


@LENIENT
@given(st.data())
def test_damaged_images_are_read_or_refused(data):
    image_format = data.draw(st.sampled_from(["png", "jpeg"]))
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, format=image_format)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    packed_image = PackedImage(format=image_format, data=bytes(damaged), shape=(6, 7, 3))
    with contextlib.suppress(WireError):
        assert unpack_image(packed_image, max_pixels=100).shape == (6, 7, 3)


def test_resizing_stretches_or_pads():
    image = np.full((4, 8, 3), 200, dtype=np.uint8)
    assert (resize_image(image, height=8, width=8, mode="stretch") == 200).all()
    padded = resize_image(image, height=8, width=8, mode="pad")
    assert (padded[2:6] == 200).all()
    assert not padded[:2].any()
    assert not padded[6:].any()
    with pytest.raises(ValueError, match="crop"):
        resize_image(image, height=8, width=8, mode="crop")
