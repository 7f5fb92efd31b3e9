"""Where the media's sockets are, and which addresses the other side is told: what aioice has no settings for.

aioice opens one UDP socket an interface on any port and knows no address but those of the interfaces. A server
behind NAT needs a range of ports that can be forwarded, and its public address told. The one place where that
is put into an aioice connection is `fit`.
"""

import asyncio
import functools
import inspect
import ipaddress
import random
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aioice import Candidate, Connection
from aioice import ice as aioice_ice
from aioice.candidate import candidate_foundation, candidate_priority
from aiortc.rtcicetransport import parse_stun_turn_uri

from stream.protocol import IceServer

SERVER_SECONDS = 2
"""So long an answer waits for a STUN or TURN server."""


class NoFreePort(Exception):
    """Every port of the range is in use."""


@dataclass(frozen=True)
class Reach:
    """How the media of this server is reached.

    `address` is the one interface to use, None for all. `public_ip` is the address that NAT gives this server.
    `ports` are the UDP ports to use, None for any; a viewer takes one an interface.
    """

    address: str | None = None
    public_ip: str | None = None
    ports: range | None = None

    def __post_init__(self) -> None:
        for name, address in (("address", self.address), ("public address", self.public_ip)):
            try:
                unusable = address is not None and ipaddress.ip_address(address).is_unspecified
            except ValueError:
                unusable = True
            if unusable:
                raise ValueError(f"the {name} is {address!r}; it must be an IP address such as 203.0.113.7")
        if self.ports is not None and not (self.ports and self.ports[0] > 1023 and self.ports[-1] <= 65535):
            raise ValueError(f"the UDP ports are {_shown(self.ports)}; they must be from 1024 to 65535")


def _shown(ports: range) -> str:
    return f"{ports.start}-{ports.stop - 1}"


def parse_ports(text: str) -> range:
    """The ports in "40000-40100". ValueError says what is wrong."""
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text, re.ASCII)
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(f"the UDP ports are {text!r}; write the first and the last, such as 40000-40100")
    return range(int(match[1]), int(match[2]) + 1)


def parse_server(text: str) -> IceServer:
    """The server in "stun:host:3478" or "turn:host:3478,user,secret"; the secret may be @FILE.

    ValueError says what is wrong, and never repeats the secret.
    """
    url, *login = (part.strip() for part in text.split(",", 2))
    try:
        scheme = parse_stun_turn_uri(url)["scheme"]
    except ValueError:
        raise ValueError(
            f"the ICE server is {url!r}; it must look like stun:host:3478 or turn:host:3478,user,secret"
        ) from None
    is_turn = scheme in ("turn", "turns")
    if is_turn != (len(login) == 2 and all(login)):
        wanted = "a TURN server needs a user and a secret: turn:host:3478,user,secret"
        raise ValueError(f"{url}: {wanted if is_turn else 'a STUN server takes no user and no secret'}")
    if not is_turn:
        return IceServer(urls=(url,))
    return IceServer(urls=(url,), username=login[0], credential=_secret(login[1]))


def _secret(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        secret = Path(text[1:]).read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"there is no file {text[1:]} with the TURN server's secret") from None
    if not secret or not secret.isprintable():
        raise ValueError(f"the file {text[1:]} must hold the TURN server's secret, one line")
    return secret


Gather = Callable[..., Coroutine[Any, Any, list[Candidate]]]


def fit(connection: Connection, reach: Reach) -> None:
    """Let an aioice connection, before it gathers, open its sockets as `reach` says."""
    assert isinstance(connection._protocols, list) and not connection._protocols, "its sockets are open already"
    parameters = list(inspect.signature(connection.get_component_candidates).parameters)
    assert parameters == ["component", "addresses", "timeout"], f"aioice has changed: {parameters}"
    gather = functools.partial(_gather, connection, reach, connection.get_component_candidates)
    connection.get_component_candidates = gather  # type: ignore[method-assign]


async def _gather(
    connection: Connection, reach: Reach, relays: Gather, component: int, addresses: list[str]
) -> list[Candidate]:
    """All candidates of one component: sockets on the interfaces, how NAT shows them, and TURN's relays."""
    # Without any other interface there is only this machine to talk to.
    wanted = [reach.address] if reach.address else addresses or ["127.0.0.1"]
    bound = [await _bind(connection, component, address, reach.ports) for address in wanted]
    protocols = [protocol for protocol in bound if protocol]
    connection._protocols += protocols
    if reach.ports and not protocols:
        raise NoFreePort(f"all UDP ports of {_shown(reach.ports)} are in use")
    hosts = [protocol.local_candidate for protocol in protocols]
    seen, relayed = await asyncio.gather(
        _reflexive(connection, protocols), relays(component=component, addresses=[], timeout=SERVER_SECONDS)
    )
    return [*hosts, *filter(None, (_public(host, reach.public_ip) for host in hosts)), *seen, *relayed]


async def _bind(connection: Connection, component: int, address: str, ports: range | None) -> Any:
    """A socket of aioice's on an address, with its candidate; None where there is no free port or no such address."""
    loop = asyncio.get_running_loop()
    for port in random.sample(ports, len(ports)) if ports else (0,):
        try:
            _, protocol = await loop.create_datagram_endpoint(
                lambda: aioice_ice.StunProtocol(connection), local_addr=(address, port)
            )
        except OSError:
            continue
        host, port = protocol.transport.get_extra_info("sockname")[:2]
        foundation = candidate_foundation("host", "udp", host)
        priority = candidate_priority(component, "host")
        protocol.local_candidate = Candidate(foundation, component, "udp", priority, host, port, "host")
        return protocol
    return None


def _public(host: Candidate, public_ip: str | None) -> Candidate | None:
    """The candidate that NAT makes of an interface's; ports are forwarded as they are."""
    if public_ip is None or public_ip == host.host:
        return None
    if ipaddress.ip_address(public_ip).version != ipaddress.ip_address(host.host).version:
        return None
    foundation = candidate_foundation("srflx", "udp", host.host)
    priority = candidate_priority(host.component, "srflx")
    return Candidate(foundation, host.component, "udp", priority, public_ip, host.port, "srflx", host.host, host.port)


async def _reflexive(connection: Connection, protocols: list[Any]) -> list[Candidate]:
    """How a STUN server sees the IPv4 sockets; nothing where it does not answer in time."""
    if not connection.stun_server:
        return []
    asked = [one for one in protocols if ipaddress.ip_address(one.local_candidate.host).version == 4]
    questions = [aioice_ice.server_reflexive_candidate(one, connection.stun_server) for one in asked]
    answers = await asyncio.gather(
        *(asyncio.wait_for(question, SERVER_SECONDS) for question in questions), return_exceptions=True
    )
    return [answer[0] for answer in answers if not isinstance(answer, BaseException)]
