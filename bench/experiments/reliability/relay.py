"""Stands between client and server, so that their connection can end in all ways of networks."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType


class Relay:
    """Passes bytes on in both directions, on a port of its own on loopback."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._frozen = False
        self._upstream: list[asyncio.StreamWriter] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # a transport closes in the loop's next round

    @property
    def address(self) -> str:
        host, port = self._listener.sockets[0].getsockname()
        return f"{host}:{port}"

    def freeze(self) -> None:
        """Half-open: nothing is passed on any more, and no side hears of it."""
        self._frozen = True

    def reset(self) -> None:
        """The server gets RST, as from a host that rebooted."""
        for writer in self._upstream:
            peer = writer.get_extra_info("socket")
            with suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._upstream.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._server)
        except OSError:  # no server there
            writer.transport.abort()
            return
        self._upstream.append(up_writer)
        self._writers += [writer, up_writer]
        for source, target in ((reader, up_writer), (up_reader, writer)):
            task = asyncio.create_task(self._pass(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(65536):
                if not self._frozen:
                    target.write(piece)
                    await target.drain()
        if not self._frozen:
            target.close()
