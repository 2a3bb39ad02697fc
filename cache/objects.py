"""The objects under an address such as s3://bucket/prefix, by obstore: put once, read, listed, deleted.

Credentials come from the environment alone, and no message shows any.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from cache.base.errors import InputError, NotEncodedError, StoreError
from cache.entry import DamagedError

if TYPE_CHECKING:
    from obstore import Bytes, ObjectMeta

Answer = TypeVar("Answer")

SCHEMES = ("s3", "gs", "az", "file", "memory")
_TRIES = 4  # of a request whose answer breaks off; a repeated put learns whether the first arrived
_WAIT_S = 0.5
_STREAM_BYTES = 256 << 10  # less means more calls, between threads; more does not fit the processor's caches
# A transfer may take minutes; a connection that gives nothing for so long is tried again.
_CLIENT = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "15m"}
_RETRY = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
_RETRY_BRIEFLY = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
_RETRY_ANONYMOUS = {"max_retries": 0, "retry_timeout": timedelta(seconds=10)}

# What servers say, in the order in which it is looked for, and what helps.
_REASONS = (
    (r"NoSuchBucket|ContainerNotFound|bucket does not exist", "there is no such bucket; make it first"),
    (
        r"RequestTimeTooSkewed|RequestTimeSkewed",
        "this machine's clock is wrong, and the server refuses it; set the clock",
    ),
    (
        r"ExpiredToken|TokenExpired|token.{0,20}expired",
        "the credentials have expired; get new ones and run the same command again to continue",
    ),
    (
        r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|redirect without LOCATION",
        "the bucket lies in another region; set AWS_REGION to its region",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidClientTokenId",
        "the server does not know these credentials; check those in the environment",
    ),
    (
        r"169\.254\.169\.254|metadata\.google|MissingCredential|[Cc]redential|AZURE_|account name",
        "there are no credentials in the environment; set them as docs/guides/bucket.md says",
    ),
    (
        r"AccessDenied|Forbidden|status code: 40[13]|[Pp]ermission denied|Unauthenticated",
        "these credentials have no right to do that; ask whoever runs the bucket",
    ),
    (
        r"QuotaExceeded|EntityTooLarge|InsufficientStorage|status code: 507|StorageFull|No space left",
        "the bucket is full; free some space there, and run the same command again to continue",
    ),
    (
        r"SlowDown|TooManyRequests|status code: 503|status code: 429|ServerBusy",
        "the server is throttling; run the same command again later to continue",
    ),
    (
        r"NotImplemented|status code: 501",
        "the server does not do what is asked; use one with conditional puts (If-None-Match)",
    ),
)
_REFUSED = r"status code: 4\d\d"
_CUT = r"response body error|error decoding response body"
_BROKEN = rf"{_CUT}|timed? ?out|[Cc]onnect|dns|error sending request|after \d+ retries"


class UnreachableError(StoreError):
    """A bucket cannot be used now; what is there locally still can."""


class BrokenError(UnreachableError):
    """No answer came: nobody knows what arrived."""


class CutError(BrokenError):
    """An answer broke off."""


def is_address(text: str) -> bool:
    """Say whether a text is meant as an address of objects, rather than as a path."""
    scheme, slashes, _ = text.partition("://")
    return bool(slashes) and scheme in SCHEMES


def check_address(text: str) -> str:
    """Return an address as it is shown: without a slash at its end.

    Raises:
        InputError: it is no address of objects, or has credentials in it.
    """
    try:
        parts = urlsplit(text)
        user = parts.username or parts.password or "@" in parts.netloc
    except ValueError:
        raise InputError("the address of the bucket cannot be read: expected s3://bucket/prefix") from None
    if user or parts.query or parts.fragment:  # never shown: these may be a key
        raise InputError(
            f"an address has no user, key or question mark in it: give {parts.scheme}://bucket/prefix, and "
            "credentials in the environment"
        )
    if parts.scheme not in SCHEMES:
        raise InputError(
            f"{text!r} is no address of a bucket: expected s3://, gs:// or az:// with bucket and prefix, or "
            "file:///folder"
        )
    path = unquote(parts.path)
    if ".." in path.split("/") or not path.isprintable() or (parts.scheme == "file" and parts.netloc):
        raise InputError(f"{text!r} is no address: expected {parts.scheme}://…/prefix without '..'")
    if parts.scheme in ("s3", "gs", "az") and not parts.netloc:
        raise InputError(f"{text!r} names no bucket: expected {parts.scheme}://bucket/prefix")
    if parts.scheme == "file" and len(path) < 2:
        raise InputError(f"{text!r} names no folder: expected file:///folder")
    return text.rstrip("/")


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects by their names below an address. Threads share it."""

    address: str
    store: Any

    @classmethod
    def open(cls, address: str, *, create: bool = False, patient: bool = True) -> Self:
        """Open an address; nothing is sent yet. The folder of a file:// is made with ``create``, mode 0700.

        The ``patient`` try for minutes to reach it, others for seconds.

        Raises:
            InputError: it is no address.
            StoreError: obstore is missing, or what the environment says of credentials is nonsense.
        """
        address = check_address(address)
        if address.startswith("file://"):
            folder = _folder(address)
            try:
                if create:
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                elif not folder.is_dir():
                    raise NotEncodedError(f"there is nothing at {address}: there is no such folder")
            except OSError as error:
                raise StoreError(f"cannot use {address}: {error.strerror}; check its permissions") from error
        return cls(address, _from_url(address, _RETRY if patient else _RETRY_BRIEFLY))

    def is_public(self, name: str) -> bool:
        """Say whether anybody can read or list what is there, without credentials; False if unknown."""
        scheme = self.address.partition("://")[0]
        if scheme == "file":
            path = _folder(self.address)
            return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents))
        if scheme == "memory":
            return False
        anyone, obstore = _from_url(self.address, _RETRY_ANONYMOUS, skip_signature=True), _obstore()
        with suppress(Exception):  # no right, no answer in time, or a server without an anonymous way
            return bool(obstore.head(anyone, name))
        with suppress(Exception):  # stand-ins such as moto let everyone list, and nobody but us reaches them
            return not _is_on_this_machine() and bool(next(obstore.list(anyone, chunk_size=1), None))
        return False

    def put_new(
        self, name: str, content: bytes | NDArray[np.uint8], attributes: Mapping[str, str] | None = None
    ) -> str | None:
        """Put an object that is not there yet; return its ETag, or None when there is one of that name.

        Raises:
            StoreError: the server refuses, or cannot be reached.
        """
        obstore, what = _obstore(), f"cannot write {name}"
        from obstore.exceptions import AlreadyExistsError

        if self.address.startswith("file:"):
            attributes = None  # a file has none

        def put() -> str | None:
            try:
                done = obstore.put(
                    self.store,
                    name,
                    content,
                    mode="create",
                    use_multipart=False,
                    attributes=dict(attributes) if attributes else None,
                )
                return done["e_tag"] or ""
            except AlreadyExistsError:
                return None
            except FileNotFoundError as error:
                raise self.error(what, error) from None

        return self._ask(what, put, BrokenError)

    def get(self, name: str, max_bytes: int) -> bytes | None:
        """Return a small object; None when there is none.

        Raises:
            DamagedError: it is larger than ``max_bytes``.
            StoreError: the server refuses, or cannot be reached.
        """

        def get() -> bytes:
            found = _obstore().get(self.store, name)
            if found.meta["size"] > max_bytes:
                raise DamagedError(f"{name} has {found.meta['size']} bytes, at most {max_bytes} are allowed")
            return bytes(found.bytes())

        return self._ask(f"cannot read {name}", get)

    def stream(self, name: str) -> "Stream | None":
        """Begin to read a large object; None when there is none.

        Raises:
            StoreError: the server refuses, or cannot be reached.
        """

        def get() -> Stream:
            found = _obstore().get(self.store, name)
            chunks = iter(found.stream(min_chunk_size=_STREAM_BYTES))
            return Stream(self, name, found.meta, dict(found.attributes), chunks)

        return self._ask(f"cannot read {name}", get)

    def head(self, name: str) -> "ObjectMeta | None":
        """Return size, ETag and time of an object; None when there is none.

        Raises:
            StoreError: the server refuses, or cannot be reached.
        """
        obstore = _obstore()

        def head() -> "ObjectMeta":
            try:
                return obstore.head(self.store, name)
            except Exception as error:
                if re.search(_REFUSED, str(error)):  # in one word: the answer to a GET says why
                    obstore.get_range(self.store, name, start=0, length=1)
                raise

        return self._ask(f"cannot look at {name}", head)

    def delete(self, name: str) -> None:
        """Delete an object, if it is there.

        Raises:
            StoreError: the server refuses, or cannot be reached.
        """
        self._ask(f"cannot delete {name}", lambda: _obstore().delete(self.store, name))

    def list(self, folder: str) -> "Iterator[ObjectMeta]":
        """Yield what lies below a folder, in no particular order.

        Raises:
            StoreError: the server refuses, or cannot be reached.
        """
        what, last, tries_left = f"cannot list {folder or 'it'}", None, _TRIES
        while tries_left:
            tries_left -= 1
            try:
                with self._errors(what):
                    for found in _obstore().list(self.store, folder, offset=last, chunk_size=1000):
                        yield from found
                        last, tries_left = found[-1]["path"], _TRIES  # servers list by name
                    return
            except FileNotFoundError as error:
                raise self.error(what, error) from None
            except CutError:
                if not tries_left:
                    raise
            time.sleep(_WAIT_S)

    def folder(self) -> "tuple[Sequence[ObjectMeta], Sequence[str]]":
        """Return what lies right below the address, and the names of the folders there, each with a slash.

        Raises:
            StoreError: the server refuses, or cannot be reached.
        """
        found = self._ask("cannot list it", lambda: _obstore().list_with_delimiter(self.store))
        if found is None:
            raise self.error("cannot list it", FileNotFoundError())
        return found["objects"], [f"{name}/" for name in found["common_prefixes"]]

    def _ask(
        self, what: str, request: Callable[[], Answer], again: type[BrokenError] = CutError
    ) -> Answer | None:
        """Return what a request gives, None when there is no such object.

        A request without an answer is tried again by obstore, one whose answer breaks off here.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                with self._errors(what):
                    return request()
            except FileNotFoundError:
                return None
            except again:
                if not tries_left:
                    raise
            time.sleep(_WAIT_S)
        return None  # pragma: no cover - the last try raises

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn what obstore raises into one line; a missing object passes as Python's own error."""
        try:
            yield
        except (FileNotFoundError, StoreError):
            raise
        except Exception as error:
            raise self.error(what, error) from None

    def error(self, what: str, error: Exception) -> StoreError:
        """Return the error that says what could not be done here, why, and what helps."""
        text = f"{type(error).__name__} {error}"
        if isinstance(error, FileNotFoundError):
            text = f"NoSuchBucket {text}"
        for pattern, advice in _REASONS:
            if re.search(pattern, text):
                return UnreachableError(f"{self.address}: {what}: {advice}")
        if re.search(_BROKEN, text) and not re.search(_REFUSED, text):
            return (CutError if re.search(_CUT, text) else BrokenError)(
                f"{self.address}: {what}: it cannot be reached, or the connection broke; check the address "
                "and the network, and run the same command again to continue"
            )
        return StoreError(f"{self.address}: {what}: {_without_secrets(text)[:300]}")


