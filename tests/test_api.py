"""stream/api.py: sessions over HTTP, with the fake engine in its real process."""

import asyncio
import contextlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.openapi.models import OpenAPI
from serving import OTHERS, Player, hear, say, serving, until, watch

from pipeline.chunk import Session, World
from pipeline.presets import find_preset
from stream import api
from stream.__main__ import main
from stream.catalogue import Catalogue
from stream.protocol import MAX_SEED
from stream.viewer import FILES_AT_ONCE


async def create(client, **wish):
    return await client.http.post("/api/sessions", json={"prompt": "red", "seed": 7, **wish})


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


async def read(client, made, path=""):
    return await client.http.get(f"/api/sessions/{made['session']}{path}", headers=bearer(made["token"]))


async def upload(client, body):
    return await client.http.post("/api/sessions/file", content=body, headers={"Content-Type": api.FILE})


async def test_a_session_is_made_read_and_deleted(client):
    answer = await create(client)
    made = answer.json()
    assert answer.status_code == 201 and answer.headers["location"] == f"/api/sessions/{made['session']}"
    assert (made["state"], made["slot"], made["seed"], made["prompt"]) == ("live", 0, 7, "red")
    again = (await read(client, made)).json()
    assert again == {**{key: value for key, value in made.items() if key != "token"}, "chunks": again["chunks"]}
    where = f"/api/sessions/{made['session']}"
    assert (await client.http.delete(where, headers=bearer(made["token"]))).status_code == 204
    assert (await read(client, made)).status_code == 404
    assert client.service.hub.has_room


async def test_a_session_in_line_knows_its_place_and_is_live_when_it_asks_and_there_is_room(client):
    first, _, third = [(await create(client)).json() for _ in range(3)]
    assert (third["state"], third["place"], third["waiting"]) == ("queued", 1, 1)
    await client.http.delete(f"/api/sessions/{first['session']}", headers=bearer(first["token"]))
    assert (await read(client, third)).json()["state"] == "live"


async def test_a_session_made_here_is_watched_by_the_page_and_by_whep_alone(client, player):
    by_page, by_whep = (await create(client)).json(), (await create(client, prompt="green")).json()
    async with client.page(token=by_page["token"]) as page:
        assert (await hear(page, "live"))["slot"] == by_page["slot"]
    await watch(client, player, by_whep["token"])
    colour = player.frames[-1][1].to_ndarray(format="rgb24")[40].mean(axis=0)
    assert colour[1] > colour[0] + 40


async def test_a_session_goes_on_from_its_file_beside_the_first(client, player, tmp_path):
    made = (await create(client)).json()
    await watch(client, player, made["token"])
    answer = await read(client, made, "/file")
    assert answer.status_code == 200 and made["session"] in answer.headers["content-disposition"]
    (tmp_path / "file").write_bytes(answer.content)
    data = Session.load(tmp_path / "file")
    assert data.chunk >= 2 and data.oldest == 0 and made["token"].encode() not in answer.content
    again = await upload(client, answer.content)
    copy = again.json()
    assert again.status_code == 201 and copy["chunks"] == data.chunk and copy["seed"] == 7
    assert copy["session"] != made["session"] and copy["token"] != made["token"]
    second = Player()
    await watch(client, second, copy["token"])
    assert (await read(client, copy)).json()["chunks"] > data.chunk
    await second.connection.close()


async def test_a_live_sessions_file_is_given_a_few_times_in_a_row_and_then_less_often(client, player):
    made = (await create(client)).json()
    await watch(client, player, made["token"])
    answers = [await read(client, made, "/file") for _ in range(FILES_AT_ONCE + 1)]
    assert [answer.status_code for answer in answers] == [200] * FILES_AT_ONCE + [429]
    assert answers[-1].headers["retry-after"] == "5"


