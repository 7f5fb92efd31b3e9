"""Sessions over HTTP: create, read, delete, and their files. /openapi.json describes it; tokens travel in a header.

A session that is made here is watched by /ws (a `hello` with its token) or by WHEP (`/whep?session=TOKEN`). Until then
it waits for its viewer as one whose connection broke, for 10 s. In line a GET renews them, so that who asks keeps the
place; the slot that follows is held by a picture or a connection alone.
"""

import asyncio
import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import ValidationError, field_validator

from pipeline.chunk import Session as Data
from pipeline.chunk import World, check_prompt
from stream import body, protocol
from stream.archive import Archive
from stream.catalogue import Catalogue
from stream.doors import BODY_SECONDS, UPLOAD_SECONDS, Doors, NoAccess, bearer
from stream.hub import Hub
from stream.session import Session, State
from stream.upload import Busy, Fitter, name_of
from stream.viewer import FILES_A_SECOND, PICTURES_A_SECOND, Viewer
from stream.worker import first_frame

MAX_BODY_BYTES = 16 * 1024
MAX_FILE_BYTES = 96 * 2**20
MAX_UPLOADS = 2
"""So many session files are received at a time, each on the disk until it is loaded."""
MAX_CHUNKS = 200_000
"""More a session that is put here must not have had: to know what its prompts did, they are counted through."""
FILE_SECONDS = 20.0
UPLOAD_RETRY_SECONDS = 10
JSON, FILE, IMAGE = "application/json", "application/octet-stream", "image/*"
UNKNOWN = "there is no such session: it has ended, or the token is not the one that it was made with"


class Create(protocol.Message):
    """What to see; without a seed the server draws one. `preset`, if given, must be the one that is served."""

    prompt: protocol.Text
    seed: protocol.Seed | None = None
    preset: str | None = None

    @field_validator("prompt")
    @classmethod
    def _prompt_can_be_shown(cls, value: str) -> str:
        check_prompt(value)
        return value


class Described(protocol.Message):
    """A session: `state` is queued, live or parked; `place` in line counts from 1; `chunks` were made of its world."""

    session: str
    state: str
    prompt: str
    seed: int
    chunks: int
    slot: int | None = None
    place: int | None = None
    waiting: int | None = None
    wait_seconds: int | None = None


class Created(Described):
    """A session that was just made, with the secret that lets its viewer in."""

    token: str


class Picture(protocol.Message):
    """A picture that was taken; `image` is its name in the message `restart` of /ws, which begins with it."""

    image: str


class Preset(protocol.Message):
    """A model: sizes in pixels, rates in frames a second.

    `image` says whether its worlds begin with a picture: "none", "optional" or "required"; `camera` whether keys move
    them. One is `served`, with so many `slots`; `can_serve` says whether a server on this machine could serve it, and
    `why` not. `memory_bytes` is what one live session takes of a GPU.
    """

    name: str
    summary: str
    width: int
    height: int
    fps: int
    chunk_frames: int
    image: str
    camera: bool
    served: bool
    can_serve: bool
    slots: int | None = None
    why: str | None = None
    memory_bytes: int | None = None


class Problem(protocol.Message):
    """Why not, in a sentence that says what would be right."""

    detail: str


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (400, 401, 404, 408, 409, 413, 415, 429, 503)
}


def routes(hub: Hub, archive: Archive, doors: Doors, catalogue: Catalogue) -> APIRouter:
    """The routes under /api."""
    router, api = APIRouter(prefix="/api", responses=_PROBLEMS), _Api(hub, archive, doors, catalogue)
    add = router.add_api_route
    one, file, image = "/sessions/{session}", "/sessions/{session}/file", "/sessions/{session}/image"
    created = {"status_code": 201, "response_model": Created}
    add("/presets", api.presets, methods=["GET"], response_model=list[Preset])
    add("/sessions", api.create, methods=["POST"], openapi_extra=_body_of(JSON, Create.model_json_schema()), **created)
    add("/sessions/file", api.upload, methods=["POST"], openapi_extra=_body_of(FILE, _BINARY), **created)
    add(one, api.read, methods=["GET"], response_model=Described, openapi_extra=_SECURED)
    add(one, api.delete, methods=["DELETE"], status_code=204, openapi_extra=_SECURED)
    add(file, api.download, methods=["GET"], response_class=Response, openapi_extra=_SECURED)
    add(
        image,
        api.take_picture,
        methods=["PUT"],
        response_model=Picture,
        openapi_extra=_SECURED | _body_of(IMAGE, _BINARY),
    )
    return router


