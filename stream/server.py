"""The ASGI app: the page, /ws for prompt and keys, /whep for the picture, and what machines ask for.

Sockets end here: what they mean is the hub's, how the picture travels is webrtc's.
"""

import asyncio
import contextlib
import gc
import importlib.resources
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse

from pipeline.chunk import Chunk
from stream import api, frames, protocol, whep, worker
from stream.archive import Archive
from stream.audience import SPECTATORS
from stream.catalogue import Catalogue
from stream.doors import Doors, NoAccess, TooMany, bearer, is_welcome
from stream.fairness import Fairness
from stream.frames import Frames
from stream.hub import Hub
from stream.metrics import resident_bytes
from stream.pacer import Mirror, Paced, Pacer
from stream.prompts import Prompts
from stream.schedule import LEAD_SECONDS
from stream.session import Bucket, State
from stream.tidy import trim
from stream.trace import Trace
from stream.viewer import Hear, Spectator, Viewer
from stream.webrtc import WATCH_SECONDS, Media, Peer

log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
MESSAGES_A_SECOND, MESSAGES_AT_ONCE = 60, 120
FLOOD = 600
"""So many messages above the rate, less those within it, end the connection."""
MAX_OUTGOING = 256
"""A page that leaves so many messages unread is gone; its connection ends."""
LEFT = (1000, 1001)
"""The close codes of who has left: 1001 is a browser's for a closed page. With any other the connection broke, and the
viewer may come back."""

FOREIGN = "Pages of this origin may not steer here; --allow-origin lists those that may.\n"
DRAIN_SECONDS = 2.0
"""So long the end of the server waits for the engine to say what the live sessions are."""
LAST_WORDS_SECONDS = 0.5
"""So long it then waits for pages to have read why their session ends."""
CLOSING = "The server is closing."
NOT_KEPT = "It keeps no worlds, so this one is over."
TICK_SECONDS, TIDY_SECONDS = 0.25, 5.0
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    # The page asks no other host for anything.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'",
}


@dataclass(frozen=True)
class _Feed:
    """A viewer of the hub as a peer sees it."""

    hub: Hub
    viewer: Viewer
    trace: Trace | None

    @property
    def pacer(self) -> Pacer:
        assert self.viewer.pacer is not None, "a viewer without a world has no picture"
        return self.viewer.pacer

    def took(self, paced: Paced) -> None:
        self.hub.took(self.viewer, paced)
        if self.trace:
            self.trace.took(paced)

    def sent(self, paced: Paced, rtp: int | None) -> None:
        self.hub.sent(self.viewer, paced, rtp)
        if self.trace:
            self.trace.sent(paced, rtp)


@dataclass(frozen=True)
class _Glimpse:
    """A spectator as a peer sees it: what is fetched moves no world on."""

    spectator: Spectator

    @property
    def pacer(self) -> Mirror:
        return self.spectator.pacer

    def took(self, paced: Paced) -> None: ...
    def sent(self, paced: Paced, rtp: int | None) -> None: ...


