"""stream/whep.py: the status codes and headers of the draft, for players as they behave and misbehave."""

import asyncio
import json
import socket

from serving import Client, Player, hear, say, serving

from stream.ice import Reach
from stream.protocol import MAX_SEED, IceServer
from stream.webrtc import Media

ORIGIN = "https://player.example.org"
TURN = IceServer(urls=("turn:turn.example.org:3478",), username="me", credential='a"b\\c')
SDPFRAG = {"Content-Type": "application/trickle-ice-sdpfrag"}


async def patch(client: Client, location, body, **headers):
    return await client.http.patch(location, content=body, headers={**SDPFRAG, **headers})


async def test_a_player_without_a_page_gets_a_world_and_leaves_it_with_delete(client, player):
    answer = await client.post("/whep?prompt=red&seed=1&preset=fake", await player.offer())
    assert answer.status_code == 201
    assert answer.headers["content-type"].startswith("application/sdp")
    assert answer.headers["accept-patch"] == "application/trickle-ice-sdpfrag"
    assert "link" not in answer.headers
    await player.take(answer.text)
    await player.frames_there(8)
    colour = player.frames[-1][1].to_ndarray(format="rgb24")[40].mean(axis=0)
    assert colour[0] > colour[1] + 40
    location = answer.headers["location"]
    assert (await client.http.delete(location)).status_code == 200
    assert (await client.http.delete(location)).status_code == 200
    assert client.service.hub.has_room
    assert "chunkcast_viewers 0.0" in (await client.http.get("/metrics")).text


async def test_a_player_plays_whose_candidates_come_by_patch_without_if_match(client, player):
    offer = await player.offer()
    bare = "".join(line for line in offer.splitlines(keepends=True) if not line.startswith("a=candidate"))
    answer = await client.post("/whep", bare)
    await player.take(answer.text)
    wanted = ("a=ice-", "a=candidate", "m=", "a=mid")
    fragment = "".join(line for line in offer.splitlines(keepends=True) if line.startswith(wanted))
    assert (await patch(client, answer.headers["location"], fragment)).status_code == 204
    await player.frames_there(3)


async def test_patch_answers_as_the_draft_says(client, player):
    answer = await client.post("/whep", await player.offer())
    location, etag = answer.headers["location"], answer.headers["etag"]
    candidate = "a=candidate:1 1 udp 2113937151 192.0.2.1 5000 typ host\r\n"
    assert etag.startswith('"') and etag.endswith('"')
    for match in ({}, {"If-Match": etag}, {"If-Match": f'"old", {etag}'}, {"If-Match": "*"}):
        assert (await patch(client, location, candidate, **match)).status_code == 204, match
    assert (await patch(client, location, candidate, **{"If-Match": '"old"'})).status_code == 412
    assert (await patch(client, location, "a=candidate:nonsense\r\n")).status_code == 400
    assert (await patch(client, location, "nonsense")).status_code == 400
    assert (await patch(client, location, b"\xff\xfe")).status_code == 400
    assert (await patch(client, location, "a=x\r\n" * 20_000)).status_code == 413
    junk = await patch(client, location, b"\xff")
    assert junk.status_code == 400 and "send a fragment of SDP" in junk.text
    assert (await patch(client, "/whep/guess", candidate)).status_code == 404
    wrong = await client.http.patch(location, content=candidate, headers={"Content-Type": "application/json"})
    assert wrong.status_code == 415 and wrong.headers["accept-patch"] == "application/trickle-ice-sdpfrag"
    restart = await patch(client, location, "a=ice-ufrag:abcd\r\na=ice-pwd:" + "x" * 22, **{"If-Match": "*"})
    assert restart.status_code == 422 and "POST a new offer" in restart.text
    assert (await client.http.delete(location, headers={"If-Match": '"old"'})).status_code == 412
    assert (await client.http.delete(location)).status_code == 200
    assert (await patch(client, location, candidate)).status_code == 404


async def test_an_offer_that_never_connects_gives_its_slot_back(client, player, monkeypatch):
    location = (await client.post("/whep", await player.offer())).headers["location"]
    assert "chunkcast_viewers 1.0" in (await client.http.get("/metrics")).text
    monkeypatch.setattr("stream.webrtc.CONNECT_SECONDS", 0.5)
    async with asyncio.timeout(8):  # without that, it would be 10
        while "chunkcast_viewers 0.0" not in (await client.http.get("/metrics")).text:  # noqa: ASYNC110  only HTTP says so
            await asyncio.sleep(0.1)
    assert (await patch(client, location, "")).status_code == 404


async def test_when_no_port_is_free_a_player_is_told_to_come_back_and_no_slot_is_lost(player):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        reach = Reach(address="127.0.0.1", ports=range(port, port + 1))
        async with serving(media=Media(reach=reach)) as client:
            answer = await client.post("/whep", await player.offer())
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
            assert "in use" in answer.text and client.service.hub.has_room


async def test_a_session_that_never_was_cannot_be_ended(client):
    assert (await client.http.delete("/whep/guess")).status_code == 404


async def test_a_player_is_told_to_come_back_when_the_world_is_full(client, player):
    async with client.page() as first, client.page() as second:
        await hear(first, "live")
        await hear(second, "live")
        answer = await client.post("/whep", await player.offer())
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        assert "full" in answer.text


