"""One S3 object. It is read, and replaced on the condition that it is still the version that was
read.

Every PUT stores its own marker in the object's metadata. If a PUT gets no answer, it may have been
executed, may be executed later, or never. If there was no answer, or the condition failed, the
marker tells whether the current object is the one that was sent. S3 executes at most one of two
requests with the same condition. So repeating the request is safe in all three cases.

All this relies on the conditions (`If-Match`, `If-None-Match`) of a PUT. If a storage ignores them,
or a proxy drops the headers, two writers get the answer 200, and the update of one is lost.
Therefore the conditions are tested before a write counts.
"""

import hashlib
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from pgqrs import errors
from pgqrs.config import s3_object
from pgqrs.store.calls import current
from pgqrs.store.s3.requests import Operation, Requests, Severed

T = TypeVar("T")

# Pauses between attempts of one request, up to twice as long at random. S3 asks for a pause after
# 503, and a 409 ends by itself.
BACKOFF_S = (0.05, 0.15, 0.4, 1.0)
# No further attempt begins after this time.
GIVE_UP_S = 30.0
CONNECT_S = 5.0
# Limits a whole request. 512 MiB in that time are 9 MiB/s.
REQUEST_S = 60.0
# Limits the wait for the beginning of an answer to GET or HEAD. Then S3 counts as unavailable.
ANSWER_S = 10.0
# Limits the wait for a PUT whose caller was cancelled: what it wrote must be withdrawn.
LEFT_S = 3.0
# Each commit uploads the whole file. S3 is the wrong place long before this size.
OBJECT_BYTES_MAX = 512 * 1024 * 1024
MARKER, DIGEST = "pgqrs-marker", "pgqrs-sha256"
# The first variable that is not empty counts.
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# A file of certificates to trust in addition to the machine's own.
CA_BUNDLE = "AWS_CA_BUNDLE"
NO_VERSION = '"00000000000000000000000000000000"'  # an ETag that no object has
PROBE_SUFFIX = ".pgqrs-probe"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# The driver asks here for a machine's role if no keys are given.
ROLE_SERVICE = "169.254.169.254"
IN_HEADERS = (
    *KEYS,
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


class Version(Struct, frozen=True):
    etag: str
    marker: str | None  # None if another program wrote the object


class Fetched(Struct, frozen=True):
    version: Version
    body: bytes
    checked: bool  # by a checksum that came with the object


class Unchanged(Struct, frozen=True):
    pass


class S3Object:
    """One S3 object. Thread-safe. Do not use it across a fork.

    Every call raises PgqrsConnectionError if S3 cannot be reached or refuses the request, after
    several attempts, or if `sever` ends the call. Messages of the driver are quoted and its
    exceptions are never chained, because they repeat the request with a session's token.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.bucket, self.key = s3_object(dsn)
        self.endpoint = endpoint()
        _refuse_line_breaks()
        _refuse_half_a_key()
        self._obstore = _driver()
        self._requests = Requests()
        # Whether this process has created the object, and If-None-Match has not been tested on it yet.
        self._made = False
        # Whether the store is known to refuse a PUT whose condition fails.
        self._conditional = False
        # Whether the store expects ETags without quotes.
        self._bare = False
        # Whether an answer had a weak ETag.
        self._weak = False
        options: dict[str, Any] = {"timeout": f"{REQUEST_S:g}s", "connect_timeout": f"{CONNECT_S:g}s"}
        if self.endpoint.startswith("http://"):
            options["allow_http"] = True
        if (trusted := _certificates()) is not None:
            options["root_certificate"] = trusted
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        # The driver takes an empty variable for an address.
        blank = any(os.environ.get(name) == "" for name in (*ENDPOINTS, "AWS_ENDPOINT"))
        address = self.endpoint or (f"https://s3.{region}.amazonaws.com" if blank else None)
        given = {"region": region} | ({"endpoint": address} if address else {})
        try:
            # The driver's own retries are off: they would not check the marker.
            self._store = self._obstore.store.S3Store(
                self.bucket, client_options=options, retry_config={"max_retries": 0}, **given
            )
        except self._obstore.exceptions.BaseError as e:
            raise errors.ConfigError(f"{dsn}: {_short(e)}") from None
        except ValueError as e:
            if trusted is None:
                raise
            raise errors.ConfigError(f"{CA_BUNDLE} names {os.environ[CA_BUNDLE]}: {e}") from None

    def sever(self) -> None:
        """Ends the calls in progress in all threads with PgqrsConnectionError. Does not wait."""
        self._requests.sever()

    def wait(self, seconds: float) -> None:
        """Waits for this time. Raises PgqrsConnectionError if `sever` ends the wait."""
        try:
            with self._requests.operation() as operation:
                operation.pause(seconds)
        except Severed:
            if (call := current()) is not None:
                call.go_on()
            raise self._left_off() from None

    def look(self) -> Version | None:
        """Returns the current version, or None if there is no object."""
        return self._reading(self._look)

    def fetch(self, unless: str | None = None, patience_s: float | None = None) -> Fetched | Unchanged | None:
        """Returns the object. Returns Unchanged if the object has the ETag `unless`, and None if
        there is no object. No further attempt begins after `patience_s`, by default GIVE_UP_S.
        """

        def get(operation: Operation) -> Fetched | Unchanged | None:
            try:
                result = self._get(operation, {"if_none_match": self._sent_as(unless)} if unless else {})
            except FileNotFoundError as e:
                if _code(e) == "NoSuchBucket":
                    raise self._no_bucket() from None
                return None
            except self._obstore.exceptions.NotModifiedError:
                return Unchanged()
            body = operation.answer(lambda: _whole(result))
            return Fetched(self._version(result), body, DIGEST in result.attributes)

        return self._reading(get, patience_s)

    def put(self, body: bytes, expected: str | None, marker: str | None = None) -> Version:
        """Replaces the version whose ETag is `expected`. With None, creates the object. An object
        that has been removed meanwhile is created again. `marker` is a result of `new_marker`, for
        a caller that wants to recognize its PUT after an unknown outcome.

        Raises ConflictError if there is another version. That version stays, and nothing was
        written. Raises PgqrsConnectionError if the outcome is unknown, or if the storage ignores
        the conditions of a PUT.
        """
        if len(body) > OBJECT_BYTES_MAX:
            raise errors.DatabaseError(
                f"{self.dsn} would have {len(body):,} bytes, over the limit of "
                f"{OBJECT_BYTES_MAX:,}: each commit sends all of them. Purge queues "
                "that are done with, begin a new object, or move to postgresql://"
            )
        if (call := current()) is not None:
            call.go_on()
        try:
            # Also completed if the caller has left: what it writes must be withdrawn then.
            with self._requests.operation(leaves=False) as operation:
                return self._put_once(operation, body, expected, marker or new_marker())
        except Severed:
            raise self._left_off() from None

    def _put_once(self, operation: Operation, body: bytes, expected: str | None, marker: str) -> Version:
        exceptions = self._obstore.exceptions
        # Whether one of these requests may have been executed, or may be later.
        unsure = False
        said: Exception | None = None
        for _ in _tries(operation):
            try:
                etag = self._put(operation, body, expected, marker)
            except FileNotFoundError as e:
                if expected is None or _code(e) != "NoSuchKey":
                    raise self._no_bucket() from None
                said = e  # Amazon's answer if a version is expected and there is none
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as e:
                raise self._refused(_short(e)) from None
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as e:
                said = e  # 412, or a 409, whose competing request may have failed
            except (exceptions.BaseError, OSError) as e:
                if not unsure and _definite(e):
                    raise self._refused(_short(e)) from None
                said, unsure = e, True
            else:
                self._believe(operation, body, expected, marker)
                return Version(etag, marker)
            try:
                there = self._look(operation)
            except (exceptions.BaseError, OSError) as e:
                said = e
                continue
            if there is not None and there.marker == marker:
                self._believe(operation, body, expected, marker)
                return there
            if there is None:
                expected = None
            elif there.etag != expected:
                if not unsure:
                    # The store has just refused a failed condition.
                    self._conditional = self._conditional or expected is not None
                    raise errors.ConflictError(
                        f"conflict: {self.dsn} has been written by somebody else since it was read here. "
                        "Theirs is kept, nothing of this call was written: make it again"
                    )
                break
            elif not unsure:
                # The version is the expected one. The store may expect its ETag in another form.
                self._bare = not self._bare
        told = f"{self.dsn} could not be written, or it is unknown whether it was"
        weak = (
            "; the store gives weak ETags (W/…), by which no version can be replaced: something between "
            "here and S3 rewrites its answers, such as a proxy that compresses them"
            if self._weak
            else ""
        )
        raise errors.PgqrsConnectionError(_no_keys(self.dsn, said) or f"{told}: {_short(said)}{weak}")

    # Tests of the conditions

    def _believe(self, operation: Operation, body: bytes, expected: str | None, marker: str) -> None:
        """Checks that a successful PUT was conditional. Raises PgqrsConnectionError if the PUT may
        have replaced another writer's version.

        A new object is tested with the next write, because until then it contains nothing of
        another writer.
        """
        if expected is None:
            self._made = True
            return
        if not self._conditional:
            if not self._read(operation, lambda o: self._heeds(o, body, marker), None):
                raise self._heedless("If-Match")
            self._conditional = True
        if self._made:
            if not self._refuses_a_second(operation, body, marker):
                raise self._heedless("If-None-Match")
            self._made = False

    def _heeds(self, operation: Operation, body: bytes, marker: str) -> bool:
        """Whether the storage refuses a PUT with an impossible condition. The test uses another key
        than the object's.
        """
        beside = self.key + PROBE_SUFFIX
        try:
            if self._is_refused(operation, beside, b"", None):
                return True
        except (
            self._obstore.exceptions.PermissionDeniedError,
            self._obstore.exceptions.UnauthenticatedError,
        ):
            # The credentials may be valid for the object only: write what is there already.
            return self._is_refused(operation, self.key, body, marker)
        # Some stores check the condition only if there is an object, which there is now.
        again = self._is_refused(operation, beside, b"", None)
        with suppress(self._obstore.exceptions.BaseError, OSError):
            operation.answer(lambda: self._obstore.delete(self._store, beside))
        return again

    def _is_refused(self, operation: Operation, key: str, content: bytes, marker: str | None) -> bool:
        try:
            self._put(operation, content, NO_VERSION, marker, key)
        except (self._obstore.exceptions.AlreadyExistsError, self._obstore.exceptions.PreconditionError) as e:
            if _status(e) == 409:
                raise OSError(_short(e)) from None  # another request is in the way for the moment
            return True
        except FileNotFoundError as e:
            if _code(e) == "NoSuchBucket":
                raise self._no_bucket() from None
            return True
        return False

    def _refuses_a_second(self, operation: Operation, body: bytes, marker: str) -> bool:
        """Whether the storage refuses to create an object that exists."""
        try:
            self._put(operation, body, None, marker)
        except (self._obstore.exceptions.BaseError, OSError):
            return True
        return False

    def _heedless(self, header: str) -> errors.PgqrsConnectionError:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return errors.PgqrsConnectionError(
            f"S3{at} does not heed the header {header} of a PUT: it replaced an object "
            f"although the condition was not met, so two writers of {self.dsn} would lose "
            "each other's updates without a word. Use a store that knows conditional writes, "
            "as S3 does since 2024, and look for a proxy on the way that drops the header"
        )

    # Requests

    def _put(
        self,
        operation: Operation,
        body: bytes,
        expected: str | None,
        marker: str | None,
        key: str | None = None,
    ) -> str:
        attributes = {MARKER: marker, DIGEST: hashlib.sha256(body).hexdigest()} if marker else {}
        mode = "create" if expected is None else {"e_tag": self._sent_as(expected)}
        _remember_use()
        result = operation.answer(
            lambda: self._obstore.put(
                self._store,
                key or self.key,
                body,
                attributes=attributes,
                mode=mode,
                use_multipart=False,  # a multipart upload is not conditional as a whole
            )
        )
        return self._etag(result["e_tag"])

    def _get(self, operation: Operation, options: dict[str, Any]) -> Any:
        _remember_use()
        return operation.answer(
            lambda: self._obstore.get(self._store, self.key, options=options), min(ANSWER_S, REQUEST_S)
        )

    def _look(self, operation: Operation) -> Version | None:
        try:
            return self._version(self._get(operation, {"head": True}))
        except FileNotFoundError:
            return None

    def _version(self, result: Any) -> Version:
        marker = result.attributes.get(MARKER)
        return Version(self._etag(result.meta["e_tag"]), None if marker is None else str(marker))

    def _etag(self, said: object) -> str:
        """Returns an ETag in one form, strong and in quotes, so that two ETags can be compared.
        Proxies change the form.
        """
        if not said:
            raise errors.PgqrsConnectionError(
                "S3 refuses "
                f"{self.dsn}{self._found_by('its answers have no ETag, by which a version is known')}"
            )
        text = str(said)
        self._weak = self._weak or text.startswith("W/")
        return '"' + text.removeprefix("W/").strip('"') + '"'

    def _sent_as(self, etag: str) -> str:
        return etag.strip('"') if self._bare else etag

    def _reading(self, get: Callable[[Operation], T], patience_s: float | None = None) -> T:
        try:
            with self._requests.operation() as operation:
                return self._read(operation, get, patience_s)
        except Severed:
            if (call := current()) is not None:
                call.go_on()
            raise self._left_off() from None

    def _read(self, operation: Operation, get: Callable[[Operation], T], patience_s: float | None) -> T:
        exceptions = self._obstore.exceptions
        said: Exception | None = None
        for _ in _tries(operation, patience_s):
            try:
                return get(operation)
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

    def _left_off(self) -> errors.PgqrsConnectionError:
        return errors.PgqrsConnectionError(
            f"S3 has not answered for {self.dsn}, and is no longer waited for, since the store was closed, "
            "its lease has ended, or its process stops"
        )

    def _no_bucket(self) -> errors.PgqrsConnectionError:
        return self._refused(f"there is no bucket {self.bucket!r}")

    def _refused(self, told: str) -> errors.PgqrsConnectionError:
        return errors.PgqrsConnectionError(f"S3 refuses {self.dsn}{self._found_by(told)}")

    def _found_by(self, told: str) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        if told.startswith(BAD_CERTIFICATE):
            return f"{at}: {told}"
        return (
            f"{at}: {told}; the endpoint, the region and the keys come from the variables "
            "AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


class Damaged(OSError):
    """The received object differs from the stored one. The transfer may have failed, so the request
    is repeated.
    """


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


def _tries(operation: Operation, patience_s: float | None = None) -> Iterator[None]:
    """Yields once for each attempt of a request, after its pause."""
    until = time.monotonic() + (GIVE_UP_S if patience_s is None else patience_s)
    yield
    for pause_s in BACKOFF_S:
        operation.pause(pause_s * random.uniform(1, 2))
        if time.monotonic() >= until:
            return
        yield


def _short(error: Exception | None) -> str:
    """Returns the driver's message without its Debug part, with the reason from the server's XML.
    The rest of the XML is left out, because it may quote the request and its token.
    """
    told, _, debug = str(error).partition("\n\nDebug source")
    if (certificate := re.search(r"InvalidCertificate\((.*)", debug, re.S)) is not None:
        return _bad_certificate(certificate[1])
    words, *_ = re.split(r"<\?xml|<Error", told, maxsplit=1)
    said = re.findall(r"<(?:Code|Message)>(.*?)</", told, re.S) or re.findall(
        r'message: "([^"]*)"', debug.partition("<?xml")[0]
    )
    return ": ".join(part for part in (words.strip().rstrip(":"), *said) if part)


BAD_CERTIFICATE = "its TLS certificate is not accepted"


def _bad_certificate(debug: str) -> str:
    """Returns why a certificate was not accepted. `debug` begins with the driver's names for the
    reason, the innermost last.
    """
    names = re.findall(r"[A-Za-z]+", debug.partition("),\n")[0])
    reason = next((n for n in reversed(names) if n in CERTIFICATE_REASONS), "")
    why = CERTIFICATE_REASONS.get(reason) or " ".join(n for n in names if n not in ("Other", "OtherError"))
    return (
        f"{BAD_CERTIFICATE}: {why}. A certificate, or an authority, of "
        f"your own is trusted where {CA_BUNDLE} names its file (PEM)"
    )


CERTIFICATE_REASONS = {
    "UnknownIssuer": "nobody whom this machine trusts has issued it (UnknownIssuer)",
    "CaUsedAsEndEntity": "it is self-signed, and not trusted by this machine (CaUsedAsEndEntity)",
    "Expired": "it has expired",
    "ExpiredContext": "it has expired",
    "NotValidYet": "it is not valid yet: is this machine's clock right?",
    "NotValidYetContext": "it is not valid yet: is this machine's clock right?",
    "NotValidForName": "it is for another name than the endpoint's",
    "NotValidForNameContext": "it is for another name than the endpoint's",
    "Revoked": "it was revoked",
}


def _code(error: Exception) -> str:
    """Returns S3's error code, which the driver reports only in its message."""
    found = re.search(r"<Code>(.*?)</", str(error), re.S)
    return found[1].strip() if found else ""


def _status(error: Exception | None) -> int:
    """Returns the HTTP status, or 0 if S3 gave no answer."""
    told = str(error)
    if "Received redirect without LOCATION" in told:
        return 301
    found = re.search(r"status code: (\d{3})", told)
    return int(found[1]) if found else 0


def _definite(error: Exception) -> bool:
    """Whether S3 did not execute the request and would answer the same again."""
    status = _status(error)
    if "InvalidCertificate" in str(error):
        return True
    if ROLE_SERVICE in str(error) or _code(error) == "RequestTimeout" or status in (408, 409, 412, 429):
        return False
    return 300 <= status < 500 or status == 501


def _no_keys(dsn: str, error: Exception | None) -> str | None:
    """Returns a message if the driver looked for credentials at the machine's role and found none."""
    if ROLE_SERVICE not in str(error):
        return None
    return (
        f"no credentials were found for {dsn}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (without "
        f"them this machine's role is asked for, and it seems to have none: {_short(error)})"
    )


def endpoint() -> str:
    """Returns the address of the storage from the environment, or "" for Amazon's own. Raises
    ConfigError.
    """
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


def _certificates() -> bytes | None:
    """Returns the configured certificates. Raises ConfigError if they cannot be read."""
    path = os.environ.get(CA_BUNDLE)
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise errors.ConfigError(f"{CA_BUNDLE} names {path}, which cannot be read: {e.strerror}") from e


# The driver's threads do not survive a fork. A request in the child would wait forever.
_used_by: int | None = None


def _remember_use() -> None:
    global _used_by
    _refuse_after_fork()
    _used_by = os.getpid()


def _refuse_after_fork() -> None:
    if _used_by not in (None, os.getpid()):
        raise errors.InternalError(
            f"this process (pid {os.getpid()}) was forked from one (pid {_used_by}) that had "
            "used S3 before, and the driver's threads do not survive a fork: connect to s3:// "
            "in the child alone, or start the child as a new program (multiprocessing's start "
            "methods spawn and forkserver; a web server without preloading)"
        )


def _refuse_line_breaks() -> None:
    """Raises an error for a secret that ends in a line break, as a secret from a file may. No
    request can send it, and the driver would panic.
    """
    for name in IN_HEADERS:
        if not os.environ.get(name, "").isprintable():
            raise errors.ConfigError(f"{name} holds a line break or another character that cannot be sent")


def _refuse_half_a_key() -> None:
    there, missing = sorted(KEYS, key=lambda name: not os.environ.get(name))
    if os.environ.get(there) and not os.environ.get(missing):
        raise errors.ConfigError(f"{there} is set and {missing} is not: S3 takes both")


def _driver() -> Any:
    _refuse_after_fork()
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise errors.ConfigError(
            "an s3:// database takes a package that is not installed: pip install 'pgqrs[s3]'"
        ) from None
    return obstore