class Service:
    """The engine's process, the hub and the peers of one server, for as long as it runs.

    `factory` and `options` are the worker's, `media` says how pictures are sent, `allowed_origins` whose pages
    may play them besides our own, `doors` who may come in. `fairness`, `prompts` and `spectators` are the hub's.
    Parked sessions lie in the folder `sessions`; without one they are kept for as long as the server runs. `on_ready`
    and `on_failure` are called on the event loop when the engine is ready for the first time and when it will never be.
    `catalogue` knows the presets. With `marks` each frame carries one, and the `trace` is kept.
    """

    def __init__(
        self,
        factory: str,
        options: Mapping[str, Any],
        lead: float = LEAD_SECONDS,
        media: Media | None = None,
        allowed_origins: tuple[str, ...] = (),
        on_ready: Callable[[worker.Ready], None] = lambda ready: None,
        on_failure: Callable[[worker.Died], None] = lambda died: None,
        fairness: Fairness | None = None,
        sessions: Path | None = None,
        doors: Doors | None = None,
        prompts: Prompts | None = None,
        catalogue: Catalogue | None = None,
        spectators: int = SPECTATORS,
        marks: bool = False,
    ) -> None:
        self.trace = Trace() if marks else None
        self.catalogue = catalogue or Catalogue()
        self.doors = doors or Doors()
        self._engine = worker.Worker(factory, options, self._from_thread, lead=lead)
        self._media, self.allowed_origins = media or Media(), allowed_origins
        self._temporary = tempfile.TemporaryDirectory(prefix="chunkcast-") if sessions is None else None
        self.archive = Archive(Path(self._temporary.name) if self._temporary else sessions)
        servers = self._media.ice_servers
        self.hub = Hub(
            self._engine,
            lead,
            ice_servers=servers,
            archive=self.archive,
            fairness=fairness,
            prompts=prompts,
            spectators=spectators,
        )
        self._on_ready, self._on_failure = on_ready, on_failure
        self._peers: dict[str, tuple[Peer | Frames, Viewer | Spectator]] = {}
        self._counted: dict[str, str | None] = {}
        self._sent_bytes: dict[str, int] = {}
        self._measure_memory()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connections: dict[Connection, asyncio.Task[Any] | None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ready = self._untidy = False

    def _measure_memory(self) -> None:
        memory = self.hub.metrics.memory
        memory.labels("server").set_function(lambda: resident_bytes(os.getpid()))
        memory.labels("engine").set_function(lambda: resident_bytes(self._engine.pid))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the engine and the clock; at the end leave no peer, no process and no task."""
        self._loop = asyncio.get_running_loop()
        self._engine.start()
        rounds = ((TICK_SECONDS, self._tick), (WATCH_SECONDS, self._watch_peers), (TIDY_SECONDS, self._tidy))
        ticking = [self._keep(self._every(seconds, work)) for seconds, work in rounds]
        try:
            yield
        finally:
            for task in ticking:
                task.cancel()
            self._close_hub()
            # aioice must see its transports close while the loop still runs.
            await asyncio.gather(*(peer.close() for peer, _ in list(self._peers.values())), return_exceptions=True)
            await asyncio.to_thread(self._engine.stop)
            await asyncio.to_thread(self._close_archive)
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def drain(self) -> None:
        """No new viewers; those who are here are told, and what their sessions are now is kept, if it can be come back
        to on the next server."""
        self.ready = False
        if self._keeps:
            kept: asyncio.Queue[object] = asyncio.Queue()
            asked = self.hub.drain(CLOSING, kept.put_nowait)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    for _ in range(asked):
                        await kept.get()
        else:
            self.hub.drain(CLOSING, lambda data: None)
        self._close_hub()
        if last_words := [task for connection, task in self._connections.items() if task and connection.is_over]:
            await asyncio.wait(last_words, timeout=LAST_WORDS_SECONDS)

    @property
    def _keeps(self) -> bool:
        """True when the next server finds what is parked here."""
        return self._temporary is None

    def _close_hub(self) -> None:
        self.hub.close(CLOSING if self._keeps else f"{CLOSING} {NOT_KEPT}", self._keeps)

    def _close_archive(self) -> None:
        self.archive.close()
        if self._temporary:
            self._temporary.cleanup()

    async def talk(self, socket: WebSocket) -> None:
        """With a page, until either side ends it."""
        connection = Connection(socket, self)
        self._connections[connection] = asyncio.current_task()
        try:
            await connection.run()
        finally:
            del self._connections[connection]

    async def enter(self, hello: protocol.Hello, hear: Hear) -> Viewer:
        """The viewer of a hello: the one whose token it brings, here or parked, or a new one. Raises as Hub.enter."""
        token = hello.token
        if token is not None:
            data = None if self.hub.find(token) else await asyncio.to_thread(self.archive.get, token)
            if viewer := self.hub.find(token):  # looked for again: the disk took its time
                self.hub.return_(viewer, hear)
                return viewer
            if data is not None:
                return self.hub.resume(token, data, hear)
        return self.hub.enter(hello.prompt, hello.seed, hear)

    def _feed(self, watcher: Viewer | Spectator) -> _Feed | _Glimpse:
        return _Glimpse(watcher) if isinstance(watcher, Spectator) else _Feed(self.hub, watcher, self.trace)

    async def offer(
        self, sdp: str, watcher: Viewer | Spectator, ends_viewer: bool, host: str | None
    ) -> tuple[Peer, str]:
        """A new peer for a checked offer from the address `host`, in place of an earlier one, and the answer.

        Raises as Peer.answer; TooMany.
        """
        assert self.hub.world is not None, "a live viewer has a world"
        counted = self.doors.take(host)
        peer = Peer(self._feed(watcher), self.hub.world.fps, self._media, lambda: self._gone(peer.id), ends_viewer)
        try:
            answer = await peer.answer(sdp)
        except BaseException:  # whatever it is, the connection is none
            self.doors.give_back(counted)
            raise
        self._show(peer, watcher, counted)
        return peer, answer

    def _show(self, peer: Peer | Frames, watcher: Viewer | Spectator, counted: str | None) -> None:
        """From now on this is the watcher's picture; `counted` is what the doors get back when it ends."""
        earlier = [other for other, its_own in self._peers.values() if its_own is watcher]
        self._peers[peer.id] = (peer, watcher)
        self._counted[peer.id] = counted
        watcher.ended = lambda: self._close_peers(watcher)
        if isinstance(watcher, Viewer):
            self.hub.look(watcher)
        for other in earlier:
            self._keep(other.close())
        if watcher.is_over:
            self._close_peers(watcher)

    async def show_frames(self, socket: WebSocket) -> None:
        """A viewer's picture over a WebSocket, until it ends."""
        host = socket.client and socket.client.host
        if not is_welcome(socket.headers.get("origin"), socket.headers.get("host"), self.allowed_origins):
            self.hub.metrics.refuse("origin")
            await socket.send_denial_response(PlainTextResponse(FOREIGN, 403))
            return
        await socket.accept()
        try:
            counted = self.doors.take(host)
        except TooMany as error:
            self.hub.metrics.refuse("address")
            await frames.end(socket, str(error))
            return
        try:
            await frames.serve(socket, HELLO_SECONDS, lambda text: self._begin_frames(socket, text))
        finally:
            self.doors.give_back(counted)

    def _begin_frames(self, socket: WebSocket, text: str | None) -> tuple[Frames, tuple[int, int]]:
        """Raises ValueError with a sentence, for the viewer whose first message `text` is."""
        token, codec = frames.check_watch(text, self._media.codec)
        watcher, world = self.hub.find_watcher(token), self.hub.world
        if watcher is None or world is None:
            raise ValueError("there is no such session: it has ended, or the token is not the one of welcome")
        if watcher.session.state is not State.LIVE:
            raise ValueError("this session waits in line: ask again after the message live")
        made = Frames(self._feed(watcher), world.fps, self._media, codec, socket, lambda: self._gone(made.id))
        self._show(made, watcher, None)
        return made, (world.width, world.height)

    def peer(self, peer_id: str) -> Peer | None:
        """The WebRTC peer of this id, None when it is gone."""
        peer = self._peers.get(peer_id, (None, None))[0]
        return peer if isinstance(peer, Peer) else None

    def _gone(self, peer_id: str) -> None:
        self._untidy = True
        self._count_peers()
        peer, watcher = self._peers.pop(peer_id, (None, None))
        self._sent_bytes.pop(peer_id, None)
        self.doors.give_back(self._counted.pop(peer_id, None))
        if peer and watcher and peer.ends_viewer:
            self.hub.dismiss(watcher)
        elif isinstance(watcher, Viewer) and all(other is not watcher for _, other in self._peers.values()):
            self.hub.look_away(watcher)

    def _close_peers(self, watcher: Viewer | Spectator) -> None:
        for peer, its_own in list(self._peers.values()):
            if its_own is watcher:
                self._keep(peer.close())

    def _from_thread(self, event: worker.Event) -> None:
        assert self._loop is not None, "the engine starts with the loop"
        with contextlib.suppress(RuntimeError):  # the loop has closed: no one is left to tell
            self._loop.call_soon_threadsafe(self._happen, event)

    def _happen(self, event: worker.Event) -> None:
        if self.trace and isinstance(event, Chunk):
            self.trace.arrived(event)
        self.hub.happen(event)
        if isinstance(event, worker.Ready) and not self.ready:
            self._on_ready(event)
        if isinstance(event, worker.Ready | worker.Died):
            self.ready = isinstance(event, worker.Ready)
        if isinstance(event, worker.Died) and not event.again:
            self._on_failure(event)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """For ever. A mistake of ours in one round does not end the rounds."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:
                log.exception("one round of %s failed", work.__name__)

    async def _tick(self) -> None:
        self.hub.tick()

    async def _watch_peers(self) -> None:
        for peer, _ in self._peers.values():
            self._keep(self._close_if_lost(peer))
        self._count_peers()

    async def _close_if_lost(self, peer: Peer | Frames) -> None:
        if await peer.is_lost():
            await peer.close()

    def _count_peers(self) -> None:
        """Put what is sent to whom into the metrics."""
        metrics, peers = self.hub.metrics, [peer for peer, _ in self._peers.values()]
        metrics.peers.set(len(peers))
        metrics.bitrate.set(sum(peer.bitrate for peer in peers))
        metrics.delay.set(max((peer.playout_delay.most for peer in peers if peer.playout_delay), default=0) / 1000)
        for peer in peers:
            metrics.encoded.inc(peer.sent_bytes - self._sent_bytes.get(peer.id, 0))
            self._sent_bytes[peer.id] = peer.sent_bytes

    async def _tidy(self) -> None:
        """Give the memory of viewers who have left back to the system, which the C library would keep for others."""
        if self._untidy:
            self._untidy = False
            gc.collect()  # quick where what stays is left alone, as stream/serve.py does
            await asyncio.to_thread(trim)

    def _keep(self, coroutine: Any) -> asyncio.Task[Any]:
        """A task that is not forgotten before it is done, and whose failure is not silent."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a task of the server failed", exc_info=error)


