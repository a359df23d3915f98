"""One object of S3: looked at, fetched, and replaced on the condition that it is still the one that was seen.

Every PUT carries a marker of its own in the object's metadata. After an answer that did not come, or one that says that the
condition fails, the marker tells whether what is there now is what was sent: a PUT whose answer was lost may have been carried
out, may be carried out later, or never. S3 itself makes two requests of one condition exclude each other, so trying again is safe
in all three cases.
"""

import hashlib
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from pgqrs import errors
from pgqrs.config import s3_object

T = TypeVar("T")

# Between the tries of one request, each up to twice as long by chance. S3 asks for that after 503, and 409 ends by itself.
BACKOFF_S = (0.05, 0.15, 0.4, 1.0)
GIVE_UP_S = 30.0  # after that no further try begins: nobody wants to wait for five timeouts
CONNECT_S = 5.0
REQUEST_S = 60.0  # for the whole of a request: 512 MiB in that time are 9 MiB/s
OBJECT_BYTES_MAX = (
    512 * 1024 * 1024
)  # the whole file goes up with each commit: long before, that is the wrong place for it
MARKER, DIGEST = "pgqrs-marker", "pgqrs-sha256"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first that is not empty counts
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ROLE_SERVICE = "169.254.169.254"  # where the driver looks for a machine's role when no keys are given
IN_HEADERS = (
    *KEYS,
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


class Version(Struct, frozen=True):
    etag: str
    marker: str | None  # None for an object that somebody else put


class Fetched(Struct, frozen=True):
    version: Version
    body: bytes
    checked: bool  # by a checksum that came with it


class Unchanged(Struct, frozen=True):
    pass


class S3Object:
    """Thread-safe. Every call raises PgqrsConnectionError for what cannot be reached or is refused, after the tries above.

    The driver's errors are quoted, never chained: they repeat the request, a session's token among its headers.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.bucket, self.key = s3_object(dsn)
        self.endpoint = endpoint()
        _refuse_line_breaks()
        _refuse_half_a_key()
        self._obstore = _driver()
        options: dict[str, Any] = {"timeout": f"{REQUEST_S:g}s", "connect_timeout": f"{CONNECT_S:g}s"}
        if self.endpoint.startswith("http://"):
            options["allow_http"] = True
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        # The driver takes an empty variable for an address.
        blank = any(os.environ.get(name) == "" for name in (*ENDPOINTS, "AWS_ENDPOINT"))
        address = self.endpoint or (f"https://s3.{region}.amazonaws.com" if blank else None)
        given = {"region": region} | ({"endpoint": address} if address else {})
        try:
            # Its own tries are switched off: they would not know of the marker.
            self._store = self._obstore.store.S3Store(
                self.bucket, client_options=options, retry_config={"max_retries": 0}, **given
            )
        except self._obstore.exceptions.BaseError as e:
            raise errors.ConfigError(f"{dsn}: {_short(e)}") from None

    def look(self) -> Version | None:
        """What is there now; None for nothing."""
        return self._reading(self._look)

    def fetch(self, unless: str | None = None) -> Fetched | Unchanged | None:
        """The object, unless its ETag is this; None where there is none."""

        def get() -> Fetched | Unchanged | None:
            try:
                result = self._get({"if_none_match": unless} if unless else {})
            except FileNotFoundError as e:
                if _code(e) == "NoSuchBucket":
                    raise self._no_bucket() from None
                return None
            except self._obstore.exceptions.NotModifiedError:
                return Unchanged()
            return Fetched(_version(result), _whole(result), DIGEST in result.attributes)

        return self._reading(get)

    def put(self, body: bytes, expected: str | None, marker: str | None = None) -> Version:
        """Replaces the version whose ETag is `expected`, or makes the object for None. An object that is gone meanwhile is
        made again. `marker` is one of `new_marker`, for a caller who wants to know his PUT again after an unknown outcome.

        Raises ConflictError when another version is there, which stays as it is: nothing was written. PgqrsConnectionError
        where it is unknown whether the object was replaced.
        """
        if len(body) > OBJECT_BYTES_MAX:
            raise errors.DatabaseError(
                f"{self.dsn} would have {len(body):,} bytes, over the limit of {OBJECT_BYTES_MAX:,}: each commit sends all of "
                "them. Purge queues that are done with, begin a new object, or move to postgresql://"
            )
        exceptions = self._obstore.exceptions
        marker = marker or new_marker()
        unsure = False  # whether one of our requests may have been, or be, carried out
        said: Exception | None = None
        for _ in _tries():
            try:
                return Version(self._put(body, expected, marker), marker)
            except FileNotFoundError as e:
                if expected is None or _code(e) != "NoSuchKey":
                    raise self._no_bucket() from None
                said = e  # Amazon's answer where a version is expected and there is none
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as e:
                raise self._refused(_short(e)) from None
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as e:
                said = e  # 412, or a 409: whose request was in our way may have failed
            except (exceptions.BaseError, OSError) as e:
                if not unsure and _definite(e):
                    raise self._refused(_short(e)) from None
                said, unsure = e, True
            try:
                there = self._look()
            except (exceptions.BaseError, OSError) as e:
                said = e
                continue
            if there is not None and there.marker == marker:
                return there
            if there is None:
                expected = None
            elif there.etag != expected:
                if not unsure:
                    raise errors.ConflictError(
                        f"conflict: {self.dsn} has been written by somebody else since it was read here. Theirs is kept, nothing of "
                        "this call was written: make it again"
                    )
                break
        told = f"{self.dsn} could not be written, or it is unknown whether it was"
        raise errors.PgqrsConnectionError(_no_keys(self.dsn, said) or f"{told}: {_short(said)}")

    def _put(self, body: bytes, expected: str | None, marker: str) -> str:
        result = self._obstore.put(
            self._store,
            self.key,
            body,
            attributes={MARKER: marker, DIGEST: hashlib.sha256(body).hexdigest()},
            mode="create" if expected is None else {"e_tag": expected},
            use_multipart=False,  # an upload in parts is not conditional as a whole
        )
        return str(result["e_tag"])

    def _get(self, options: dict[str, Any]) -> Any:
        return self._obstore.get(self._store, self.key, options=options)

    def _look(self) -> Version | None:
        try:
            return _version(self._get({"head": True}))
        except FileNotFoundError:
            return None

    def _reading(self, get: Callable[[], T]) -> T:
        exceptions = self._obstore.exceptions
        said: Exception | None = None
        for _ in _tries():
            try:
                return get()
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as e:
                raise self._refused(_short(e)) from None
            except (exceptions.BaseError, OSError) as e:
                if _definite(e):
                    raise self._refused(_short(e)) from None
                said = e
        if isinstance(said, Damaged):
            raise errors.PgqrsConnectionError(f"{self.dsn} is damaged, or arrives so: {said}")
        told = f"S3 fails for {self.dsn}" if _status(said) else f"cannot reach {self.dsn}"
        raise errors.PgqrsConnectionError(_no_keys(self.dsn, said) or f"{told}{self._found_by(_short(said))}")

    def _no_bucket(self) -> errors.PgqrsConnectionError:
        return self._refused(f"there is no bucket {self.bucket!r}")

    def _refused(self, told: str) -> errors.PgqrsConnectionError:
        return errors.PgqrsConnectionError(f"S3 refuses {self.dsn}{self._found_by(told)}")

    def _found_by(self, told: str) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return (
            f"{at}: {told}; the endpoint, the region and the keys come from the variables AWS_ENDPOINT_URL, AWS_REGION, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


class Damaged(OSError):
    """What arrived is not what was stored. On the way that is chance, so it is asked for again."""


def _version(result: Any) -> Version:
    marker = result.attributes.get(MARKER)
    return Version(str(result.meta["e_tag"]), None if marker is None else str(marker))


def _whole(result: Any) -> bytes:
    body = bytes(result.bytes())
    digest = result.attributes.get(DIGEST)
    if len(body) != result.meta["size"] or (
        digest is not None and digest != hashlib.sha256(body).hexdigest()
    ):
        raise Damaged(f"its checksum, {DIGEST} in its metadata, is that of other bytes")
    return body


def new_marker() -> str:
    return uuid.uuid4().hex


def _tries() -> Iterator[None]:
    """Once for each try of a request, after its pause."""
    until = time.monotonic() + GIVE_UP_S
    yield
    for pause_s in BACKOFF_S:
        time.sleep(pause_s * random.uniform(1, 2))
        if time.monotonic() >= until:
            return
        yield


def _short(error: Exception | None) -> str:
    """The driver's message without its Debug part, and what the server's XML says in words. The rest of that XML may quote the
    request and its token."""
    told = str(error).split("\n\nDebug source", 1)[0]
    words, *_ = re.split(r"<\?xml|<Error", told, maxsplit=1)
    said = re.findall(r"<(?:Code|Message)>(.*?)</", told, re.S)
    return ": ".join(part for part in (words.strip().rstrip(":"), *said) if part)


def _code(error: Exception) -> str:
    """The driver tells S3's own word for an error in its message alone."""
    found = re.search(r"<Code>(.*?)</", str(error), re.S)
    return found[1].strip() if found else ""


def _status(error: Exception | None) -> int:
    """0 where S3 gave no answer."""
    told = str(error)
    if "Received redirect without LOCATION" in told:
        return 301
    found = re.search(r"status code: (\d{3})", told)
    return int(found[1]) if found else 0


def _definite(error: Exception) -> bool:
    """Whether S3 will say the same next time, to what it has not carried out."""
    status = _status(error)
    if ROLE_SERVICE in str(error) or _code(error) == "RequestTimeout" or status in (408, 409, 412, 429):
        return False
    return 300 <= status < 500 or status == 501


def _no_keys(dsn: str, error: Exception | None) -> str | None:
    """What to say where keys were sought at the machine's role, and not found."""
    if ROLE_SERVICE not in str(error):
        return None
    return (
        f"no credentials were found for {dsn}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (without them this machine's role "
        f"is asked for, and it seems to have none: {_short(error)})"
    )


def endpoint() -> str:
    """The address that the environment names; "" for Amazon's own. Raises ConfigError."""
    name = next((n for n in ENDPOINTS if os.environ.get(n)), "")
    if not name:
        return ""
    scheme, separator, rest = os.environ[name].strip().partition("://")
    address = scheme.lower() + separator + rest.rstrip("/")
    if "@" in address:
        raise errors.ConfigError(
            f"{name} holds a user or a password; keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        parts = urlsplit(address)
        sendable = address.isascii() and address.isprintable() and " " not in address
        right = (
            sendable and parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        )
    except ValueError:
        right = False
    if not right:
        raise errors.ConfigError(
            f"{name} is {os.environ[name]!r}; it must be like https://host or http://host:port"
        )
    return address


def _refuse_line_breaks() -> None:
    """A secret that was read from a file may end in one, which no request can carry: the driver panics."""
    for name in IN_HEADERS:
        if not os.environ.get(name, "").isprintable():
            raise errors.ConfigError(f"{name} holds a line break or another character that cannot be sent")


def _refuse_half_a_key() -> None:
    there, missing = sorted(KEYS, key=lambda name: not os.environ.get(name))
    if os.environ.get(there) and not os.environ.get(missing):
        raise errors.ConfigError(f"{there} is set and {missing} is not: S3 takes both")


def _driver() -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise errors.ConfigError(
            "an s3:// database takes a package that is not installed: pip install 'pgqrs[s3]'"
        ) from None
    return obstore
