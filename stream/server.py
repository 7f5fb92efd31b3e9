"""The ASGI app: the page, /ws for prompt and keys, /whep for the picture, and what machines ask for.

Sockets end here: what they mean is the hub's, how the picture travels is webrtc's.
"""

import asyncio
import contextlib
import importlib.resources
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse

from pipeline.chunk import check_prompt
from stream import protocol, worker
from stream.hub import Hub, Viewer
from stream.pacer import Paced, Pacer
from stream.session import Bucket, State
from stream.webrtc import CODECS, MAX_OFFER_BYTES, Peer, check_offer

log = logging.getLogger(__name__)

HELLO_SECONDS = 10.0
MESSAGES_A_SECOND, MESSAGES_AT_ONCE = 60, 120
FLOOD = 600
"""So many messages in a row above the rate end the connection."""

TICK_SECONDS = 0.25
WHEP_PROMPT = "a meadow in the morning"
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
_CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Location"}
_PREFLIGHT = {
    **_CORS,
    "Access-Control-Allow-Methods": "POST, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, Authorization, If-Match",
    "Access-Control-Max-Age": "86400",
}


@dataclass(frozen=True)
class _Feed:
    """A viewer of the hub as a peer sees it."""

    hub: Hub
    viewer: Viewer

    @property
    def pacer(self) -> Pacer:
        assert self.viewer.pacer is not None, "a viewer without a world has no picture"
        return self.viewer.pacer

    def took(self, paced: Paced) -> None:
        self.hub.took(self.viewer, paced)

    def sent(self, paced: Paced, rtp: int | None) -> None:
        self.hub.sent(self.viewer, paced, rtp)