async def test_a_parked_session_is_read_fetched_and_deleted_by_its_token(client, player):
    async with client.page() as page:
        welcome = await hear(page, "welcome")
        made = {"session": welcome["session"], "token": welcome["token"]}
        await watch(client, player, made["token"])
        await say(page, type="park")
        await hear(page, "parked")
    await until(lambda: not client.service.hub.find(made["token"]))
    described = (await read(client, made)).json()
    assert (described["state"], described["seed"]) == ("parked", 7) and described["chunks"] >= 2
    assert (await read(client, made, "/file")).status_code == 200
    where = f"/api/sessions/{made['session']}"
    assert (await client.http.delete(where, headers=bearer(made["token"]))).status_code == 204
    assert (await read(client, made)).status_code == 404


async def test_without_its_token_a_session_is_out_of_reach(client):
    one, other = (await create(client)).json(), (await create(client)).json()
    for path in ("", "/file"):
        where = f"/api/sessions/{one['session']}{path}"
        bare = await client.http.get(where)
        assert bare.status_code == 401 and bare.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in bare.json()["detail"]
        assert (await client.http.get(where, headers=bearer(other["token"]))).status_code == 404
        assert (await client.http.get(f"{where}?token={one['token']}")).status_code == 401


BAD = [
    (b"junk", "invalid json"),
    (b"[]", "a body looks like"),
    (b'{"prompt": " "}', "the prompt is empty"),
    (b'{"prompt": "a", "seed": -1}', "seed is wrong"),
    (b'{"prompt": "a", "seed": %d}' % (MAX_SEED + 1), "seed is wrong"),
    (b'{"prompt": "a", "colour": 1}', "colour is wrong"),
    (b'{"prompt": "a", "preset": "large"}', "'large' is not served; 'fake' is"),
    (b'{"prompt": "\\ud800"}', "is wrong"),
]


async def test_a_bad_wish_is_answered_with_what_would_be_right(client):
    for body, says in BAD:
        answer = await client.http.post("/api/sessions", content=body, headers={"Content-Type": api.JSON})
        assert answer.status_code == 400 and says in answer.json()["detail"].lower(), says


async def test_bodies_of_the_wrong_kind_or_size_are_refused(client):
    long = await client.http.post("/api/sessions", content=b" " * 20_000, headers={"Content-Type": api.JSON})
    assert long.status_code == 413
    assert (await client.http.post("/api/sessions", content=b"{}")).status_code == 415
    assert (await client.http.post("/api/sessions/file", json={})).status_code == 415


async def test_a_body_that_says_that_it_is_too_long_is_refused_before_it_comes(client):
    async with begun_upload(client, api.MAX_FILE_BYTES + 1) as (reader, _):
        assert b" 413 " in await asyncio.wait_for(reader.readline(), 5)