class Stream:
    """An object that is being read."""

    def __init__(
        self,
        objects: Objects,
        name: str,
        meta: "ObjectMeta",
        attributes: Mapping[str, str],
        chunks: "Iterator[Bytes]",
    ) -> None:
        self.size, self.etag = meta["size"], meta["e_tag"] or ""
        self.attributes = attributes
        self._objects, self._name, self._chunks = objects, name, chunks
        self._left = np.empty(0, np.uint8)

    def readinto(self, part: NDArray[np.uint8]) -> None:
        """Put the next bytes into ``part``, all of it.

        Raises:
            DamagedError: there are no more.
            StoreError: the connection broke, and another try did not help.
        """
        filled = 0
        while filled < part.nbytes:
            found = self.read(part.nbytes - filled)
            part[filled : filled + found.nbytes] = found
            filled += found.nbytes

    def read(self, max_bytes: int) -> NDArray[np.uint8]:
        """Return the next bytes as they came, without a copy: at least one of them.

        Raises:
            DamagedError: there are no more.
            StoreError: the connection broke, and another try did not help.
        """
        if not self._left.nbytes:
            with self._objects._errors(f"cannot read {self._name}"):
                chunk = next(self._chunks, None)
            if chunk is None:
                raise DamagedError(f"{self._name} ended after fewer bytes than it should have")
            self._left = np.frombuffer(chunk, np.uint8)
        found, self._left = self._left[:max_bytes], self._left[max_bytes:]
        return found


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise StoreError("buckets need obstore: run pip install 'seeonce[bucket]'") from None
    return obstore


