"""Who may come in: how many connections one address may have, and how long a connection may say nothing."""

import asyncio
import ipaddress
from collections import Counter
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

CONNECTIONS_PER_ADDRESS = 16
"""A page has two: its socket, and the connection that brings the picture."""
NETWORK_BITS = 64
"""A household has so many bits of IPv6 addresses in common; whoever has one of them has them all."""
HEAD_SECONDS = 10.0
"""So long may the head of a request take, from the connection or from its first byte."""


BODY_SECONDS, UPLOAD_SECONDS = 10.0, 300.0
"""And so long its body: of an offer or a wish, and of a session file."""


class TooMany(Exception):
    """An address has all the connections that it may have; the text says so."""


class Doors:
    """Counts the connections of each address. This machine's own are not counted: a proxy on it may name no one."""

    def __init__(self, per_address: int = CONNECTIONS_PER_ADDRESS) -> None:
        if per_address < 2:
            raise ValueError(f"{per_address} connections per address are too few; a page needs 2")
        self._per_address = per_address
        self._open: Counter[str] = Counter()

    def take(self, host: str | None) -> str | None:
        """Count a connection from this address; what to give back when it ends. Raises TooMany."""
        key = _counted_as(host)
        if key is not None:
            if self._open[key] >= self._per_address:
                raise TooMany(f"your address has {self._per_address} connections already; close one, then try again")
            self._open[key] += 1
        return key

    def give_back(self, key: str | None) -> None:
        """A connection that take() counted has ended."""
        if key is not None:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    @property
    def open(self) -> int:
        """All connections that are counted."""
        return self._open.total()


def _counted_as(host: str | None) -> str | None:
    """The address or IPv6 network that a connection counts for; None for one that is not counted."""
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_loopback:
        return None
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, NETWORK_BITS), strict=False))


class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's HTTP, which by itself waits forever for the head of a request."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_served:
            self._stop_waiting()
        elif self._waits is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _is_served(self) -> bool:
        """True while a request is answered here, or once the connection has become a WebSocket."""
        in_answer = self.cycle is not None and not self.cycle.response_complete
        return in_answer or self.transport.get_protocol() is not self

    def _wait(self) -> None:
        self._waits = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _give_up(self) -> None:
        self._waits = None
        if not self._is_served:
            self.transport.close()
