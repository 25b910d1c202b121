"""Arrays and plain values in msgpack, in two spellings, read strictly: what a server or client may be sent.

    openpi     {b"__ndarray__": True, b"data": bin, b"dtype": "<f4", b"shape": [2, 3]}   (bin keys)
    vla-eval   {"__ndarray__": True, "data": bin, "dtype": "<f4", "shape": [2, 3]}       (str keys)
               {"__image__": True, "format": "png", "data": bin, "shape": [256, 256, 3]}

The reader is our own: it takes one pass, counts every object against `WireLimits` before it makes it, hands
out arrays as read-only views of the message, and knows an explicit list of dtypes; there is no pickle. It
leaves compressed images packed (see wire_images.py).
"""

import math
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import msgpack
import numpy as np

from vla.errors import VLAError
from vla.registry import Range, check_attributes

DTYPES = ("|b1", "|u1", "<i4", "<i8", "<f2", "<f4", "<f8")
IMAGE_FORMATS = ("png", "jpeg")


class Dialect(Enum):
    """How arrays are spelled."""

    OPENPI = "openpi"
    VLA_EVAL = "vla-eval"


class WireError(VLAError):
    """A message breaks a rule of the wire; `code` is one word for programs, the text is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class WireLimits:
    """The largest message that is read; anything beyond is refused before memory is taken for it."""

    max_bytes: Annotated[int, Range(1, 1 << 26), "of a whole message"] = 8 << 20
    max_depth: Annotated[int, Range(1, 64), "maps and arrays inside one another"] = 8
    max_objects: Annotated[int, Range(1, 1 << 20), "values and keys, all together"] = 4096
    max_map_length: Annotated[int, Range(1, 1 << 16), "keys of a map"] = 128
    max_array_length: Annotated[
        int, Range(1, 1 << 26), "of a msgpack array; numbers in bulk belong into an ndarray"
    ] = 1024
    max_string_bytes: Annotated[int, Range(1, 1 << 20), "of a string"] = 4096
    max_binary_bytes: Annotated[int, Range(1, 1 << 26), "of binary data"] = 8 << 20
    max_elements: Annotated[int, Range(1, 1 << 26), "of an ndarray"] = 8 << 20
    max_dimensions: Annotated[int, Range(1, 32), "of an ndarray"] = 5

    def __post_init__(self) -> None:
        check_attributes(self, where="limits")


DEFAULT_LIMITS = WireLimits()


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedImage:
    """A compressed image as it was sent; nothing but the announced shape has been checked."""

    format: str  # one of IMAGE_FORMATS
    data: bytes
    shape: tuple[int, ...]  # height, width, channels


def encode(value: Any, *, dialect: Dialect = Dialect.OPENPI) -> bytes:
    """Return `value` as msgpack: None, bool, numbers, str, bytes, lists, maps, numpy arrays and scalars.

    Raises:
        WireError: a value has a type or dtype that the wire does not carry, or nests too deep.
    """

    def convert(item: Any) -> Any:
        if isinstance(item, np.ndarray):
            return _spell_array(item, dialect)
        if isinstance(item, np.generic):
            return _spell_scalar(item, dialect)
        raise WireError("type", f"{type(item).__name__} cannot be sent; numpy arrays and plain values can")

    try:
        packed = msgpack.packb(value, default=convert)
    except (OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise WireError("type", f"a value cannot be sent: {error}") from error
    assert isinstance(packed, bytes)
    return packed


def _spell_array(array: np.ndarray, dialect: Dialect) -> dict[Any, Any]:
    _require_dtype(array.dtype.str)
    data, shape = array.tobytes(), list(array.shape)
    if dialect is Dialect.OPENPI:
        return {b"__ndarray__": True, b"data": data, b"dtype": array.dtype.str, b"shape": shape}
    return {"__ndarray__": True, "data": data, "dtype": array.dtype.str, "shape": shape}


def _spell_scalar(scalar: np.generic, dialect: Dialect) -> Any:
    _require_dtype(scalar.dtype.str)
    if dialect is Dialect.OPENPI:
        return {b"__npgeneric__": True, b"data": scalar.item(), b"dtype": scalar.dtype.str}
    return scalar.item()


def _require_dtype(name: Any) -> np.dtype[Any]:
    if name not in DTYPES:
        shown = repr(name)[:40] if isinstance(name, str) else type(name).__name__
        raise WireError("dtype", f"arrays of dtype {shown} are not sent; {', '.join(DTYPES)} are")
    return np.dtype(name)


def decode(
    data: bytes, *, dialect: Dialect = Dialect.OPENPI, limits: WireLimits = DEFAULT_LIMITS
) -> dict[str, Any]:
    """Read one message: a map with str keys. Arrays are read-only views of `data`.

    Raises:
        WireError: the message breaks a limit or a rule, at a cost that does not grow with its claims.
    """
    if len(data) > limits.max_bytes:
        raise WireError("too_large", f"the message has {len(data)} bytes, the limit is {limits.max_bytes}")
    reader = _Reader(data, dialect, limits)
    value = reader.read(depth=0)
    if reader.at != len(data):
        raise WireError("trailing", f"{len(data) - reader.at} bytes follow the message")
    if not isinstance(value, dict):
        raise WireError("not_a_map", f"the message is a {type(value).__name__}, not a map")
    return value


class _Reader:
    """One pass over a message. `at` is the next unread byte."""

    def __init__(self, data: bytes, dialect: Dialect, limits: WireLimits) -> None:
        self._view, self._limits, self._dialect = memoryview(data), limits, dialect
        self._num_objects = 0
        self.at = 0

    def read(self, *, depth: int) -> Any:
        """Return the next value; binary data as a view."""
        self._num_objects += 1
        if self._num_objects > self._limits.max_objects:
            raise WireError("objects", f"more than {self._limits.max_objects} values in one message")
        if self.at == len(self._view):
            raise WireError("truncated", "the message ends where a value should be")
        first = self._view[self.at]
        self.at += 1
        if first < 0x80:
            return first
        if first < 0x90:
            return self._read_map(first & 0x0F, depth=depth)
        if first < 0xA0:
            return self._read_array(first & 0x0F, depth=depth)
        if first < 0xC0:
            return self._read_string(first & 0x1F)
        if first >= 0xE0:
            return first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if first in _BINARIES:
            return self._read_binary(self._number(_BINARIES[first]))
        if first in _STRINGS:
            return self._read_string(self._number(_STRINGS[first]))
        if first in _ARRAYS:
            return self._read_array(self._number(_ARRAYS[first]), depth=depth)
        if first in _MAPS:
            return self._read_map(self._number(_MAPS[first]), depth=depth)
        raise WireError("extension", f"type byte 0x{first:02x}: extensions and time stamps are not read")

    def _take(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self._view):
            raise WireError("truncated", f"{end - len(self._view)} bytes are missing at the end")
        taken = self._view[self.at : end]
        self.at = end
        return taken

    def _number(self, form: struct.Struct) -> Any:
        (number,) = form.unpack(self._take(form.size))
        return number

    def _read_binary(self, length: int) -> memoryview:
        if length > self._limits.max_binary_bytes:
            raise WireError(
                "binary_length", f"binary of {length} bytes; the limit is {self._limits.max_binary_bytes}"
            )
        return self._take(length)

    def _read_string(self, length: int) -> str:
        if length > self._limits.max_string_bytes:
            raise WireError(
                "string_length", f"string of {length} bytes; the limit is {self._limits.max_string_bytes}"
            )
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise WireError("utf8", f"a string is no UTF-8: {error.reason}") from error

    def _enter(self, length: int, limit: int, *, values_each: int, depth: int, kind: str) -> None:
        """Refuse a map or array by its header alone."""
        if depth >= self._limits.max_depth:
            raise WireError("depth", f"maps and arrays nest deeper than {self._limits.max_depth}")
        if length > limit:
            raise WireError(f"{kind}_length", f"{kind} of {length} entries; the limit is {limit}")
        if length * values_each > len(self._view) - self.at:
            raise WireError("truncated", f"{kind} of {length} entries in a message too short for them")
        if self._num_objects + length * values_each > self._limits.max_objects:
            raise WireError("objects", f"more than {self._limits.max_objects} values in one message")

    def _read_array(self, length: int, *, depth: int) -> list[Any]:
        self._enter(length, self._limits.max_array_length, values_each=1, depth=depth, kind="array")
        return [_own(self.read(depth=depth + 1)) for _ in range(length)]

    def _read_map(self, length: int, *, depth: int) -> Any:
        self._enter(length, self._limits.max_map_length, values_each=2, depth=depth, kind="map")
        entries: dict[Any, Any] = {}
        if not length:
            return entries
        for _ in range(length):
            key = self.read(depth=depth + 1)
            if isinstance(key, memoryview):
                key = bytes(key)
            elif not isinstance(key, str):
                raise WireError("key", f"a map has a key of type {type(key).__name__}; keys are strings")
            if key in entries:
                raise WireError("duplicate_key", f"a map has the key {_show(key)} twice")
            entries[key] = self.read(depth=depth + 1)
        return self._finish(entries)

    def _finish(self, entries: dict[Any, Any]) -> Any:
        """Turn a map that spells an array, scalar or image into one; refuse every other spelling."""
        if self._dialect is Dialect.OPENPI:
            if b"__ndarray__" in entries:
                return _array(_fields(entries, (b"__ndarray__", b"data", b"dtype", b"shape")), self._limits)
            if b"__npgeneric__" in entries:
                return _scalar(_fields(entries, (b"__npgeneric__", b"data", b"dtype")))
        else:
            if "__ndarray__" in entries:
                return _array(_fields(entries, ("__ndarray__", "data", "dtype", "shape")), self._limits)
            if "__image__" in entries:
                return _image(entries, self._limits)
        _refuse_other_spellings(entries, self._dialect)
        return {key: _own(value) for key, value in entries.items()}


def _own(value: Any) -> Any:
    """Return a value fit to be handed out: views become bytes."""
    return bytes(value) if isinstance(value, memoryview) else value


def _show(key: str | bytes) -> str:
    return repr(key[:40])


def _fields(entries: dict[Any, Any], keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values behind the marker, which must be true and accompanied by exactly `keys`."""
    if set(entries) != set(keys) or entries[keys[0]] is not True:
        wanted = ", ".join(_show(key) for key in keys[1:])
        found = ", ".join(sorted(_show(key) for key in entries))
        raise WireError("array_form", f"a map with {_show(keys[0])} needs exactly {wanted}; it has {found}")
    return tuple(entries[key] for key in keys[1:])


