"""stream/ice.py: on which ports media runs, which addresses are told, and which servers are asked."""

import asyncio
import re
import socket

import pytest
from serving import Player
from test_webrtc import FPS, FakeFeed

from stream.ice import NoFreePort, Reach, parse_ports, parse_server
from stream.protocol import IceServer
from stream.webrtc import Media, Peer, check_offer


def free_ports(count):
    """As many UDP ports in a row that are free now."""
    for first in range(41000, 60000, 50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            try:
                one.bind(("0.0.0.0", first))
                return range(first, first + count)
            except OSError:
                continue
    raise AssertionError("no port is free")


async def answer_of(reach, **media):
    player, peer = Player(), Peer(FakeFeed(), FPS, Media(reach=reach, **media))
    try:
        return await peer.answer(check_offer(await player.offer()))
    finally:
        await peer.close()
        await player.connection.close()


def candidates(answer):
    """(address, port, type) of each candidate of an answer."""
    return [(ip, int(port), kind) for ip, port, kind in re.findall(r"udp \d+ (\S+) (\d+) typ (\w+)", answer)]


async def test_media_runs_on_the_ports_that_were_asked_for_and_plays():
    ports = free_ports(8)
    player, peer = Player(), Peer(FakeFeed(), FPS, Media(reach=Reach(ports=ports)))
    answer = await peer.answer(check_offer(await player.offer()))
    assert {port for _, port, _ in candidates(answer)} <= set(ports)
    await player.take(answer)
    await player.frames_there(3)
    await peer.close()
    await player.connection.close()


async def test_media_runs_on_the_interface_that_was_asked_for():
    answer = await answer_of(Reach(address="127.0.0.1"))
    assert {address for address, _, _ in candidates(answer)} == {"127.0.0.1"}


async def test_the_public_address_is_told_besides_with_the_same_port():
    answer = await answer_of(Reach(address="127.0.0.1", public_ip="203.0.113.7"))
    (host, port, kind), public = candidates(answer)
    assert (host, kind) == ("127.0.0.1", "host")
    assert public == ("203.0.113.7", port, "srflx")


async def test_a_public_address_of_the_other_family_is_not_made_of_an_interface():
    answer = await answer_of(Reach(address="127.0.0.1", public_ip="2001:db8::7"))
    assert [kind for _, _, kind in candidates(answer)] == ["host"]


async def test_when_all_ports_are_in_use_that_is_told_and_when_one_is_free_again_it_serves():
    (port,) = ports = free_ports(1)
    reach = Reach(address="127.0.0.1", ports=ports)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", port))
        with pytest.raises(NoFreePort, match=f"{port}-{port} are in use"):
            await answer_of(reach)
    assert [one[1] for one in candidates(await answer_of(reach))] == [port]


async def test_ipv6_media_has_an_ipv6_candidate():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
            one.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    answer = await answer_of(Reach(address="::1"))
    assert {address for address, _, _ in candidates(answer)} == {"::1"}


async def test_a_stun_server_that_does_not_answer_delays_an_answer_by_a_moment_only(monkeypatch):
    monkeypatch.setattr("stream.ice.SERVER_SECONDS", 0.3)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        url = f"stun:127.0.0.1:{deaf.getsockname()[1]}"
        async with asyncio.timeout(2):
            answer = await answer_of(Reach(), ice_servers=(IceServer(urls=(url,)),))
    assert candidates(answer)


@pytest.mark.parametrize("changes", [{"public_ip": "example.org"}, {"public_ip": "0.0.0.0"}, {"address": "::"}])
def test_an_address_that_is_none_is_refused(changes):
    with pytest.raises(ValueError, match="an IP address such as"):
        Reach(**changes)


def test_a_range_of_ports_is_read_and_what_is_none_is_refused():
    assert parse_ports("40000-40100") == range(40000, 40101)
    for text in ("40000", "40100-40000", "a-b", "-5", "40000-"):
        with pytest.raises(ValueError, match="such as 40000-40100"):
            parse_ports(text)
    for ports in (range(80, 90), range(65000, 70000)):
        with pytest.raises(ValueError, match="from 1024 to 65535"):
            Reach(ports=ports)


def test_servers_are_read_with_their_login_and_the_secret_may_be_in_a_file(tmp_path):
    assert parse_server("stun:example.org:3478") == IceServer(urls=("stun:example.org:3478",))
    turn = IceServer(urls=("turn:example.org:3478?transport=tcp",), username="me", credential="a,b")
    assert parse_server("turn:example.org:3478?transport=tcp,me,a,b") == turn
    (tmp_path / "secret").write_text("a,b\n")
    assert parse_server(f"turn:example.org:3478?transport=tcp,me,@{tmp_path}/secret") == turn


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://x", "must look like stun:"),
        ("stun:", "must look like stun:"),
        ("turn:example.org", "needs a user and a secret"),
        ("turn:example.org,me", "needs a user and a secret"),
        ("stun:example.org,me,secret", "takes no user"),
        ("turn:example.org,me,@/nowhere", "no file /nowhere"),
    ],
)
def test_a_server_that_is_none_is_refused_with_a_sentence_that_keeps_the_secret(text, says):
    with pytest.raises(ValueError, match=says) as error:
        parse_server(text)
    assert "secret'" not in str(error.value)
