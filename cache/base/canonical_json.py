"""Canonical JSON that carries its own digest, and a reader that takes nothing on trust."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from math import isfinite
from typing import Any, NoReturn, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from blake3 import blake3

from cache.base.errors import SeeonceError, StoreError

JsonValue = Union[None, bool, int, float, str, Sequence["JsonValue"], Mapping[str, "JsonValue"]]  # noqa: UP007

Record = TypeVar("Record")

SEAL_FIELD = "metadata_digest"
UNSEALED = "0" * 64
# A quotation mark inside a JSON string is escaped, so this matches a real field only. The comma is
# there because every sealed document has a field that sorts after this one.
_SEAL = re.compile(rb'"metadata_digest":"([0-9a-f]{64})",')


def canonical(document: JsonValue) -> bytes:
    """Return the one text of a document: keys sorted, no spaces, ASCII, no NaN."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def record_to_json(record: Any) -> dict[str, JsonValue]:
    """Return the fields of a dataclass as JSON; None is left out where it is a field's default."""
    values = ((field, getattr(record, field.name)) for field in fields(record))
    return {field.name: _plain(value) for field, value in values if value is not None or field.default}


def _plain(value: Any) -> JsonValue:
    if is_dataclass(value):
        return str(value) if hasattr(value, "from_hex") else record_to_json(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def seal(document: JsonValue) -> bytes:
    """Return canonical JSON whose ``metadata_digest`` (given as ``UNSEALED``) is filled in.

    The digest is the BLAKE3 of the text with that field, and the comma after it, cut out.
    """
    raw = canonical(document)
    match = _find(raw)
    if match[1].decode() != UNSEALED:
        raise ValueError(f"{SEAL_FIELD} is filled in by seal()")
    digest = blake3(_cut(raw, match)).hexdigest().encode("ascii")
    return raw[: match.start(1)] + digest + raw[match.end(1) :]


def unseal(raw: bytes, what: str) -> "JsonObject":
    """Check the seal over the exact bytes of a document, then parse it.

    Raises:
        StoreError: a bit was flipped anywhere, or it is no JSON object.
    """
    check_seal(raw, what)
    return parse(raw, what)


def check_seal(raw: bytes, what: str) -> None:
    """Check the seal over the exact bytes of a document.

    Raises:
        StoreError: a bit was flipped anywhere.
    """
    try:
        match = _find(raw)
    except ValueError:
        raise StoreError(f"{what}: expected one {SEAL_FIELD}, found none or several") from None
    digest = match[1].decode("ascii")
    if (found := blake3(_cut(raw, match)).hexdigest()) != digest:
        raise StoreError(f"{what}: expected digest {digest}, the text has {found}")


def parse(raw: bytes, what: str) -> "JsonObject":
    """Parse a JSON object.

    Raises:
        StoreError: it is not JSON, not an object, or has NaN, infinite numbers or a field twice.
    """
    try:
        return JsonObject(_DECODER.decode(raw.decode("utf-8")), what)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{what}: not readable as JSON: {error}") from None


def _find(raw: bytes) -> re.Match[bytes]:
    matches = list(_SEAL.finditer(raw))
    if len(matches) != 1:
        raise ValueError("expected exactly one seal")
    return matches[0]


def _cut(raw: bytes, match: re.Match[bytes]) -> bytes:
    return raw[: match.start()] + raw[match.end() :]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if isfinite(value := float(text)):
        return value
    raise ValueError(f"{text[:80]} is no finite number")


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Of a field that is there twice one reader takes the first and another the last.
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is there twice")
    return fields


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_each_once
)


def _is_integer(value: object) -> TypeGuard[int]:
    # A larger one fits into no field, overflows a float, and cannot even be printed at 4,300 digits.
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _is_number(value: object) -> TypeGuard[float]:
    return (type(value) is float and isfinite(value)) or _is_integer(value)