class Service:
    """The engine's process, the hub and the peers of one server, for as long as it runs.

    `factory` and `options` are the worker's. `on_ready` and `on_failure` are called on the event loop when
    the engine is ready for the first time and when it will never be.
    """

    def __init__(
        self,
        factory: str,
        options: Mapping[str, Any],
        lead: float = 1.0,
        codec: str = CODECS[0],
        ice_servers: tuple[protocol.IceServer, ...] = (),
        on_ready: Callable[[worker.Ready], None] = lambda ready: None,
        on_failure: Callable[[worker.Died], None] = lambda died: None,
    ) -> None:
        self._engine = worker.Worker(factory, options, self._from_thread)
        self.hub = Hub(self._engine, lead, ice_servers=ice_servers)
        self._codec, self._on_ready, self._on_failure = codec, on_ready, on_failure
        self._peers: dict[str, tuple[Peer, Viewer]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ready = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the engine and the clock; at the end leave no peer, no process and no task."""
        self._loop = asyncio.get_running_loop()
        self._engine.start()
        ticking = [self._keep(self._tick()), self._keep(self._watch_peers())]
        try:
            yield
        finally:
            for task in ticking:
                task.cancel()
            self.hub.close("The server is closing.")
            # aioice must see its transports close while the loop still runs.
            await asyncio.gather(*(peer.close() for peer, _ in list(self._peers.values())), return_exceptions=True)
            await asyncio.to_thread(self._engine.stop)
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def offer(self, sdp: str, viewer: Viewer, ends_viewer: bool) -> tuple[str, str]:
        """A new peer, in place of an earlier one, for a checked offer: its id and the answer. ValueError as Peer's."""
        assert self.hub.world is not None, "a live viewer has a world"
        feed, fps = _Feed(self.hub, viewer), self.hub.world.fps
        peer = Peer(feed, fps, self.hub.ice_servers, lambda: self._gone(peer.id), ends_viewer)
        answer = await peer.answer(sdp, self._codec)
        earlier = [other for other, watcher in self._peers.values() if watcher is viewer]
        self._peers[peer.id] = (peer, viewer)
        viewer.ended = lambda: self._close_peers(viewer)
        for other in earlier:
            self._keep(other.close())
        if viewer.session.state is State.GONE:
            self._close_peers(viewer)
        return peer.id, answer

    def peer(self, peer_id: str) -> Peer | None:
        """The peer of this id, None when it is gone."""
        return self._peers.get(peer_id, (None, None))[0]

    def _gone(self, peer_id: str) -> None:
        peer, viewer = self._peers.pop(peer_id, (None, None))
        if peer and viewer and peer.ends_viewer:
            self.hub.leave(viewer)

    def _close_peers(self, viewer: Viewer) -> None:
        for peer, watcher in list(self._peers.values()):
            if watcher is viewer:
                self._keep(peer.close())

    def _from_thread(self, event: worker.Event) -> None:
        assert self._loop is not None, "the engine starts with the loop"
        with contextlib.suppress(RuntimeError):  # the loop has closed: no one is left to tell
            self._loop.call_soon_threadsafe(self._happen, event)

    def _happen(self, event: worker.Event) -> None:
        self.hub.happen(event)
        if isinstance(event, worker.Ready) and not self.ready:
            self._on_ready(event)
        if isinstance(event, worker.Ready | worker.Died):
            self.ready = isinstance(event, worker.Ready)
        if isinstance(event, worker.Died) and not event.again:
            self._on_failure(event)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.hub.tick()

    async def _watch_peers(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for peer, _ in list(self._peers.values()):
                if await peer.is_lost():
                    self._keep(peer.close())

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

    def __init__(self, socket: WebSocket, hub: Hub) -> None:
        self._socket, self._hub = socket, hub
        self._bucket = Bucket(MESSAGES_A_SECOND, MESSAGES_AT_ONCE)
        # A page that reads nothing for so long is gone; its connection ends.
        self._outgoing: asyncio.Queue[protocol.FromServer] = asyncio.Queue(256)
        self._viewer: Viewer | None = None
        self._full = asyncio.Event()

    async def run(self) -> None:
        """Until either side ends it; the slot is free then."""
        await self._socket.accept()
        tasks = [asyncio.ensure_future(work) for work in (self._listen(), self._speak(), self._full.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._viewer:
                self._hub.leave(self._viewer)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._flush()

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
                if isinstance(message, protocol.Ended):
                    return

    async def _flush(self) -> None:
        """Last words, if someone still hears them."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while not self._outgoing.empty() and not self._full.is_set():
                await self._socket.send_text(self._outgoing.get_nowait().model_dump_json())
            await self._socket.close()

    async def _listen(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, TimeoutError):
            while self._bucket.refused < FLOOD:
                waits = HELLO_SECONDS if self._viewer is None else None
                text = await asyncio.wait_for(self._receive(), waits)
                if not self._take(text):
                    return
        if self._viewer is None:
            self._tell(protocol.Ended(reason=f"No hello came within {HELLO_SECONDS:.0f} seconds."))

    async def _receive(self) -> str | None:
        """The next text frame; None for one that is not text."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        return message.get("text")

    def _take(self, text: str | None) -> bool:
        """Do what a message says; False when the connection must end."""
        if not self._bucket.take():
            if self._bucket.refused == 1:
                self._refuse(f"too many messages: at most {MESSAGES_A_SECOND} a second are taken; this one was not")
            return True
        try:
            if text is None:
                raise protocol.ProtocolError("messages are text frames with JSON, this one was binary")
            return self._obey(protocol.parse(text))
        except protocol.WrongVersion as error:
            self._refuse(str(error))
            return False
        except protocol.ProtocolError as error:
            self._refuse(str(error), error.seq)
            return True

    def _obey(self, message: protocol.FromClient) -> bool:
        if self._viewer:
            self._hub.obey(self._viewer, message)
            return True
        if not isinstance(message, protocol.Hello):
            raise protocol.ProtocolError(f"say hello first: {protocol.Hello.example}", getattr(message, "seq", None))
        try:
            self._viewer = self._hub.enter(message.prompt, message.seed, self._tell)
        except ValueError as error:
            self._tell(protocol.Ended(reason=str(error)))
        return True

    def _refuse(self, reason: str, seq: int | None = None) -> None:
        self._hub.metrics.errors.inc()
        self._tell(protocol.Error(message=reason, seq=seq))


def create_app(service: Service) -> FastAPI:
    """The routes of a service; its engine runs while the app does."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="chunkcast", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_machines_routes(app, service)
    _add_whep_routes(app, service)

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await Connection(socket, service.hub).run()

    @app.get("/")
    async def page() -> Response:
        return _file("index.html")

    @app.get("/{name}")
    async def file(name: str) -> Response:
        return _file(name)

    return app


def _file(name: str) -> Response:
    kind = _KINDS.get(PurePath(name).suffix)
    file = importlib.resources.files("web") / name
    if kind is None or PurePath(name).name != name or not file.is_file():
        return PlainTextResponse("There is nothing here; the page is at /.\n", 404)
    return Response(file.read_bytes(), media_type=kind, headers=_PAGE_HEADERS)


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


def _add_whep_routes(app: FastAPI, service: Service) -> None:
    @app.post("/whep")
    async def whep(request: Request) -> Response:
        try:
            offer = check_offer(await _body(request))
            viewer, is_new = _viewer_for(service, request)
            return await _answer(service, offer, viewer, is_new)
        except _Refusal as refusal:
            return PlainTextResponse(f"{refusal}\n", refusal.status, {**_CORS, **refusal.headers})
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", 400, _CORS)

    @app.patch("/whep/{peer_id}")
    async def trickle(peer_id: str, request: Request) -> Response:
        peer = service.peer(peer_id)
        if peer is None:
            return PlainTextResponse("This picture has ended.\n", 404, _CORS)
        try:
            await peer.add_candidates(await _body(request))
        except Exception:  # aiortc raises what the broken line leads to
            return PlainTextResponse("the body must be lines like a=candidate:... of an SDP\n", 400, _CORS)
        return Response(status_code=204, headers=_CORS)

    @app.delete("/whep/{peer_id}")
    async def end(peer_id: str) -> Response:
        # Players close the connection first and then say so: gone already is as good.
        if peer := service.peer(peer_id):
            await peer.close()
        return Response(status_code=200, headers=_CORS)

    @app.options("/whep")
    @app.options("/whep/{peer_id}")
    async def preflight() -> Response:
        return Response(status_code=204, headers=_PREFLIGHT)


class _Refusal(Exception):
    """An HTTP answer that says no."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.headers = status, dict(headers or {})


async def _body(request: Request) -> str:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_OFFER_BYTES:
            raise _Refusal(413, f"the body is too long; at most {MAX_OFFER_BYTES} bytes are taken")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8 text: send an SDP offer") from None


def _viewer_for(service: Service, request: Request) -> tuple[Viewer, bool]:
    """The viewer that `?session=` names, or a new one for a player that only speaks WHEP."""
    token = request.query_params.get("session")
    if token is None:
        return _new_viewer(service, request), True
    viewer = service.hub.find(token)
    if viewer is None:
        raise _Refusal(404, "no such session: it has ended, or the token is not the one of welcome")
    if viewer.session.state is not State.LIVE:
        raise _Refusal(409, "this session waits in line: ask again after the message live", {"Retry-After": "2"})
    return viewer, False


def _new_viewer(service: Service, request: Request) -> Viewer:
    prompt, seed = request.query_params.get("prompt", WHEP_PROMPT), request.query_params.get("seed")
    check_prompt(prompt)
    if seed is not None and not (seed.isascii() and seed.isdigit() and int(seed[:17]) <= protocol.MAX_SEED):
        raise ValueError(f"the seed is {seed[:40]!r}; it must be a whole number from 0 to {protocol.MAX_SEED}")
    if not service.hub.has_room:
        reason = "the world is full" if service.ready else "the world is being made ready"
        raise _Refusal(503, f"{reason}: try again in a moment", {"Retry-After": "5"})
    return service.hub.enter(prompt, None if seed is None else int(seed), lambda message: None)


async def _answer(service: Service, offer: str, viewer: Viewer, is_new: bool) -> Response:
    try:
        peer_id, answer = await service.offer(offer, viewer, ends_viewer=is_new)
    except ValueError:
        if is_new:
            service.hub.leave(viewer)
        raise
    return Response(answer, 201, {**_CORS, "Location": f"/whep/{peer_id}"}, media_type="application/sdp")