SECURITY = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "The session's own; to make one, the server's, if any.",
    }
}
_SECURED = {"security": [{"token": []}]}
_BINARY = {"type": "string", "format": "binary"}


def _body_of(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


class _Api:
    """What the requests do. A refusal is an HTTPException with a sentence."""

    def __init__(self, hub: Hub, archive: Archive, doors: Doors, catalogue: Catalogue) -> None:
        self._hub, self._archive, self._doors, self._catalogue = hub, archive, doors, catalogue
        self._fitter, self._sending, self._uploads = Fitter(), set[str](), 0
        self._loading = asyncio.Lock()  # one file at a time is in memory

    async def presets(self) -> list[Preset]:
        """All presets that there are, the one that is served here first. The first answer takes some seconds."""
        world = self._world()
        try:
            known = {one["name"]: one for one in await self._catalogue.read()}
        except OSError as error:
            raise HTTPException(503, str(error), {"Retry-After": "60"}) from None
        served = known.pop(world.preset, {"summary": ""}) | _described(world)
        return [Preset(**served), *(Preset(**one, served=False) for one in known.values())]

    async def create(self, request: Request, response: Response) -> Created:
        """Make a session; it is live at once or in line."""
        self._check_access(request)
        _check_type(request, JSON)
        wish = _parsed(await body.read(request, BODY_SECONDS, MAX_BODY_BYTES))
        if wish.preset not in (None, self._world().preset):
            raise HTTPException(400, f"the preset {wish.preset[:40]!r} is not served; {self._world().preset!r} is")
        return self._created(response, lambda: self._hub.begin(wish.prompt, wish.seed))

    async def upload(self, request: Request, response: Response) -> Created:
        """Go on with a session from its file, as a session of its own."""
        self._check_access(request)
        _check_type(request, FILE)
        world = self._world()
        with _when_full():
            self._hub.check_line()
        with self._one_upload(), tempfile.NamedTemporaryFile(prefix="chunkcast-", suffix=".session") as file:
            await body.receive(request, file.write, UPLOAD_SECONDS, MAX_FILE_BYTES)
            file.flush()
            async with self._loading:
                data = await asyncio.to_thread(_load, Path(file.name), world)
            data = await self._with_fitted_picture(data, world)
        return self._created(response, lambda: self._hub.resume_copy(data))

    async def read(self, session: str, request: Request) -> Described:
        """What a session is now. Who asks in line counts as there."""
        found = await self._find(session, request)
        if isinstance(found, Viewer):
            self._hub.poll(found)
        return self._describe(found)

    async def delete(self, session: str, request: Request) -> None:
        """End a session for good; nothing of it is kept."""
        found = await self._find(session, request)
        if isinstance(found, Viewer):
            self._hub.leave(found)
        else:
            self._archive.remove(found.token)

    async def download(self, session: str, request: Request) -> Response:
        """The file of a session: what `POST /api/sessions/file` goes on with."""
        found = await self._find(session, request)
        if isinstance(found, Viewer) and not found.files.take():
            reason = f"a file every {1 / FILES_A_SECOND:.0f} seconds is given: wait a moment"
            raise HTTPException(429, reason, {"Retry-After": str(round(1 / FILES_A_SECOND))})
        data = await self._fetch(found) if isinstance(found, Viewer) else found.data
        if data is None:
            raise HTTPException(409, "the world has not begun: there is nothing to keep yet")
        name = f'attachment; filename="{session}.session"'
        return Response(await asyncio.to_thread(_bytes, data), headers={"Content-Disposition": name}, media_type=FILE)

    async def take_picture(self, session: str, request: Request) -> Picture:
        """Send a picture for the session's world to begin with; until a `restart` says so, all stays as it is."""
        viewer = await self._find(session, request)
        if not isinstance(viewer, Viewer):
            raise HTTPException(409, "the session is parked: come back to it first")
        _check_is_image(request)
        world = self._world()
        if world.image == "none":
            raise HTTPException(409, f"the preset {world.preset} takes no picture, only a prompt")
        with self._one_picture(viewer), tempfile.TemporaryFile(prefix="chunkcast-") as file:
            await body.receive(request, file.write, UPLOAD_SECONDS, protocol.MAX_PICTURE_BYTES)
            viewer.picture = await self._fitted(file, world)
        return Picture(image=name_of(viewer.picture))

    # Inside.

    @contextlib.contextmanager
    def _one_picture(self, viewer: Viewer) -> Iterator[None]:
        """A viewer sends one picture at a time, and few: each costs the disk and a process."""
        if viewer.session.token in self._sending or not viewer.pictures.take():
            reason = f"a picture every {1 / PICTURES_A_SECOND:.0f} seconds is taken, one at a time: wait a moment"
            raise HTTPException(429, reason, {"Retry-After": str(round(1 / PICTURES_A_SECOND))})
        self._sending.add(viewer.session.token)
        try:
            yield
        finally:
            self._sending.discard(viewer.session.token)

    @contextlib.contextmanager
    def _one_upload(self) -> Iterator[None]:
        """Few session files come at a time: each may take MAX_FILE_BYTES of the disk."""
        if self._uploads >= MAX_UPLOADS:
            self._hub.metrics.refuse("upload")
            reason = f"{MAX_UPLOADS} session files are being received, and no more are taken at a time: wait a moment"
            raise HTTPException(429, reason, {"Retry-After": str(UPLOAD_RETRY_SECONDS)})
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def _with_fitted_picture(self, data: Data, world: World) -> Data:
        """The engine decodes what a session begins with, so a stranger's picture is made anew before it gets there. One
        of the world's size keeps its pixels, and the session its bits."""
        if data.spec.image is None:
            return data
        with tempfile.TemporaryFile(prefix="chunkcast-") as file:
            await asyncio.to_thread(file.write, data.spec.image)
            picture = await self._fitted(file, world)
        return dataclasses.replace(data, spec=dataclasses.replace(data.spec, image=picture))

    async def _fitted(self, file: IO[bytes], world: World) -> bytes:
        """The picture that was written to a file as one of the world's size, decoded in a process of its own."""
        file.seek(0)
        try:
            return await self._fitter.fit(file, world.height, world.width)
        except ValueError as error:
            self._hub.metrics.refuse("picture")
            raise HTTPException(400, str(error)) from None
        except Busy as error:
            self._hub.metrics.refuse("picture")
            raise HTTPException(503, str(error), {"Retry-After": "10"}) from None

    def _check_access(self, request: Request) -> None:
        """Who makes a session needs the server's token, where it has one; from then on the session's own."""
        try:
            self._doors.check_token(bearer(request.headers.get("authorization")))
        except NoAccess as error:
            self._hub.metrics.refuse("token")
            raise HTTPException(401, str(error), {"WWW-Authenticate": "Bearer"}) from None

    def _world(self) -> World:
        if self._hub.world is None:
            raise HTTPException(503, "the world is being made ready: try again in a moment", {"Retry-After": "5"})
        return self._hub.world

    def _created(self, response: Response, make: Callable[[], Viewer]) -> Created:
        with _when_full():
            viewer = make()
        response.headers["Location"] = f"/api/sessions/{viewer.session.name}"
        return Created(token=viewer.session.token, **self._describe(viewer).model_dump())

    async def _find(self, name: str, request: Request) -> Viewer | Session:
        """The viewer here, or the session that is parked on disk, that name and token belong to."""
        token = _token(request)
        data = None if self._hub.find(token) else await asyncio.to_thread(self._archive.get, token)
        if viewer := self._hub.find(token):  # looked for again: the disk took its time
            found: Viewer | Session = viewer
        elif data is not None:
            found = Session.parked(token, data)
        else:
            raise HTTPException(404, UNKNOWN)
        if (found.session if isinstance(found, Viewer) else found).name != name:
            raise HTTPException(404, UNKNOWN)
        return found

    def _describe(self, found: Viewer | Session) -> Described:
        session = found.session if isinstance(found, Viewer) else found
        chunks = found.made if isinstance(found, Viewer) else (session.data.chunk if session.data else 0)
        common = {"session": session.name, "state": session.state.value, "prompt": session.prompt}
        line = self._hub.describe_place(found) if isinstance(found, Viewer) and session.state is State.QUEUED else {}
        return Described(**common, seed=session.seed, chunks=chunks, slot=session.slot, **line)

    async def _fetch(self, viewer: Viewer) -> Data | None:
        """What a session here is now; from the engine, where it is live."""
        got: asyncio.Future[Data | None] = asyncio.get_running_loop().create_future()
        self._hub.fetch(viewer, lambda data: got.done() or got.set_result(data))
        try:
            return await asyncio.wait_for(got, FILE_SECONDS)
        except TimeoutError:
            raise HTTPException(503, "the engine is busy: try again in a moment", {"Retry-After": "5"}) from None


@contextlib.contextmanager
def _when_full() -> Iterator[None]:
    """What the hub says when it takes no one more becomes an answer."""
    try:
        yield
    except ValueError as error:
        raise HTTPException(503, str(error), {"Retry-After": "5"}) from None


def _described(world: World) -> dict[str, Any]:
    """A world that is served, as a Preset."""
    names = ("width", "height", "fps", "chunk_frames", "image", "camera", "slots")
    facts = {name: getattr(world, name) for name in names}
    return {"name": world.preset, "served": True, "can_serve": True, "why": None, **facts}


def _token(request: Request) -> str:
    token = bearer(request.headers.get("authorization"))
    if token is None:
        reason = "this needs the header `Authorization: Bearer TOKEN`, with the token of the session"
        raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})
    return token


