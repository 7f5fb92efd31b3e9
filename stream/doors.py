"""Who may come in: pages of which origins, with which token, and how many connections of one address.

And how long a connection may say nothing.
"""

import asyncio
import ipaddress
import re
import secrets
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

CONNECTIONS_PER_ADDRESS = 16
"""A page has two: its socket, and the connection that brings the picture."""
NETWORK_BITS = 64
"""A household has so many bits of IPv6 addresses in common; whoever has one of them has them all."""
HEAD_SECONDS = 10.0
"""So long may the head of a request take, from the connection or from its first byte."""


CLOSE_SECONDS = 2.0
"""So long the other side of a WebSocket has to answer that we close it."""
BODY_SECONDS, UPLOAD_SECONDS = 10.0, 300.0
"""And so long its body: of an offer or a wish, and of a session file."""


SOCKETS_PER_ADDRESS = 64
"""TCP connections before they are anything: a browser opens six, and a household has some browsers."""


class TooMany(Exception):
    """An address has all the connections that it may have; the text says so."""


class NoAccess(Exception):
    """The server's token is missing or wrong; the text says so."""


class Doors:
    """Counts the connections of each address. This machine's own are not counted: a proxy on it may name no one.

    Without a `token` whoever comes may have a world.
    """

    def __init__(self, per_address: int = CONNECTIONS_PER_ADDRESS, token: str | None = None) -> None:
        """Raises ValueError, which never repeats the token."""
        if per_address < 2:
            raise ValueError(f"{per_address} connections per address are too few; a page needs 2")
        if token is not None and not re.fullmatch(r"[\x21-\x7e]{16,256}", token):
            raise ValueError("the server's token must be 16 to 256 ASCII characters without spaces")
        self._token = token
        self._connections, self.sockets = _Count(per_address), _Count(SOCKETS_PER_ADDRESS)

    def take(self, host: str | None) -> str | None:
        """Count a connection from this address; what to give back when it ends. Raises TooMany."""
        return self._connections.take(host)

    def give_back(self, key: str | None) -> None:
        """A connection that take() counted has ended."""
        self._connections.give_back(key)

    def check_token(self, given: str | None) -> None:
        """Raise NoAccess unless this is the server's token, or it has none."""
        if self._token is None:
            return
        if not given:
            raise NoAccess("this server gives worlds to those who have its token, and none was sent")
        if not secrets.compare_digest(given.encode("utf-8", "surrogatepass"), self._token.encode()):
            raise NoAccess("that is not this server's token")

    @property
    def open(self) -> int:
        """All connections that are counted."""
        return self._connections.open.total()


class _Count:
    """How many of something each address has, at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.open: Counter[str] = Counter()

    def take(self, host: str | None) -> str | None:
        """One more of this address, None where it is not counted. Raises TooMany."""
        key = _counted_as(host)
        if key is not None:
            if self.open[key] >= self._most:
                raise TooMany(f"your address has {self._most} connections already; close one, then try again")
            self.open[key] += 1
        return key

    def give_back(self, key: str | None) -> None:
        """One less; None is no one's."""
        if key is not None:
            self.open[key] -= 1
            if not self.open[key]:
                del self.open[key]


def is_welcome(origin: str | None, host: str | None, allowed: tuple[str, ...]) -> bool:
    """True when a page of `origin` may steer a world at the address `host`, each as the request's header says it.

    Pages of this server may, and those that are listed. What sends no origin is no browser. The scheme is not compared:
    a proxy may have taken the TLS away.
    """
    if origin is None or origin in allowed or "*" in allowed:
        return True
    place = _place(origin)
    return place[0] is not None and place == _place(f"{urlsplit(origin).scheme}://{host}")


def _place(address: str) -> tuple[str | None, int | None]:
    """Host and port of an origin; the port that the scheme implies is none. (None, None) for what is no origin."""
    try:
        parts = urlsplit(address)
        port = None if parts.port == {"http": 80, "https": 443}.get(parts.scheme) else parts.port
    except ValueError:
        return None, None
    return parts.hostname, port


def bearer(header: str | None) -> str | None:
    """The token in an Authorization header, None when there is none."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


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
    """uvicorn's HTTP, which by itself waits forever for the head of a request, and takes all that connect."""

    _waits: asyncio.TimerHandle | None = None
    _counted: str | None = None

    def __init__(self, *arguments: Any, doors: Doors, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._doors = doors

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        try:
            self._counted = self._doors.sockets.take(self.client and self.client[0])
        except TooMany:
            transport.abort()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_served:
            self._stop_waiting()
        elif self._waits is None:
            self._wait()
        if self.transport.get_protocol() is not self:
            self._uncount()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._uncount()
        super().connection_lost(exc)

    def _uncount(self) -> None:
        """The connection is gone, or a WebSocket, which is counted as one."""
        self._doors.sockets.give_back(self._counted)
        self._counted = None

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


class ImpatientSocket(AutoWebSocketsProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's WebSocket, which by itself waits 10 s for the other side when it has closed."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.close_timeout = CLOSE_SECONDS