async def test_a_bad_offer_gets_a_sentence_and_takes_no_slot(client):
    async with client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        for path in ("/whep", f"/whep?session={token}"):
            for body in ("v=0\r\nbroken", ""):
                answer = await client.post(path, body)
                assert answer.status_code == 400 and "createOffer" in answer.text
        assert (await client.post("/whep", b"\xff\xfe")).status_code == 400
        assert (await client.post("/whep", "x" * 70_000)).status_code == 413
        assert client.service.hub.has_room
        await say(page, type="keys", seq=1, held=[])
        assert (await hear(page, "received"))["seq"] == 1


async def test_an_offer_of_another_type_is_refused_with_the_type_that_is_right(client, player):
    offer = await player.offer()
    for kind in ("", "application/json", "text/plain", "application/sdpx"):
        answer = await client.http.post("/whep", content=offer, headers={"Content-Type": kind})
        assert answer.status_code == 415 and answer.headers["accept-post"] == "application/sdp", kind
    assert client.service.hub.has_room


async def test_a_type_with_a_parameter_is_still_an_offer(client, player):
    kind = {"Content-Type": "Application/SDP; charset=utf-8"}
    assert (await client.http.post("/whep", content=await player.offer(), headers=kind)).status_code == 201


async def test_no_one_gets_a_picture_with_a_wrong_token_seed_preset_or_prompt(client, player):
    offer = await player.offer()
    for query, status in [
        ("session=guess", 404),
        ("seed=-1", 400),
        (f"seed={MAX_SEED + 1}", 400),
        ("seed=" + "9" * 300, 400),
        ("prompt=%20", 400),
        ("prompt=" + "a" * 3000, 400),
        ("preset=other", 400),
    ]:
        assert (await client.post(f"/whep?{query}", offer)).status_code == status, query
    assert "'fake' is" in (await client.post("/whep?preset=other", offer)).text
    assert client.service.hub.has_room


async def test_what_the_draft_has_no_use_for_is_405_and_says_what_it_has(client):
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE"):
        answer = await client.http.request(method, "/whep")
        assert answer.status_code == 405 and answer.headers["allow"] == "POST, OPTIONS", method
    for method in ("GET", "HEAD", "PUT", "POST"):
        answer = await client.http.request(method, "/whep/x")
        assert answer.status_code == 405 and answer.headers["allow"] == "PATCH, DELETE, OPTIONS", method


async def test_options_says_what_may_be_posted_and_other_origins_are_told_nothing(client):
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    answer = await client.http.options("/whep", headers=asked)
    assert answer.status_code == 204 and answer.headers["accept-post"] == "application/sdp"
    refused = await client.post("/whep", "x", Origin=ORIGIN)
    for headers in (answer.headers, refused.headers):
        assert not [name for name in headers if name.startswith("access-control")]


async def test_pages_of_the_listed_origins_may_play_and_no_others(player):
    async with serving(allowed_origins=(ORIGIN,)) as client:
        preflight = await client.http.options("/whep/x", headers={"Origin": ORIGIN})
        methods = preflight.headers["access-control-allow-methods"]
        assert "DELETE" in methods and "PATCH" in methods
        assert "If-Match" in preflight.headers["access-control-allow-headers"]
        answer = await client.post("/whep", await player.offer(), Origin=ORIGIN)
        assert answer.status_code == 201 and answer.headers["access-control-allow-origin"] == ORIGIN
        exposed = answer.headers["access-control-expose-headers"]
        assert all(name in exposed for name in ("Location", "ETag", "Link"))
        refused = await client.post("/whep", "x", Origin=ORIGIN)
        assert refused.status_code == 400 and refused.headers["access-control-allow-origin"] == ORIGIN
        other = await client.http.options("/whep", headers={"Origin": "https://other.example.org"})
        assert "access-control-allow-origin" not in other.headers and other.headers["vary"] == "Origin"


async def test_ice_servers_are_handed_to_players_and_to_the_page(player):
    async with serving(media=Media(ice_servers=(IceServer(urls=("stun:127.0.0.1:9",)), TURN))) as client:
        async with client.page() as page:
            servers = (await hear(page, "welcome"))["ice_servers"]
            assert servers[1] == json.loads(TURN.model_dump_json())
        assert "link" not in (await client.post("/whep", "x")).headers
        answer = await client.post("/whep", await player.offer())
        assert answer.headers.get_list("link") == [
            '<stun:127.0.0.1:9>; rel="ice-server"',
            '<turn:turn.example.org:3478>; rel="ice-server"; username="me"; credential="a\\"b\\\\c"; '
            'credential-type="password"',
        ]


async def test_a_viewers_token_may_come_in_a_header_and_another_bearer_is_a_players_own(client, player):
    async with client.page() as page:
        token = (await hear(page, "welcome"))["token"]
        answer = await client.post("/whep?session=", await player.offer(), Authorization=f"Bearer {token}")
        assert answer.status_code == 201 and len(client.service.hub._viewers) == 1
        other = Player()
        offer = await other.offer()
        answer = await client.post("/whep?prompt=blue", offer, Authorization="Bearer of-a-proxy")
        assert answer.status_code == 201 and len(client.service.hub._viewers) == 2
        for wrong in ({}, {"Authorization": "Bearer guess"}, {"Authorization": f"Basic {token}"}):
            assert (await client.post("/whep?session=", offer, **wrong)).status_code == 404
        await other.connection.close()