@cache
def _in_memory(_address: str) -> Any:
    """Return a store that lasts as long as the process, the same one for the same address."""
    from obstore.store import MemoryStore

    return MemoryStore()


def _is_on_this_machine() -> bool:
    return re.match(r"http://(127\.|localhost[:/])", os.environ.get("AWS_ENDPOINT_URL", "")) is not None


def _folder(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))


def _from_url(address: str, retry: Mapping[str, Any], **config: Any) -> Any:
    _obstore()
    from obstore.store import from_url

    scheme = address.partition("://")[0]
    if scheme == "memory":
        return _in_memory(address)
    if scheme == "file":
        return from_url(address)
    client: dict[str, Any] = dict(_CLIENT)
    if _is_on_this_machine():
        client["allow_http"] = True
    if scheme == "s3":
        config["checksum_algorithm"] = "SHA256"
    try:
        return from_url(address, client_options=client, retry_config=retry, **config)
    except Exception as error:
        raise Objects(address, None).error("cannot open it", error) from None


def _without_secrets(text: str) -> str:
    """Return the first line of a message without queries, and without what the environment keeps secret."""
    line = re.sub(r"\?[^\s\"']*", "", text.partition("\n")[0])
    for name, value in os.environ.items():
        if len(value) >= 6 and re.search(r"SECRET|TOKEN|KEY|PASSWORD|SAS|CREDENTIAL", name):
            line = line.replace(value, "…")
    return line