def _shape(shape: Any, limits: WireLimits) -> tuple[int, ...]:
    """Check a shape by itself; the product is computed with Python's integers, which do not overflow."""
    if not isinstance(shape, list) or not all(type(length) is int for length in shape):
        raise WireError("shape", "the shape of an array is no list of integers")
    if len(shape) > limits.max_dimensions:
        raise WireError("shape", f"array of {len(shape)} dimensions; the limit is {limits.max_dimensions}")
    if any(not 0 <= length <= limits.max_elements for length in shape):
        raise WireError("shape", f"an axis length is negative or beyond {limits.max_elements}")
    if math.prod(shape) > limits.max_elements:
        raise WireError("elements", f"array of {math.prod(shape)} elements; limit {limits.max_elements}")
    return tuple(shape)


def _array(fields: tuple[Any, ...], limits: WireLimits) -> np.ndarray:
    data, dtype_name, raw_shape = fields
    dtype, shape = _require_dtype(dtype_name), _shape(raw_shape, limits)
    if not isinstance(data, memoryview):
        raise WireError("array_form", f"the data of an array is a {type(data).__name__}, not binary")
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(data):
        raise WireError(
            "shape", f"{dtype.str}{list(shape)} takes {expected} bytes; the message has {len(data)}"
        )
    if dtype.kind == "b" and (np.frombuffer(data, dtype=np.uint8) > 1).any():
        raise WireError("array_form", "a boolean array holds bytes other than 0 and 1")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _scalar(fields: tuple[Any, ...]) -> np.generic:
    data, dtype_name = fields
    dtype = _require_dtype(dtype_name)
    accepted: dict[str, tuple[type, ...]] = {"b": (bool,), "u": (int,), "i": (int,), "f": (int, float)}
    if type(data) not in accepted[dtype.kind]:
        raise WireError("array_form", f"a scalar of dtype {dtype.str} is sent as a {type(data).__name__}")
    try:
        with np.errstate(over="ignore"):  # a float beyond the range becomes infinite, as numpy has it
            return dtype.type(data)
    except OverflowError as error:
        raise WireError("array_form", f"a scalar does not fit dtype {dtype.str}") from error


