"""A listener's connections, by real sockets: bounded in number, and in the time and the size of a request's head."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from services.runtime import connections
from services.runtime.connections import HEAD_BYTES, bounded_protocol

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD_SECONDS = 0.5
WRITE_SECONDS = 1.5
GRACE_SECONDS = 0.2
BODY = b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"

LARGE = 32 << 20  # bytes of a reply, more than the sockets' buffers hold
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server:
    def __init__(self, limit: int = 100) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        routes = [
            Route("/", self._hello),
            Route("/upload", self._upload, methods=["POST"]),
            Route("/refused", self._hello, methods=["POST"]),
            Route("/held", self._held),
            Route("/stream", self._stream),
            Route("/large", self._large),
        ]
        protocol = bounded_protocol(limit, HEAD_SECONDS, WRITE_SECONDS, GRACE_SECONDS)
        config = uvicorn.Config(
            Starlette(routes=routes), http=protocol, ws="none", lifespan="off", log_level="critical"
        )
        self._server = uvicorn.Server(config)
        self.port = 0
        self._clients: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port = listening.getsockname()[1]
            serving = asyncio.create_task(self._server._serve([listening]))
            try:
                yield self
            finally:
                self.go_on.set()
                for client in self._clients:
                    client.close()
                self._server.should_exit = True
                await serving

    async def connect(self, sent: bytes = b"") -> Peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._clients.append(writer)
        writer.write(sent)
        return reader, writer

    async def get(self, path: bytes = b"/") -> bytes:
        return await reply(await self.connect(GET.replace(b" / ", b" " + path + b" ")))

    async def _hello(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def _upload(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{len(await request.body())}")

    async def _held(self, request: Request) -> PlainTextResponse:
        self.begun.set()
        await self.go_on.wait()
        return PlainTextResponse("held")

    async def _large(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("x" * LARGE)

    async def _stream(self, request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first,"
            self.begun.set()
            await self.go_on.wait()
            yield b"last"

        return StreamingResponse(parts())


async def reply(peer: Peer) -> bytes:
    """One reply of known length, its body alone; b"" when the connection was closed instead."""
    try:
        async with asyncio.timeout(60):
            head = await peer[0].readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return await peer[0].readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def is_closed(peer: Peer) -> bool:
    """Waits until the server has closed the connection without a reply."""
    async with asyncio.timeout(60):
        try:
            return await peer[0].read() == b""
        except ConnectionError:
            return True


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().running() as server:
        yield server


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"POST /api/col", GET[:-2]])
async def test_a_connection_without_a_whole_head_is_closed(server: Server, sent: bytes) -> None:
    assert await is_closed(await server.connect(sent))


async def test_a_head_that_comes_byte_by_byte_is_cut(server: Server) -> None:
    peer = await server.connect()

    async def trickle() -> None:
        for byte in GET[:-2] + b"X: " + b"x" * 1000:
            peer[1].write(bytes([byte]))
            await asyncio.sleep(HEAD_SECONDS / 20)

    trickling = asyncio.create_task(trickle())
    assert await is_closed(peer)
    trickling.cancel()


async def test_a_connection_that_idles_after_a_reply_is_closed_in_spite_of_blank_lines(server: Server) -> None:
    peer = await server.connect(GET)
    assert await reply(peer) == b"hello"
    peer[1].write(GET)
    assert await reply(peer) == b"hello"
    peer[1].write(b"\r\n")  # ends uvicorn's own timeout
    assert await is_closed(peer)


async def test_a_body_that_makes_progress_takes_its_time(server: Server) -> None:
    peer = await server.connect(b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n")
    for _ in range(20):
        await asyncio.sleep(HEAD_SECONDS / 10)
        peer[1].write(b"x")
    assert await reply(peer) == b"20"


async def test_a_reply_takes_its_time(server: Server) -> None:
    peer = await server.connect(GET.replace(b" / ", b" /stream "))
    await server.begun.wait()
    await asyncio.sleep(2 * HEAD_SECONDS)
    server.go_on.set()
    async with asyncio.timeout(60):
        assert b"last" in await peer[0].readuntil(b"0\r\n\r\n")


async def test_a_head_without_end_is_cut(server: Server) -> None:
    peer = await server.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (HEAD_BYTES + 1))
    begun = asyncio.get_running_loop().time()
    assert await is_closed(peer)
    assert asyncio.get_running_loop().time() - begun < HEAD_SECONDS


@pytest.mark.parametrize(
    "begun",
    [b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", GET.replace(b" / ", b" /held ")],
    ids=["trailers", "the next head"],
)
async def test_what_comes_beside_bodies_is_bounded(server: Server, begun: bytes) -> None:
    peer = await server.connect(begun)
    line = b"X: " + b"a" * 8000 + b"\r\n"
    with suppress(ConnectionError):
        if b"/held" in begun:
            peer[1].write(b"GET / HTTP/1.1\r\n")
        for _ in range(100):
            peer[1].write(line)
            await peer[1].drain()
            await asyncio.sleep(0)
    assert await is_closed(peer)


async def test_a_reply_that_nobody_reads_ends(server: Server) -> None:
    """A client that reads, however slowly, gets its reply; one that does not loses its connection."""
    slow, silent = [await server.connect(GET.replace(b" / ", b" /large ")) for _ in range(2)]
    async with asyncio.timeout(60):
        await slow[0].readuntil(b"\r\n\r\n")
        for _ in range(64):
            await slow[0].readexactly(LARGE // 64)
            await asyncio.sleep(2 * WRITE_SECONDS / 64)
        with pytest.raises(asyncio.IncompleteReadError):
            await silent[0].readexactly(LARGE)


async def test_a_long_head_and_a_body_after_an_early_reply_are_read(server: Server) -> None:
    long_head = GET[:-2] + b"X: " + b"x" * (HEAD_BYTES // 2) + b"\r\n\r\n"
    assert await reply(await server.connect(long_head)) == b"hello"
    length = 4 * HEAD_BYTES
    peer = await server.connect(b"POST /refused HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % length)
    assert await reply(peer) == b"hello"
    peer[1].write(b"x" * length + GET)
    assert await reply(peer) == b"hello"


async def test_pipelined_requests_are_answered(server: Server) -> None:
    peer = await server.connect(GET * 20)
    assert [await reply(peer) for _ in range(20)] == [b"hello"] * 20


async def test_of_too_many_connections_those_that_waited_longest_make_room() -> None:
    async with Server(limit=8).running() as server:
        idle = [await server.connect(b"POST /api/col" if n % 2 else b"") for n in range(24)]
        assert await server.get() == b"hello"
        assert await is_closed(idle[0])
        assert await server.get() == b"hello"


async def test_a_request_under_way_is_never_closed_for_another() -> None:
    async with Server(limit=4).running() as server:
        held = [await server.connect(GET.replace(b" / ", b" /held ")) for _ in range(3)]
        await server.begun.wait()
        for _ in range(10):
            await server.connect()
        assert await server.get() == b"hello"
        server.go_on.set()
        assert [await reply(peer) for peer in held] == [b"held"] * 3


async def test_a_connection_beyond_those_that_are_all_served_is_closed() -> None:
    async with Server(limit=2).running() as server:
        held = [await server.connect(GET.replace(b" / ", b" /held ")) for _ in range(2)]
        await server.begun.wait()
        await asyncio.sleep(0.1)  # until the second has arrived, too: it sets the same event
        assert await server.get() == b""
        server.go_on.set()
        assert [await reply(peer) for peer in held] == [b"held"] * 2
        assert await server.get() == b"hello"


async def test_bodies_that_never_arrive_make_room_the_slowest_first() -> None:
    async with Server(limit=4).running() as server:
        held = await server.connect(GET.replace(b" / ", b" /held "))
        await server.begun.wait()
        slow = [await server.connect(BODY + b"x" * sent) for sent in (3, 1, 2)]
        await asyncio.sleep(2 * GRACE_SECONDS)
        assert await server.get() == b"hello"
        assert await is_closed(slow[1])
        for peer, missing in ((slow[0], b"x"), (slow[2], b"xx")):
            peer[1].write(missing)
            assert await reply(peer) == b"4"
        server.go_on.set()
        assert await reply(held) == b"held"


async def test_a_body_that_has_just_begun_to_arrive_does_not_make_room() -> None:
    async with Server(limit=2).running() as server:
        begun = [await server.connect(BODY) for _ in range(2)]
        await asyncio.sleep(GRACE_SECONDS / 4)
        assert await server.get() == b""
        for peer in begun:
            peer[1].write(b"xxxx")
            assert await reply(peer) == b"4"


async def test_a_slow_body_stays_while_more_connections_wait_for_a_request() -> None:
    async with Server(limit=4).running() as server:
        slow = await server.connect(BODY)
        await asyncio.sleep(2 * GRACE_SECONDS)
        for _ in range(12):
            await server.connect()
        assert await server.get() == b"hello"
        slow[1].write(b"xxxx")
        assert await reply(slow) == b"4"


async def test_a_request_that_is_answered_stays_although_the_body_of_the_next_does_not_arrive() -> None:
    async with Server(limit=2).running() as server:
        held = [await server.connect(GET.replace(b" / ", b" /held ") + BODY) for _ in range(2)]
        await server.begun.wait()
        await asyncio.sleep(2 * GRACE_SECONDS)
        assert await server.get() == b""
        server.go_on.set()
        assert [await reply(peer) for peer in held] == [b"held"] * 2
        assert await server.get() == b"hello"


@pytest.mark.parametrize(
    ("files", "expected"),
    [(1024, 768), (256, 128), (65536, connections.MAX_CONNECTIONS), (-1, connections.MAX_CONNECTIONS)],
)
def test_connections_leave_files_for_the_process(files: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (files, files))
    assert connections.max_connections() == expected
