"""A TCP proxy that does to a supervisor's connections what networks do.

    flowing    bytes pass, each way after `delay_s`
    stalled    bytes wait in here, and pass once it flows again; meanwhile each side sees the other accept what it sends
    trickling  one byte a second passes, each way of each connection
    half open  bytes are swallowed, as by a NAT that forgot the connection: neither side ever hears of it
    refusing   what is open is reset, and so is whoever connects anew

`cut_commits` resets a connection at the worst moment of all: when COMMIT was sent, and before its answer comes back.
"""

import asyncio
import socket
import struct
import threading
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["flowing", "stalled", "trickling", "half open", "refusing"]
Commit = Literal["reaches the server", "gets lost"]

READ_BYTES = 65536
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"  # as psycopg sends it
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: closing sends RST
CUT_EVERY = 3  # the commits between go through, or nothing would ever be done


class Proxy:
    """Listens on `host`, until it is left. Its loop has a thread of its own; tests only set what holds from now on."""

    def __init__(self, dsn: str, host: str = "127.0.0.1") -> None:
        parts = urlsplit(dsn)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._links: set[Link] = set()
        self.mode: Mode = "flowing"
        self.delay_s = 0.0
        self.cuts = 0  # commits that were cut so far
        self._cut: Commit | None = None
        self._commits = 0
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self.dsn = parts._replace(netloc=f"{parts.username}@{host}:{port}").geturl()
        self._thread = threading.Thread(target=self._serve, args=(listener,), name="proxy", daemon=True)
        self._thread.start()

    def become(self, mode: Mode) -> None:
        """From when this returns. What was stalled passes on; what was swallowed is gone."""
        self._do(lambda: self._become(mode))

    def reset_all(self) -> None:
        self._do(self._reset_all)

    def cut_commits(self, commit: Commit | None) -> None:
        """Every third COMMIT from now on; None: no more."""
        self._cut = commit

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._reset_all)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _do(self, what) -> None:  # type: ignore[no-untyped-def]
        async def done() -> None:
            what()

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(5)

    def _become(self, mode: Mode) -> None:
        self.mode = mode
        (self._flowing.clear if mode == "stalled" else self._flowing.set)()
        if mode == "refusing":
            self._reset_all()

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    def _serve(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, sock=listener))
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refusing":
            _reset(writer)
            return
        await self._flowing.wait()
        try:
            upstream = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        link = Link(self, (reader, writer), upstream)
        self._links.add(link)
        try:
            await link.carry()
        finally:
            self._links.discard(link)

    async def pass_on(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while self.mode == "trickling" and data:
            await _write(writer, data[:1])
            data = data[1:]
            await asyncio.sleep(1.0)
        await _write(writer, data)

    async def passes(self, data: bytes) -> bool:
        """Returns when these bytes may go on; False when they never do."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._flowing.wait()
        return self.mode != "half open"

    def cuts_this(self) -> Commit | None:
        if self._cut is None:
            return None
        self._commits += 1
        if self._commits % CUT_EVERY:
            return None
        self.cuts += 1
        return self._cut


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: Ends, server: Ends) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._unheard = False  # COMMIT went through, and its answer must not

    async def carry(self) -> None:
        ways = [asyncio.ensure_future(self._up()), asyncio.ensure_future(self._down())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for _, writer in (self._client, self._server):
                writer.close()

    def reset(self) -> None:
        for _, writer in (self._client, self._server):
            _reset(writer)

    async def _up(self) -> None:
        async for data in _chunks(self._client[0]):
            if not await self._proxy.passes(data):
                continue
            if COMMIT in data and (cut := self._proxy.cuts_this()):
                if cut == "gets lost":
                    self.reset()
                    return
                self._unheard = True
            await self._proxy.pass_on(self._server[1], data)

    async def _down(self) -> None:
        async for data in _chunks(self._server[0]):
            if self._unheard:  # it answers, so it has committed
                self.reset()
                return
            if await self._proxy.passes(data):
                await self._proxy.pass_on(self._client[1], data)


async def _chunks(reader: asyncio.StreamReader):  # type: ignore[no-untyped-def]
    try:
        while data := await reader.read(READ_BYTES):
            yield data
    except OSError:
        return


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    try:
        writer.write(data)
        await writer.drain()
    except OSError:
        pass  # the reader of that end will say so


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