def _image(entries: dict[Any, Any], limits: WireLimits) -> np.ndarray | PackedImage:
    image_format = entries.get("format")
    if image_format == "raw":
        entries = {key: value for key, value in entries.items() if key != "format"}
        return _array(_fields(entries, ("__image__", "data", "dtype", "shape")), limits)
    if image_format not in IMAGE_FORMATS:
        raise WireError("image_format", f"images come as raw, {', '.join(IMAGE_FORMATS)}")
    _, data, raw_shape = _fields(entries, ("__image__", "format", "data", "shape"))
    if not isinstance(data, memoryview):
        raise WireError("array_form", f"the data of an image is a {type(data).__name__}, not binary")
    return PackedImage(format=image_format, data=bytes(data), shape=_shape(raw_shape, limits))


def _refuse_other_spellings(entries: dict[Any, Any], dialect: Dialect) -> None:
    for key in entries:
        name = key.decode("latin-1") if isinstance(key, bytes) else key
        if name in ("__ndarray__", "__npgeneric__", "__image__", "__ndarray_class__", "__numpy__"):
            raise WireError(
                "dialect", f"an array is spelled with {_show(key)}; here arrays are {dialect.value}'s"
            )
    if {b"nd", b"kind"} & set(entries) or {"nd", "type", "kind", "data"} <= set(entries):
        raise WireError("dialect", "arrays of the msgpack-numpy package are not read; send openpi's form")
    binary = next((key for key in entries if isinstance(key, bytes)), None)
    if binary is not None:
        raise WireError("key", f"a map has the binary key {_show(binary)}; keys are strings")


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_BYTE, _SHORT, _LONG = struct.Struct(">B"), struct.Struct(">H"), struct.Struct(">I")
_NUMBERS = {
    first: struct.Struct(form)
    for first, form in zip(
        range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"), strict=True
    )
}
_BINARIES = {0xC4: _BYTE, 0xC5: _SHORT, 0xC6: _LONG}
_STRINGS = {0xD9: _BYTE, 0xDA: _SHORT, 0xDB: _LONG}
_ARRAYS = {0xDC: _SHORT, 0xDD: _LONG}
_MAPS = {0xDE: _SHORT, 0xDF: _LONG}