class Connection:
    """One page's WebSocket: what it says goes to the hub, what the hub says goes out in order."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self._service, self._hub = socket, service, service.hub
        self._bucket = Bucket(MESSAGES_A_SECOND, MESSAGES_AT_ONCE)
        self._outgoing: asyncio.Queue[protocol.FromServer] = asyncio.Queue(MAX_OUTGOING)
        self._viewer: Viewer | Spectator | None = None
        self._full = asyncio.Event()
        self._left = False

    @property
    def is_over(self) -> bool:
        """True when its session has ended; it may have last words to say."""
        return self._viewer is not None and self._viewer.is_over

    async def run(self) -> None:
        """Until either side ends it. Who has left frees the slot; who was lost may come back."""
        headers = self._socket.headers
        if not is_welcome(headers.get("origin"), headers.get("host"), self._service.allowed_origins):
            self._hub.metrics.refuse("origin")
            await self._socket.send_denial_response(PlainTextResponse(FOREIGN, 403))
            return
        await self._socket.accept()
        try:
            counted = self._service.doors.take(self._socket.client and self._socket.client.host)
        except TooMany as error:
            self._hub.metrics.refuse("address")
            self._tell(protocol.Ended(reason=_sentence(error)))
            await self._flush()
            return
        try:
            await self._talk()
        finally:
            self._service.doors.give_back(counted)

    async def _talk(self) -> None:
        tasks = [asyncio.ensure_future(work) for work in (self._listen(), self._speak(), self._full.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._let_go()
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    log.error("a page's connection failed", exc_info=result)
            await self._flush()

    def _let_go(self) -> None:
        if self._viewer is None or self._viewer.hear != self._tell:
            return  # the viewer is on another connection
        if self._left or isinstance(self._viewer, Spectator):
            self._hub.dismiss(self._viewer)
        else:
            self._hub.lose(self._viewer, self._tell)

    def _tell(self, message: protocol.FromServer) -> None:
        try:
            self._outgoing.put_nowait(message)
        except asyncio.QueueFull:
            self._full.set()

    async def _speak(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # starlette's words for a closed socket
            while True:
                message = await self._outgoing.get()
                await self._socket.send_text(message.model_dump_json())
                if isinstance(message, protocol.Ended | protocol.Parked):
                    return

    async def _flush(self) -> None:
        """Last words, if someone still hears them."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while not self._outgoing.empty() and not self._full.is_set():
                await self._socket.send_text(self._outgoing.get_nowait().model_dump_json())
            await self._socket.close()

    async def _listen(self) -> None:
        try:
            while self._bucket.refused < FLOOD:
                waits = HELLO_SECONDS if self._viewer is None else None
                text = await asyncio.wait_for(self._receive(), waits)
                if not await self._take(text):
                    return
            self._left = True
        except WebSocketDisconnect as closed:
            self._left = closed.code in LEFT
        except TimeoutError:
            pass
        if self._viewer is None:
            self._tell(protocol.Ended(reason=f"No hello came within {HELLO_SECONDS:.0f} seconds."))

    async def _receive(self) -> str | None:
        """The next text frame; None for one that is not text."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        return message.get("text")

    async def _take(self, text: str | None) -> bool:
        """Do what a message says; False when the connection must end."""
        if not self._bucket.take():
            if self._bucket.refused == 1:
                self._hub.metrics.refuse("rate")
                self._refuse(f"too many messages: at most {MESSAGES_A_SECOND} a second are taken; this one was not")
            return True
        try:
            if text is None:
                raise protocol.ProtocolError("messages are text frames with JSON, this one was binary")
            return await self._obey(protocol.parse(text))
        except protocol.WrongVersion as error:
            self._refuse(str(error))
            return False
        except protocol.ProtocolError as error:
            self._refuse(str(error), error.seq)
            return True

    async def _obey(self, message: protocol.FromClient) -> bool:
        if isinstance(self._viewer, Spectator):
            return self._obey_spectator(message)
        if self._viewer:
            if self._viewer.is_over or self._viewer.hear != self._tell:
                return True  # said to a world that is over, kept, or on another connection by now
            if self._service.trace and isinstance(message, protocol.Keys | protocol.Prompt):
                self._service.trace.came(self._viewer.session.name, message.seq)
            self._hub.obey(self._viewer, message)
            return True
        if isinstance(message, protocol.Spectate):
            return self._spectate(message)
        if not isinstance(message, protocol.Hello):
            raise protocol.ProtocolError(f"say hello first: {protocol.Hello.example}", _seq(message))
        try:
            self._service.doors.check_token(message.access)
            self._viewer = await self._service.enter(message, self._tell)
        except NoAccess as error:
            self._hub.metrics.refuse("token")
            self._tell(protocol.Ended(reason=_sentence(error), needs_access=True))
        except ValueError as error:
            self._tell(protocol.Ended(reason=str(error)))
        return True

    def _spectate(self, message: protocol.Spectate) -> bool:
        try:
            self._viewer = self._hub.spectate(message.token, self._tell)
        except ValueError as error:
            self._tell(protocol.Ended(reason=str(error)))
        return True

    def _obey_spectator(self, message: protocol.FromClient) -> bool:
        if isinstance(message, protocol.Leave):
            return False
        raise protocol.ProtocolError("who watches steers nothing: say hello for a world of your own", _seq(message))

    def _refuse(self, reason: str, seq: int | None = None) -> None:
        self._hub.metrics.errors.inc()
        self._tell(protocol.Error(message=reason, seq=seq))


def _seq(message: protocol.FromClient) -> int | None:
    return getattr(message, "seq", None)


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."


def create_app(service: Service) -> FastAPI:
    """The routes of a service; its engine runs while the app does."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="chunkcast", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_machines_routes(app, service)
    if service.trace:
        _add_mark_routes(app, service.trace, service.doors)
    whep.add_routes(app, service, service.allowed_origins)
    router = api.routes(service.hub, service.archive, service.doors, service.catalogue)
    app.include_router(router)

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await service.talk(socket)

    @app.websocket("/frames")
    async def pictures(socket: WebSocket) -> None:
        await service.show_frames(socket)

    @app.get("/")
    async def page() -> Response:
        return _file("index.html")

    @app.get("/{name}")
    async def file(name: str) -> Response:
        return _file(name)

    app.openapi = lambda: _openapi(router)  # type: ignore[method-assign]  # FastAPI's own way to change the document
    return app


