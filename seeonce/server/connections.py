"""Connections that do not hang: of clients that send no request, and of those that read no answer."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LONGEST_HEADERS_S = 20.0
LONGEST_STALL_S = 60.0


class BoundedConnection(H11Protocol):
    """uvicorn's connection, cut off when headers do not come or nothing of an answer is read for long."""

    _headers_due: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._headers_due = self.loop.call_later(LONGEST_HEADERS_S, self._abort_without_request)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first of a request begin the time that its headers have."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] and self._headers_due is None:
            self._headers_due = self.loop.call_later(LONGEST_HEADERS_S, self._abort_without_request)
        elif self.conn.their_state is not h11.IDLE and self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def pause_writing(self) -> None:
        """Begin the time in which the client has to read on."""
        super().pause_writing()
        self._stalled = self.loop.call_later(LONGEST_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._end_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the timers."""
        super().connection_lost(exc)
        self._end_stall()
        if self._headers_due is not None:
            self._headers_due.cancel()

    def _end_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _abort_without_request(self) -> None:
        self._headers_due = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()
