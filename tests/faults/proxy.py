"""TCP proxies between the workers and a service, which make the network as bad as they are told.

All run in one thread of their own. A proxy counts what its weather really did, so that a fault nobody noticed isn't
counted. It must never change a byte: it delays, withholds, swallows or cuts.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from devstack.ports import HOST

_T = TypeVar("_T")
# A simple query COMMIT as libpq sends it: type, length, text.
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_CHUNK = 1 << 16
_GLANCE_S = 0.02


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to connections. Everything off: they are passed on as they are."""

    delay_s: float = 0.0
    """Of each piece of data, in both directions."""
    bytes_per_s: float = 0.0
    """How much may pass per direction; 0 is as much as there is."""
    stalled: bool = False
    """Data is withheld until the weather changes, as by lost packets; then it is delivered."""
    swallowing: bool = False
    """Half-open: what the connections of now send is gone, they stay open in silence, and end with the weather."""
    refusing: bool = False
    """New connections are reset."""
    cut_after: int = 0
    """A connection is reset, in the middle of what it sends, once so many bytes have passed since the weather began."""
    cut_commit: Literal["", "before", "after"] = ""
    """A connection is reset when a COMMIT passes: before the server gets it, or when it has but its answer has not passed."""
    cuts: int = 1_000_000
    """At most so many connections are cut by `cut_after` and `cut_commit`."""
    answer: bytes = b""
    """Given, with the end of the connection, instead of asking the service."""


CLEAR = Weather()


@dataclass(slots=True)
class Effect:
    """What a weather came to."""

    touched: int = 0


@dataclass(eq=False, slots=True)
class _Link:
    """A client's connection and the one made for it to the service."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    swallowing: bool = False
    passed: int = 0
    weather: Weather = field(default=CLEAR)

    def cut(self) -> None:
        """Reset both ends: no farewell, as when a cable is cut and a router says so."""
        for writer in self.writers:
            _reset(writer)


class Proxy:
    """Listens at `port`, passes on to the service. Made by `Proxies.to`."""

    def __init__(self, name: str, port: int, target_port: int) -> None:
        self.name = name
        self.port = port
        self._target_port = target_port
        self._weather = CLEAR
        self._effect = Effect()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def connections(self) -> int:
        return len(self._links)

    @contextmanager
    def under(self, weather: Weather) -> Iterator[Effect]:
        """The weather for as long as the block lasts, and what it came to so far."""
        effect = Effect()
        self._in_loop(self._change(weather, effect))
        try:
            yield effect
        finally:
            self._in_loop(self._change(CLEAR, Effect()))

    def cut_all(self) -> int:
        """Reset every connection; how many."""
        return self._in_loop(self._cut_all())

    # in the loop's thread

    async def listen(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut_all()

    async def _change(self, weather: Weather, effect: Effect) -> None:
        for link in [link for link in self._links if link.swallowing]:
            link.cut()
        self._weather, self._effect = weather, effect
        if weather.swallowing:
            for link in self._links:
                link.swallowing = True

    async def _cut_all(self) -> int:
        links = list(self._links)
        for link in links:
            link.cut()
        return len(links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._weather.refusing:
                self._effect.touched += 1
                _reset(writer)
            elif self._weather.answer:
                await self._answer(reader, writer)
            else:
                await self._connect(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            _reset(writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(_CHUNK)
        writer.write(self._weather.answer)
        self._effect.touched += 1
        await writer.drain()
        writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_service, to_service = await asyncio.open_connection(HOST, self._target_port)
        link = _Link((writer, to_service))
        self._links.add(link)
        pumps = [
            asyncio.ensure_future(self._pump(link, reader, to_service, to_server=True)),
            asyncio.ensure_future(self._pump(link, from_service, writer, to_server=False)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            while link.swallowing and self._weather.swallowing:
                await asyncio.sleep(_GLANCE_S)  # the other side doesn't hear that this one is gone
        finally:
            self._links.discard(link)
            for pump in pumps:
                pump.cancel()
            # Before anything is awaited: this task may be cancelled there, and nobody else knows of these ends any more.
            for end in link.writers:
                end.close()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                await self._endure(link, len(data))
                if link.swallowing:
                    self._effect.touched += 1
                    continue
                if not await self._pass(link, writer, data, to_server=to_server):
                    return

    async def _endure(self, link: _Link, size: int) -> None:
        """Wait as long as the weather wants."""
        weather, effect = self._weather, self._effect
        wait_s = weather.delay_s + (size / weather.bytes_per_s if weather.bytes_per_s else 0.0)
        if wait_s:
            effect.touched += 1
            await asyncio.sleep(wait_s)
        if weather.stalled:
            effect.touched += 1
            while self._weather is weather and not link.swallowing:
                await asyncio.sleep(_GLANCE_S)

    async def _pass(self, link: _Link, writer: asyncio.StreamWriter, data: bytes, *, to_server: bool) -> bool:
        """Pass data on; False where the connection was cut over it."""
        weather, effect = self._weather, self._effect
        if weather is not link.weather:
            link.weather, link.passed = weather, 0
        if weather.cut_commit and to_server and COMMIT in data and effect.touched < weather.cuts:
            effect.touched += 1
            if weather.cut_commit == "after":
                writer.write(data)
                # The server's answer may be on its way soon; it must not pass. The server's end is closed in order, behind what it was
                # sent: a reset would take from it what it hasn't read.
                _reset(link.writers[0])
            else:
                link.cut()
            return False
        if weather.cut_after and effect.touched < weather.cuts and link.passed + len(data) > weather.cut_after:
            effect.touched += 1
            writer.write(data[: max(0, weather.cut_after - link.passed)])
            await writer.drain()
            link.cut()
            return False
        link.passed += len(data)
        writer.write(data)
        await writer.drain()
        return True

    def _in_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        assert self.loop is not None, "a proxy is made by Proxies.to"
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)


class Proxies:
    """The thread in which proxies run."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._proxies: list[Proxy] = []

    def to(self, name: str, target_port: int, port: int) -> Proxy:
        """A proxy that listens at `port`."""
        proxy = Proxy(name, port, target_port)
        asyncio.run_coroutine_threadsafe(proxy.listen(), self._loop).result(60)
        self._proxies.append(proxy)
        return proxy

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    async def _end(self) -> None:
        for proxy in self._proxies:
            await proxy.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(_GLANCE_S)  # transports that were closed take their leave in the loop's next turns


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