@contextlib.asynccontextmanager
async def begun_upload(client, size):
    """The head of an upload whose body does not come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    head = f"POST /api/sessions/file HTTP/1.1\r\nHost: x\r\nContent-Type: {api.FILE}\r\nContent-Length: {size}\r\n\r\n"
    writer.write(head.encode())
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_few_files_are_received_at_a_time_and_none_where_the_line_is_full(client, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(api.MAX_UPLOADS):
            await stack.enter_async_context(begun_upload(client, 100))
        await until(lambda: uploads() == api.MAX_UPLOADS)
        async with begun_upload(client, 100) as (reader, _):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert b" 429 " in head and b"retry-after: 10" in head.lower()
    await until(lambda: uploads() == 0)
    assert (await upload(client, b"junk")).status_code == 400
    monkeypatch.setattr("stream.hub.MAX_WAITING", 0)
    async with begun_upload(client, 100) as (reader, _):
        assert b" 503 " in await asyncio.wait_for(reader.readline(), 5)


def uploads():
    """How many files are on the disk."""
    return len(list(Path(tempfile.gettempdir()).glob("chunkcast-*.session")))


async def test_a_file_that_is_none_is_said_to_be_none_and_takes_no_slot(client, monkeypatch):
    answer = await upload(client, b"junk")
    assert answer.status_code == 400 and "the body is no session file" in answer.json()["detail"]
    monkeypatch.setattr(api, "MAX_FILE_BYTES", 1000)
    assert (await upload(client, b"x" * 1001)).status_code == 413
    assert client.service.hub.has_room


def test_what_this_world_cannot_go_on_with_is_refused_before_the_engine_sees_it(tmp_path):
    from test_archive import session

    world = World("fake", 160, 96, 16, 2, 4, 4, resume_chunks=4)
    whole = session(size=6)
    wrong = {
        "preset": replace(whole, preset="other"),
        "takes 4": replace(whole, latents=whole.latents[3:]),
        "at most 200000": replace(whole, chunk=200_001),
        "takes none, only a prompt": replace(whole, spec=replace(whole.spec, image=b"a picture")),
    }
    for says, data in wrong.items():
        data.save(tmp_path / "file")
        with pytest.raises(api.HTTPException) as refused:
            api._load(tmp_path / "file", world)
        assert says in refused.value.detail
    replace(whole, frame=10**12).save(tmp_path / "file")
    assert api._load(tmp_path / "file", world).frame == 24


async def test_the_document_describes_the_api_and_the_presets_what_is_served(client):
    document = (await client.http.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/api/presets",
        "/api/sessions",
        "/api/sessions/file",
        "/api/sessions/{session}",
        "/api/sessions/{session}/file",
        "/api/sessions/{session}/image",
    }
    assert document["paths"]["/api/sessions/{session}"]["get"]["security"] == [{"token": []}]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert "token" not in json.dumps(document["paths"]["/api/sessions/{session}"]["get"].get("parameters"))
    OpenAPI.model_validate(document)
    for route in document["paths"].values():
        for operation in route.values():
            assert operation["description"] and set(operation["responses"]) > {"400", "404", "503"}


async def test_all_presets_are_listed_the_served_one_first(client):
    fake, large = (await client.http.get("/api/presets")).json()
    assert (fake["name"], fake["fps"], fake["slots"], fake["served"], fake["image"]) == (
        "fake",
        16,
        2,
        True,
        "optional",
    )
    assert large == {**OTHERS[0], "served": False, "slots": None}


async def test_presets_that_cannot_be_asked_for_are_a_503_with_a_sentence(caplog):
    broken = Catalogue((sys.executable, "-c", "raise SystemExit('no torch')"))
    async with serving(catalogue=broken) as client:
        answer = await client.http.get("/api/presets")
        assert answer.status_code == 503 and "server's log says why" in answer.json()["detail"]
    assert "no torch" in caplog.text


def test_the_shipped_presets_say_what_they_take(capsys, monkeypatch):
    two = ("tiny", "wan2.1-1.3b-self-forcing")
    monkeypatch.setattr("pipeline.presets.PRESETS", {name: find_preset(name) for name in two})
    assert main(["presets", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(OTHERS[0]) == set(listed["tiny"])
    assert listed["tiny"]["can_serve"] and listed["tiny"]["image"] == "optional" and listed["tiny"]["camera"]
    plain = listed[two[1]]
    assert plain["image"] == "none" and not plain["camera"] and (plain["can_serve"] or "GPU" in plain["why"])


async def test_the_metrics_count_sessions_by_state(client):
    for _ in range(3):
        await create(client)
    text = (await client.http.get("/metrics")).text
    for line in (
        "chunkcast_viewers 2.0",
        "chunkcast_waiting 1.0",
        "chunkcast_parked 0.0",
        "chunkcast_parked_bytes 0.0",
    ):
        assert line in text


def test_a_few_bytes_that_say_a_walk_of_years_are_refused(tmp_path):
    from safetensors.numpy import load_file, safe_open, save_file
    from test_archive import session

    from pipeline.session_file import METADATA

    session().save(tmp_path / "file")
    tensors = load_file(tmp_path / "file")
    with safe_open(tmp_path / "file", "np") as file:
        described = json.loads(file.metadata()[METADATA])
    save_file(tensors, tmp_path / "bomb", {METADATA: json.dumps({**described, "script": [["w", 10**12]]})})
    with pytest.raises(ValueError, match="its walk has 1000000000000 frames"):
        Session.load(tmp_path / "bomb")
