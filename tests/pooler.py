"""Connection poolers for the tests: a small one of our own, and PgBouncer where it is installed.

Ours pools by transaction, in the way that costs its clients most: the server connection that was
used longest ago is the next one, so a client meets another session in nearly every transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.postgres_server import become_command, free_port, identities

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
# What PgBouncer lets a client say when it connects. Anything else is refused, `options` among it.
KNOWN_PARAMETERS = ("user", "database", "client_encoding", "application_name")
ASKS_FOR_READY = b"QSF"  # Query, Sync, FunctionCall
START_S = 10.0
READ_BYTES = 65536


class Pooler:
    """Pools by transaction over `servers` connections, until it is left. Its loop has a thread of
    its own.

    With `shows_servers`, a client is told the process id of a server connection as its own, so that
    it cannot tell the pooler by that.
    """

    def __init__(self, dsn: str, servers: int = 3, shows_servers: bool = False) -> None:
        self._target = urlsplit(dsn)
        self.shows_servers = shows_servers
        self._idle: deque[Server] = deque()
        self._freed = asyncio.Event()
        self._keys = itertools.count(1_000_001)
        self._clients: dict[tuple[int, int], Client] = {}
        self.changed_hands = (
            0  # how often a client met another server connection than in its last transaction
        )
        self._loop = asyncio.new_event_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # which what it accepts inherits
        port = listener.getsockname()[1]
        self.dsn = self._target._replace(netloc=f"{self._target.username}@127.0.0.1:{port}").geturl()
        self._thread = threading.Thread(target=self._serve, args=(listener,), name="pooler", daemon=True)
        self._thread.start()
        self._do(self._open(servers))

    def ask(self, sql: str) -> list[list[tuple[str | None, ...]]]:
        """What each server connection answers, once all are idle."""
        return self._do(self._ask(sql))  # type: ignore[no-any-return]

    def __enter__(self) -> Pooler:
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_S)

    def _serve(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, sock=listener))
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _open(self, servers: int) -> None:
        self._size = servers
        for _ in range(servers):
            self._idle.append(await Server.connect(self._target))

    async def _close(self) -> None:
        for client in list(self._clients.values()):
            client.writer.transport.abort()
        for server in self._idle:
            server.writer.transport.abort()

    async def _ask(self, sql: str) -> list[list[tuple[str | None, ...]]]:
        while len(self._idle) < self._size:
            self._freed.clear()
            await self._freed.wait()
        return [await server.ask(sql) for server in self._idle]

    async def take(self) -> Server:
        while not self._idle:
            self._freed.clear()
            await self._freed.wait()
        return self._idle.popleft()

    async def give_back(self, server: Server, usable: bool) -> None:
        if not usable:
            server.writer.transport.abort()
            server = await Server.connect(self._target)
        self._idle.append(server)
        self._freed.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                code, rest = await _startup(reader)
                if code in (SSL_REQUEST, GSS_REQUEST):
                    writer.write(b"N")
                    continue
                break
            if code == CANCEL_REQUEST:
                await self._cancel(struct.unpack("!II", rest))
            elif unknown := set(_parameters(rest)) - set(KNOWN_PARAMETERS):
                writer.write(_refusal(f"unsupported startup parameter: {unknown.pop()}"))
                await writer.drain()
            else:
                await self._serve_client(reader, writer)
        writer.close()

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = await self.take()
        key = shown.key if self.shows_servers else (next(self._keys), 4711)
        parameters = shown.parameters
        await self.give_back(shown, usable=True)
        client = self._clients[key] = Client(self, reader, writer)
        try:
            writer.write(_message(b"R", struct.pack("!I", 0)) + parameters)
            writer.write(_message(b"K", struct.pack("!II", *key)) + _message(b"Z", b"I"))
            await client.serve()
        finally:
            self._clients.pop(key, None)

    async def _cancel(self, key: tuple[int, int]) -> None:
        client = self._clients.get(key)
        if client is not None and client.server is not None:
            _, writer = await asyncio.open_connection(self._target.hostname, self._target.port)
            writer.write(struct.pack("!IIII", 16, CANCEL_REQUEST, *client.server.key))
            await writer.drain()
            writer.close()


class Server:
    """A connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.parameters = b""  # the messages that tell them
        self.key = (0, 0)

    @classmethod
    async def connect(cls, target: Any) -> Server:
        server = cls(*await asyncio.open_connection(target.hostname, target.port))
        said = {
            "user": target.username, "database": target.path[1:], "client_encoding": "UTF8", "application_name": "pooler",
        }  # fmt: skip
        body = struct.pack("!I", 196608) + b"".join(f"{k}\0{v}\0".encode() for k, v in said.items()) + b"\0"
        server.writer.write(struct.pack("!I", len(body) + 4) + body)
        while True:
            kind, body = await _read(server.reader)
            if kind == b"S":
                server.parameters += _message(kind, body)
            elif kind == b"K":
                server.key = struct.unpack("!II", body)
            elif kind == b"E":
                raise OSError(body)
            elif kind == b"Z":
                return server

    async def ask(self, sql: str) -> list[tuple[str | None, ...]]:
        self.writer.write(_message(b"Q", sql.encode() + b"\0"))
        rows = []
        while True:
            kind, body = await _read(self.reader)
            if kind == b"D":
                rows.append(_row(body))
            elif kind == b"E":
                raise AssertionError(body)
            elif kind == b"Z":
                return rows


