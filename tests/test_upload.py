"""A viewer's picture on its way into the world: stream/upload.py, and what the service makes of it."""

import asyncio
import io
import json
import tempfile

import numpy as np
import pytest
from fake_engine import HEIGHT, WIDTH, corner
from PIL import Image
from serving import Player, hear, say, serving, until, watch
from test_client import frames_of, url

from pipeline.chunk import Session, SessionSpec
from stream import protocol, upload
from stream.api import FILE
from stream.client import Wish
from stream.client import watch as watch_with_client
from stream.upload import Fitter

YELLOW = (220, 210, 20)


def encoded(kind="JPEG", size=(300, 200), colour=YELLOW, **options):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind, **options)
    return data.getvalue()


def stored(data):
    file = tempfile.TemporaryFile()  # noqa: SIM115  the test closes it
    file.write(data)
    file.seek(0)
    return file


async def send(client, welcome, body, kind="image/jpeg"):
    headers = {"Authorization": f"Bearer {welcome['token']}", "Content-Type": kind}
    return await client.http.put(f"/api/sessions/{welcome['session']}/image", content=body, headers=headers)


def is_yellow(image):
    red, green, blue = image[8].mean(axis=0)
    return red > 150 and green > 150 and blue < 110


async def test_a_world_begins_with_the_picture_that_was_sent_and_without_it_again():
    player = Player()
    async with serving() as client, client.page(prompt="blue") as page:
        welcome = await hear(page, "welcome")
        assert welcome["image"] == "optional"
        await watch(client, player, welcome["token"])
        sent = await send(client, welcome, encoded())
        assert sent.status_code == 200, sent.text
        assert not is_yellow(player.frames[-1][1].to_ndarray(format="rgb24")), "until a restart all is as it was"
        await say(page, type="restart", seq=1, image=sent.json()["image"])
        await hear(page, "live")
        await until(lambda: is_yellow(player.frames[-1][1].to_ndarray(format="rgb24")))
        await say(page, type="restart", seq=2, seed=9)
        await hear(page, "live")
        await asyncio.sleep(0.5)
        assert is_yellow(player.frames[-1][1].to_ndarray(format="rgb24")), "what is not given stays"
        await say(page, type="restart", seq=3, image="none")
        await until(lambda: not is_yellow(player.frames[-1][1].to_ndarray(format="rgb24")))
    await player.connection.close()


async def test_a_picture_needs_no_words_where_the_world_knows_what_it_shows():
    async with serving(engine={"names_pictures": True}) as client, client.page(prompt="blue") as page:
        welcome = await hear(page, "welcome")
        assert welcome["names_pictures"]
        await say(page, type="restart", seq=1, prompt="")
        assert "a world without a picture needs a prompt" in (await hear(page, "error"))["message"]
        sent = await send(client, welcome, encoded())
        await say(page, type="restart", seq=2, prompt="", image=sent.json()["image"])
        assert (await hear(page, "live"))["prompt"] == ""
        await say(page, type="restart", seq=3)
        assert (await hear(page, "live"))["prompt"] == ""
        await say(page, type="restart", seq=4, image="none")
        assert "needs a prompt" in (await hear(page, "error"))["message"]
        kept = client.service.hub.find(welcome["token"]).session
        assert kept.image and kept.prompt == "", "a refused restart changes nothing"


async def test_a_world_that_does_not_know_pictures_asks_for_words():
    async with serving() as client, client.page(prompt="blue") as page:
        welcome = await hear(page, "welcome")
        assert not welcome["names_pictures"]
        sent = await send(client, welcome, encoded())
        await say(page, type="restart", seq=1, prompt="", image=sent.json()["image"])
        assert "does not know what a picture shows" in (await hear(page, "error"))["message"]


async def test_what_is_no_picture_is_said_to_be_none_and_the_world_goes_on(monkeypatch):
    monkeypatch.setattr("stream.viewer.PICTURES_AT_ONCE", 4)
    async with serving() as client, client.page() as page:
        welcome = await hear(page, "welcome")
        live = await hear(page, "live")
        refused = [
            await send(client, welcome, body, kind)
            for body, kind in (
                (b"", "image/png"),
                (encoded()[:300], "image/jpeg"),
                (b"%!PS-Adobe-3.0 EPSF-3.0", "image/png"),
                (encoded(), "text/plain"),
                (b" " * (protocol.MAX_PICTURE_BYTES + 1), "image/png"),
                (encoded(), "image/jpeg"),
            )
        ]
        assert [one.status_code for one in refused] == [400, 400, 400, 415, 413, 429]
        told = [one.json()["detail"] for one in refused]
        for words, text in zip(("empty", "damaged", "no picture", "image/jpeg", "at most", "wait"), told, strict=True):
            assert words in text
        other = {**welcome, "token": "x" * 32}
        assert (await send(client, other, encoded())).status_code == 404
        await say(page, type="restart", seq=1, image="0123456789abcdef")
        assert "PUT it" in (await hear(page, "error"))["message"]
        assert client.service.hub.find(welcome["token"]).session.run == 1, "nothing began again"
        await say(page, type="keys", seq=2, held=["w"])
        assert (await hear(page, "received"))["seq"] == 2 and live["slot"] == 0


async def test_a_picture_that_is_cut_short_by_a_broken_connection_is_no_error_of_ours(capsys):
    async with serving() as client, client.page() as page:
        welcome = await hear(page, "welcome")
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        head = f"PUT /api/sessions/{welcome['session']}/image HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        writer.write(f"{head}Authorization: Bearer {welcome['token']}\r\nContent-Length: 1000\r\n\r\nabc".encode())
        await until(lambda: client.service.hub.find(welcome["token"]).pictures._tokens < 3)
        writer.transport.abort()
        async with asyncio.timeout(15):
            while (await send(client, welcome, encoded())).status_code != 200:  # noqa: ASYNC110  only HTTP says so
                await asyncio.sleep(0.05)
    assert "Traceback" not in capsys.readouterr().err