def _openapi(router: APIRouter) -> dict[str, Any]:
    """What /openapi.json says: the routes under /api. The others speak protocols of their own."""
    document = get_openapi(title="chunkcast", version=str(protocol.VERSION), routes=router.routes)
    document.setdefault("components", {})["securitySchemes"] = api.SECURITY
    return document


def _file(name: str) -> Response:
    kind = _KINDS.get(PurePath(name).suffix)
    file = importlib.resources.files("web") / name
    if kind is None or PurePath(name).name != name or not file.is_file():
        return PlainTextResponse("There is nothing here; the page is at /.\n", 404)
    return Response(file.read_bytes(), media_type=kind, headers=_PAGE_HEADERS)


def _add_mark_routes(app: FastAPI, trace: Trace, doors: Doors) -> None:
    """What is traced, for all who may see worlds here."""

    def check(request: Request) -> None:
        try:
            doors.check_token(bearer(request.headers.get("authorization")))
        except NoAccess as error:
            raise HTTPException(401, str(error), {"WWW-Authenticate": "Bearer"}) from None

    @app.get("/mark", dependencies=[Depends(check)])
    async def mark(since: int = 0) -> Response:
        return JSONResponse(trace.since(since))

    @app.get("/mark/{run}/{frame}", dependencies=[Depends(check)])
    async def picture(run: str, frame: int) -> Response:
        image = trace.picture(run, frame)
        if image is None:
            return PlainTextResponse("This frame is not kept.\n", 404)
        return Response(image.tobytes(), media_type="application/octet-stream")


def _add_machines_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> Response:
        if service.ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("The engine is not ready.\n", 503, {"Retry-After": "2"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.hub.metrics.text(), headers={"Content-Type": service.hub.metrics.content_type})