class Client:
    """Linked to a server connection from its first word until that is ready and in no
    transaction."""

    def __init__(self, pooler: Pooler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pooler = pooler
        self._reader, self.writer = reader, writer
        self.server: Server | None = None
        self._last: Server | None = None
        self._unready = 0  # what was asked and not yet answered by ReadyForQuery
        self._answers: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        try:
            while True:
                kind, body = await _read(self._reader)
                if kind == b"X":
                    return
                if self.server is None:
                    await self._link()
                assert self.server is not None
                self._unready += kind in ASKS_FOR_READY
                self.server.writer.write(_message(kind, body))
                await self.server.writer.drain()
        finally:
            if self._answers is not None:
                self._answers.cancel()
            if self.server is not None:
                await self._pooler.give_back(self.server, usable=False)

    async def _link(self) -> None:
        self.server = await self._pooler.take()
        self._pooler.changed_hands += self._last not in (None, self.server)
        self._last = self.server
        self._answers = asyncio.ensure_future(self._pass_back(self.server))

    async def _pass_back(self, server: Server) -> None:
        try:
            while True:
                kind, body = await _read(server.reader)
                ended = False
                if kind == b"Z":
                    self._unready -= 1
                    ended = body == b"I" and not self._unready
                if ended:  # before the client can say anything more
                    self.server = None
                    await self._pooler.give_back(server, usable=True)
                self.writer.write(_message(kind, body))
                if ended:
                    return
        except (OSError, asyncio.IncompleteReadError):
            self.writer.transport.abort()


async def _startup(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    [length] = struct.unpack("!I", await reader.readexactly(4))
    body = await reader.readexactly(length - 4)
    return struct.unpack("!I", body[:4])[0], body[4:]


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _refusal(text: str) -> bytes:
    fields = {"S": "FATAL", "V": "FATAL", "C": "08P01", "M": text}
    return _message(b"E", b"".join(f"{k}{v}\0".encode() for k, v in fields.items()) + b"\0")


def _parameters(body: bytes) -> dict[str, str]:
    words = body.decode().rstrip("\0").split("\0")
    return dict(zip(words[::2], words[1::2], strict=False))


def _row(body: bytes) -> tuple[str | None, ...]:
    [count], at, values = struct.unpack("!H", body[:2]), 2, []
    for _ in range(count):
        [length] = struct.unpack("!i", body[at : at + 4])
        at += 4
        values.append(None if length < 0 else body[at : at + length].decode())
        at += max(length, 0)
    return tuple(values)


# PgBouncer


def pgbouncer() -> Path | None:
    """The program, where it is installed."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def pgbouncer_version() -> str | None:
    program = pgbouncer()
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found.group() if found else "of an unknown version"


@contextlib.contextmanager
def pgbouncer_before(dsn: str, mode: str) -> Iterator[str]:
    """The DSN that leads through a PgBouncer of this pool mode. As root it runs as somebody
    else, since it refuses root."""
    program, target, port = pgbouncer(), urlsplit(dsn), free_port()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="pgqrs-pgbouncer-") as folder:
        os.chmod(folder, 0o755)
        settings = Path(folder) / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host={target.hostname} port={target.port} user={target.username}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\ndefault_pool_size = {3 if mode == 'transaction' else 60}\nmax_client_conn = 200\n"
        )
        os.chmod(settings, 0o644)
        command = [*become_command(identities()[0]), str(program), "-q", str(settings)]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_until_it_listens(port, process, Path(folder) / "log")
            yield target._replace(netloc=f"{target.username}@127.0.0.1:{port}").geturl()
        finally:
            process.terminate()
            process.wait(START_S)


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"PgBouncer does not listen:\n{log.read_text(errors='replace')}")
        time.sleep(0.02)