def _check_type(request: Request, wanted: str) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != wanted:
        raise HTTPException(415, f"the body's Content-Type is {given[:80]!r}; it must be {wanted}")


def _check_is_image(request: Request) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not given.startswith("image/"):
        reason = f"the body's Content-Type is {given[:80]!r}; it must be that of a picture, such as image/jpeg"
        raise HTTPException(415, reason)


def _parsed(sent: bytes) -> Create:
    try:
        return Create.model_validate_json(sent)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        if fault["type"] == "value_error":
            reason = str(fault["ctx"]["error"])
        else:
            reason = f"{'.'.join(map(str, fault['loc']))[:40] or 'the body'} is wrong ({fault['msg'].lower()[:120]})"
        example = '{"prompt": "a snowy forest at night", "seed": 7}'
        raise HTTPException(400, f"{reason}; a body looks like {example}") from None


def _load(path: Path, world: World) -> Data:
    """A session file that this world can go on with."""
    try:
        data = Data.load(path)
    except ValueError as error:
        raise HTTPException(400, str(error).replace(str(path), "the body")) from None
    if data.preset != world.preset:
        raise HTTPException(400, f"the session is of the preset {data.preset[:40]!r}; {world.preset!r} is served here")
    if data.spec.image is not None and world.image == "none":
        raise HTTPException(400, f"the session begins with a picture; {world.preset!r} takes none, only a prompt")
    if data.chunk > MAX_CHUNKS:
        raise HTTPException(400, f"the session had {data.chunk} chunks; at most {MAX_CHUNKS} are taken")
    if len(data.latents) < min(data.chunk, world.resume_chunks):
        wanted = min(data.chunk, world.resume_chunks)
        raise HTTPException(400, f"the file holds {len(data.latents)} chunks; to go on from it takes {wanted}")
    return dataclasses.replace(data, frame=first_frame(world, data.chunk))


def _bytes(data: Data) -> bytes:
    with tempfile.TemporaryDirectory(prefix="chunkcast-") as folder:
        path = Path(folder) / "session"
        data.save(path)
        return path.read_bytes()