async def test_a_world_that_takes_no_picture_says_so():
    async with serving(engine={"image": "none"}) as client, client.page() as page:
        answer = await send(client, await hear(page, "welcome"), encoded())
        assert answer.status_code == 409 and "takes no picture, only a prompt" in answer.json()["detail"]


async def test_a_world_that_needs_a_picture_waits_for_it_and_lets_others_pass():
    player = Player()
    async with serving(engine={"image": "required", "slots": 1}) as client, client.page() as page:
        assert "begins with a picture" in (await hear(page, "queued"))["reason"]
        assert (await client.post("/whep", await player.offer())).status_code == 409
        async with client.page() as other:
            welcome = await hear(other, "welcome")
            assert (await hear(other, "queued"))["place"] == 2
            sent = await send(client, welcome, encoded())
            await say(other, type="restart", seq=1, image=sent.json()["image"])
            assert (await hear(other, "live"))["slot"] == 0
            await say(other, type="restart", seq=2, image="none")
            assert "cannot begin without" in (await hear(other, "error"))["message"]
    await player.connection.close()


def session_file(folder, picture):
    """A session that began with a picture, as strangers may send it."""
    latents = np.zeros((3, 1, 1, 1, 1), np.float32)
    Session("fake", SessionSpec("a", "blue", 5, picture), 3, 12, (), latents[:0], latents).save(folder / "file")
    return (folder / "file").read_bytes()


async def test_the_picture_of_a_session_file_never_reaches_the_engine_as_it_came(tmp_path):
    async with serving() as client:
        for body, status, says in (
            (session_file(tmp_path, encoded()), 201, ""),
            (session_file(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0"), 400, "no picture"),
        ):
            answer = await client.http.post("/api/sessions/file", content=body, headers={"Content-Type": FILE})
            assert answer.status_code == status and says in answer.text, answer.text
            if status == 201:
                kept = client.service.hub.find(answer.json()["token"]).session.data.spec.image
                assert Image.open(io.BytesIO(kept)).size == (WIDTH, HEIGHT) and kept.startswith(b"\x89PNG")


async def test_a_picture_of_the_worlds_size_keeps_its_pixels():
    noise = Image.fromarray(np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    data = io.BytesIO()
    noise.save(data, "PNG")
    with stored(data.getvalue()) as file:
        made = await Fitter().fit(file, HEIGHT, WIDTH)
    assert np.array_equal(Image.open(io.BytesIO(made)), noise)


async def test_a_picture_is_cut_to_size_and_bears_nothing_but_itself():
    exif = Image.Exif()
    exif[0x010F] = "a secret camera"
    with stored(encoded(exif=exif)) as file:
        made = await Fitter().fit(file, HEIGHT, WIDTH)
    assert corner(made)[0] > 200 and b"secret" not in made and b"eXIf" not in made


async def test_a_decoder_that_breaks_or_hangs_costs_one_answer(monkeypatch):
    for seconds, program in ((20, "false"), (0.2, "yes")):
        monkeypatch.setattr(upload, "FIT_SECONDS", seconds)
        monkeypatch.setattr(upload.sys, "executable", program)
        with stored(encoded()) as file, pytest.raises(ValueError, match="broke the decoder or took too"):
            await Fitter().fit(file, HEIGHT, WIDTH)


async def test_a_picture_that_waits_too_long_for_others_is_told_to_come_again(monkeypatch):
    monkeypatch.setattr(upload, "PATIENCE_SECONDS", 0.05)
    busy = Fitter()
    async with busy._turn:
        with pytest.raises(upload.Busy, match="try again"):
            await busy.fit(io.BytesIO(), HEIGHT, WIDTH)


async def test_the_client_begins_with_a_picture_and_says_what_the_server_says_of_a_broken_one(tmp_path):
    said = []
    async with serving() as client:
        wish = Wish("blue", 6, seed=5, image=encoded("PNG"))
        assert await watch_with_client(url(client), wish, tmp_path / "out.mp4", said.append) == 6
        assert said == ["live, with the seed 5"]
        assert all(is_yellow(image) for _, image in frames_of(tmp_path / "out.mp4"))
        with pytest.raises(ValueError, match=r"^the image is no picture that can be read"):
            await watch_with_client(url(client), Wish("blue", 6, image=b"text"), tmp_path / "out.mp4")


async def test_the_client_begins_with_a_picture_alone_where_the_world_knows_what_it_shows(tmp_path):
    async with serving(engine={"names_pictures": True}) as client:
        wish = Wish("", 6, image=encoded("PNG"))
        assert await watch_with_client(url(client), wish, tmp_path / "out.mp4") == 6
    assert all(is_yellow(image) for _, image in frames_of(tmp_path / "out.mp4"))
    async with serving() as client:
        with pytest.raises(ValueError, match="does not know what a picture shows"):
            await watch_with_client(url(client), wish, tmp_path / "out.mp4")


def test_the_document_says_that_a_picture_is_sent_as_it_is():
    async def document():
        async with serving() as client:
            return (await client.http.get("/openapi.json")).json()

    put = asyncio.run(document())["paths"]["/api/sessions/{session}/image"]["put"]
    assert put["requestBody"]["content"]["image/*"] and put["security"] == [{"token": []}]
    assert "token" not in json.dumps(put["parameters"])
