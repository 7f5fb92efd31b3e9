"""benchmarks/relay.py: a link that delays, loses and holds back as it was told."""

import asyncio
import random

import pytest

from benchmarks.relay import NOTHING, RETRANSMISSION_SECONDS, Relay, Shape, UdpRelay, Way

ANSWER = "\r\n".join(
    [
        "v=0",
        "m=video {port} UDP/TLS/RTP/SAVPF 96",
        "a=candidate:1 1 udp 2130706431 127.0.0.1 {port} typ host",
        "a=candidate:2 1 udp 1694498815 203.0.113.7 {port} typ srflx raddr 127.0.0.1 rport {port}",
        "a=end-of-candidates",
        "",
    ]
)


def way(clock, **shape):
    return Way(Shape(**shape), clock, random.Random(1))


def test_the_shape_of_a_link_is_read_and_what_is_none_is_refused_with_what_would_be_right():
    assert Shape.parse("delay=40,jitter=10, loss=3,rate=1500") == Shape(40, 10, 3, 1500)
    for wrong in ("delay", "speed=3", "loss=many", ""):
        with pytest.raises(ValueError, match="such as delay=40"):
            Shape.parse(wrong)
    for wrong in ("loss=101", "delay=-1"):
        with pytest.raises(ValueError, match="below 0"):
            Shape.parse(wrong)


def test_packets_are_late_by_the_delay_give_or_take_the_jitter_and_keep_their_order(clock):
    link, late, before = way(clock, delay=40, jitter=10), [], 0.0
    for _ in range(500):
        at = link.leaves(1000)
        assert at >= before
        before = at
        late.append(1000 * (at - clock()))
        clock.advance(0.02)
    assert 29.9 < min(late) < 32 and 48 < max(late) < 50.1 and 39 < sum(late) / len(late) < 41


def test_the_loss_is_the_share_that_was_told_and_tcp_is_late_instead(clock):
    link = way(clock, loss=3)
    lost = sum(link.leaves(100) is None for _ in range(10_000))
    assert 250 < lost < 350 and link.dropped == lost and link.passed == 10_000 - lost
    link = way(clock, loss=100, delay=40)
    assert link.leaves(100, is_lossless=True) == pytest.approx(clock() + RETRANSMISSION_SECONDS + 0.08)


def test_a_rate_holds_packets_back_and_drops_what_its_queue_cannot_hold(clock):
    link = way(clock, rate=1000, queue=100)  # 1 ms for 125 bytes
    left = [link.leaves(1250) for _ in range(20)]
    arrived = [round(1000 * (at - clock())) for at in left if at is not None]
    assert arrived == list(range(10, 120, 10)) and link.dropped == 20 - len(arrived)
    clock.advance(10)
    assert link.leaves(1250) == pytest.approx(clock() + 0.01), "the queue has drained"


def test_a_link_without_a_shape_passes_everything_on_at_once(clock):
    link = Way(NOTHING, clock, random.Random(1))
    assert [link.leaves(1000) for _ in range(100)] == [clock()] * 100


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(b"echo " + data, address)


class Listener(asyncio.DatagramProtocol):
    def __init__(self):
        self.heard = asyncio.Queue()

    def datagram_received(self, data, address):
        self.heard.put_nowait(data)


@pytest.fixture
async def echo():
    """The port of a UDP server that answers."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    yield transport.get_extra_info("sockname")[1]
    transport.close()


async def test_datagrams_go_both_ways_through_a_relay_each_with_the_delay(echo):
    loop = asyncio.get_running_loop()
    up, down = (Way(Shape(delay=30), loop.time, random.Random(1)) for _ in range(2))
    relay = await UdpRelay(up, down).open("127.0.0.1", echo)
    transport, page = await loop.create_datagram_endpoint(Listener, remote_addr=("127.0.0.1", relay.port))
    began = loop.time()
    for number in range(3):
        transport.sendto(str(number).encode())
    async with asyncio.timeout(30):
        assert [await page.heard.get() for _ in range(3)] == [b"echo 0", b"echo 1", b"echo 2"]
    assert loop.time() - began >= 0.06
    transport.close()
    relay.close()


async def test_an_answer_leads_to_the_relay_alone_and_tcp_goes_through_it_whole(echo):
    async def serve(reader, writer):
        writer.write(await reader.readexactly(100_000))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with Relay(address, Shape(delay=20, loss=2)).running() as link:
        answer = await link.rewritten(ANSWER.format(port=echo))
        assert f"udp 2130706431 127.0.0.1 {link._relays[0].port} typ host" in answer
        assert "srflx" not in answer and f" {echo} typ" not in answer and "a=end-of-candidates" in answer
        reader, writer = await asyncio.open_connection("127.0.0.1", int(link.address.rpartition(":")[2]))
        sent = random.Random(1).randbytes(100_000)
        writer.write(sent)
        async with asyncio.timeout(60):
            assert await reader.read(-1) == sent
        writer.close()
    server.close()