class JsonObject:
    """A JSON object of unknown origin; each accessor raises ``StoreError`` for a wrong type."""

    __slots__ = ("_fields", "_what")

    def __init__(self, value: object, what: str) -> None:
        self._what = what
        if not isinstance(value, dict):
            raise StoreError(f"{what}: expected an object, got {type(value).__name__}")
        self._fields: dict[str, object] = value

    def record(self, cls: Callable[..., Record], *, exactly: bool = False, partly: bool = False) -> Record:
        """Return a dataclass, each field read as its type says.

        Digests are read from their digits. A field whose default is None may be left out. ``exactly``
        refuses other fields; ``partly`` gives a field that is missing or wrong its default.
        """
        readers = _readers(cls, partly)
        if exactly:
            self.only(frozenset(readers))
        try:
            if partly:
                return cls(**self._readable(readers))
            return cls(**{name: read(self, name) for name, read in readers.items()})
        except ValueError as error:
            raise StoreError(f"{self._what}: {error}") from None

    def _readable(self, readers: "dict[str, Callable[[JsonObject, str], object]]") -> dict[str, object]:
        values = {}
        for name, read in readers.items():
            with suppress(SeeonceError, ValueError):
                values[name] = read(self, name)
        return values

    def only(self, names: frozenset[str]) -> "JsonObject":
        """Demand exactly these fields."""
        if self._fields.keys() != names:
            wrong = ", ".join(sorted(self._fields.keys() ^ names))[:200]
            raise StoreError(f"{self._what}: missing or unknown fields: {wrong}")
        return self

    def has(self, name: str) -> bool:
        """Tell whether a field that may be left out is there."""
        return name in self._fields

    def raw(self, name: str) -> object:
        """Return a field as parsed."""
        try:
            return self._fields[name]
        except KeyError:
            raise StoreError(f"{self._what}: no field {name!r}") from None

    def text(self, name: str) -> str:
        """Return a string."""
        value = self.raw(name)
        return value if isinstance(value, str) else self._wrong(name, "a string", value)

    def integer(self, name: str) -> int:
        """Return an integer of at most 64 bits; true and false are not integers."""
        value = self.raw(name)
        return value if _is_integer(value) else self._wrong(name, "an integer", value)

    def number(self, name: str) -> float:
        """Return a finite float; an integer is taken as one."""
        value = self.raw(name)
        return float(value) if _is_number(value) else self._wrong(name, "a number", value)

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self.raw(name)
        return value if isinstance(value, bool) else self._wrong(name, "true or false", value)

    def text_or_none(self, name: str) -> str | None:
        """Return a string, or None for null."""
        return None if self.raw(name) is None else self.text(name)

    def integer_or_none(self, name: str) -> int | None:
        """Return an integer, or None for null."""
        return None if self.raw(name) is None else self.integer(name)

    def number_or_none(self, name: str) -> float | None:
        """Return a float, or None for null."""
        return None if self.raw(name) is None else self.number(name)

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of integers."""
        value = self.raw(name)
        if isinstance(value, list) and all(map(_is_integer, value)):
            return tuple(value)
        return self._wrong(name, "a list of integers", value)

    def triple(self, name: str) -> tuple[int, int, int]:
        """Return a list of three integers."""
        match self.integers(name):
            case (first, second, third):
                return first, second, third
            case _:
                return self._wrong(name, "three integers", self.raw(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self.raw(name)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        return self._wrong(name, "a list of strings", value)

    def text_by_name(self, name: str) -> dict[str, str]:
        """Return a nested object whose values are strings."""
        found = self.child(name)
        return {name: found.text(name) for name in found._fields}

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of numbers as floats."""
        value = self.raw(name)
        if isinstance(value, list) and all(map(_is_number, value)):
            return tuple(map(float, value))
        return self._wrong(name, "a list of numbers", value)

    def child(self, name: str) -> "JsonObject":
        """Return a nested object."""
        return JsonObject(self.raw(name), f"{self._what}.{name}")

    def children(self, name: str) -> "list[JsonObject]":
        """Return a list of nested objects."""
        value = self.raw(name)
        if not isinstance(value, list):
            return self._wrong(name, "a list", value)
        what = f"{self._what}.{name}"
        return [JsonObject(item, what) for item in value]

    def length(self, name: str) -> int:
        """Return the number of elements of a list."""
        value = self.raw(name)
        return len(value) if isinstance(value, list) else self._wrong(name, "a list", value)

    def _wrong(self, name: str, expected: str, value: object) -> NoReturn:
        raise StoreError(f"{self._what}: {name} should be {expected}, got {str(value)[:80]!r}")


_READERS: dict[Any, Callable[[JsonObject, str], object]] = {
    str: JsonObject.text,
    int: JsonObject.integer,
    float: JsonObject.number,
    bool: JsonObject.flag,
    str | None: JsonObject.text_or_none,
    int | None: JsonObject.integer_or_none,
    float | None: JsonObject.number_or_none,
    tuple[int, int, int]: JsonObject.triple,
    tuple[int, ...]: JsonObject.integers,
    tuple[float, ...]: JsonObject.numbers,
    tuple[str, ...]: JsonObject.texts,
    dict[str, str]: JsonObject.text_by_name,
}


@cache
def _readers(cls: Any, partly: bool) -> dict[str, Callable[[JsonObject, str], object]]:
    types = get_type_hints(cls)
    return {field.name: _reader(types[field.name], field.default is None, partly) for field in fields(cls)}


def _reader(of: Any, may_be_left_out: bool, partly: bool) -> Callable[[JsonObject, str], object]:
    if of in _READERS:
        read = _READERS[of]
        if not may_be_left_out:
            return read
        return lambda document, name: read(document, name) if document.has(name) else None
    if hasattr(of, "from_hex"):
        return lambda document, name: of.from_hex(document.text(name))
    if isinstance(of, type) and issubclass(of, StrEnum):
        return lambda document, name: of(document.text(name))
    if get_origin(of) is tuple:
        item = get_args(of)[0]
        if hasattr(item, "from_hex"):
            return lambda document, name: tuple(map(item.from_hex, document.texts(name)))
        return lambda document, name: tuple(child.record(item) for child in document.children(name))
    return lambda document, name: document.child(name).record(of, exactly=not partly, partly=partly)
