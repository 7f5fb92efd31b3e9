"""WHEP (draft-ietf-wish-whep): the picture by HTTP, for the page and for players that nobody here wrote.

POST an offer and get an answer, PATCH to trickle candidates, DELETE to leave. What the draft leaves open and
what its players do otherwise is decided here: If-Match is checked where it is sent, as no library sends it.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse

from pipeline.chunk import check_prompt
from stream import protocol
from stream.audience import UNKNOWN
from stream.body import read
from stream.doors import BODY_SECONDS, Doors, NoAccess, TooMany, bearer
from stream.hub import Hub
from stream.ice import NoFreePort
from stream.metrics import Metrics
from stream.session import State
from stream.viewer import Spectator, Viewer
from stream.webrtc import MAX_OFFER_BYTES, Fragment, Peer, RestartRefused, check_offer

SDP, FRAGMENT = "application/sdp", "application/trickle-ice-sdpfrag"
WHEP_PROMPT = "a meadow in the morning"
RETRY_SECONDS = 5
REMEMBERED = 1024
"""Sessions that are told from those that never were."""

_ENDPOINT, _SESSION = "/whep", "/whep/{peer_id}"
_METHODS = {_ENDPOINT: "POST, OPTIONS", _SESSION: "PATCH, DELETE, OPTIONS"}


class Host(Protocol):
    """The part of a Service that WHEP needs."""

    hub: Hub
    doors: Doors
    ready: bool

    async def offer(
        self, sdp: str, watcher: Viewer | Spectator, ends_viewer: bool, host: str | None
    ) -> tuple[Peer, str]: ...
    def peer(self, peer_id: str) -> Peer | None: ...


class Refusal(Exception):
    """An HTTP answer that says no."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.headers = status, dict(headers or {})


def add_routes(app: FastAPI, host: Host, allowed_origins: tuple[str, ...] = ()) -> None:
    """Put WHEP into an app. Pages of other origins may play where `allowed_origins` lists them, or has "*"."""
    sessions = _Sessions(host)

    def route(path: str, *methods: str) -> Callable[[Handler], None]:
        def add(handler: Handler) -> None:
            guarded = _guarded(handler, allowed_origins, _METHODS[path], host.hub.metrics)
            app.add_api_route(path, guarded, methods=list(methods))

        return add

    route(_ENDPOINT, "POST")(sessions.begin)
    route(_SESSION, "PATCH")(sessions.trickle)
    route(_SESSION, "DELETE")(sessions.end)
    route(_ENDPOINT, "OPTIONS")(_options)
    route(_SESSION, "OPTIONS")(_options)
    for path in (_ENDPOINT, _SESSION):
        route(path, "GET", "HEAD", "PUT")(_not_allowed)
    route(_ENDPOINT, "PATCH", "DELETE")(_not_allowed)
    route(_SESSION, "POST")(_not_allowed)


Handler = Callable[[Request], Awaitable[Response]]


_REFUSED = {401: "token", 429: "address", 503: "slots"}
"""What refusals count as in the metrics; all others as "request"."""


def _guarded(handler: Handler, allowed_origins: tuple[str, ...], methods: str, metrics: Metrics) -> Handler:
    """A handler whose refusals are answers, and whose answers other origins may read where they are allowed to."""

    async def handle(request: Request) -> Response:
        try:
            response = await handler(request)
        except Refusal as refusal:
            response = PlainTextResponse(f"{refusal}\n", refusal.status, refusal.headers)
        except NoAccess as error:
            response = PlainTextResponse(f"{error}\n", 401, {"WWW-Authenticate": "Bearer"})
        except TooMany as error:
            response = PlainTextResponse(f"{error}\n", 429, {"Retry-After": str(RETRY_SECONDS)})
        except NoFreePort as error:
            response = PlainTextResponse(f"{error}\n", 503, {"Retry-After": str(RETRY_SECONDS)})
        except ValueError as error:
            response = PlainTextResponse(f"{error}\n", 400)
        if response.status_code >= 400:
            metrics.refuse(_REFUSED.get(response.status_code, "request"))
        if response.status_code == 405 or request.method == "OPTIONS":
            response.headers["Allow"] = methods
        response.headers.update(_cors(request, allowed_origins, methods))
        return response

    return handle


def _cors(request: Request, allowed_origins: tuple[str, ...], methods: str) -> dict[str, str]:
    """The headers that let a page of another origin read the answer."""
    origin = request.headers.get("origin")
    if not allowed_origins or origin is None:
        return {}
    if origin not in allowed_origins and "*" not in allowed_origins:
        return {"Vary": "Origin"}
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "Location, ETag, Link, Retry-After, Accept-Post, Accept-Patch",
        "Vary": "Origin",
    }
    if request.method == "OPTIONS":
        headers |= {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": "Content-Type, Authorization, If-Match",
            "Access-Control-Max-Age": "86400",
        }
    return headers


async def _options(request: Request) -> Response:
    is_session = "peer_id" in request.path_params
    return Response(status_code=204, headers={"Accept-Patch": FRAGMENT} if is_session else {"Accept-Post": SDP})


async def _not_allowed(request: Request) -> Response:
    raise Refusal(405, "the picture is fetched by WHEP: POST an offer to /whep")


class _Sessions:
    """What WHEP's requests do."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._begun: OrderedDict[str, None] = OrderedDict()

    async def begin(self, request: Request) -> Response:
        """POST: a peer for an offer."""
        _check_type(request, SDP)
        offer = check_offer(await _body(request, "an SDP offer"))
        viewer, is_new = self._viewer_for(request)
        try:
            peer, answer = await self._host.offer(offer, viewer, is_new, request.client and request.client.host)
        except BaseException:  # whatever it is, the slot must be free again
            if is_new:
                self._host.hub.dismiss(viewer)
            raise
        self._remember(peer.id)
        headers = {"Location": f"{_ENDPOINT}/{peer.id}", "ETag": f'"{peer.etag}"', "Accept-Patch": FRAGMENT}
        response = Response(answer, 201, headers, media_type=SDP)
        for link in _links(self._host.hub.ice_servers):
            response.headers.append("Link", link)
        return response

    async def trickle(self, request: Request) -> Response:
        """PATCH: candidates that were found after the offer."""
        peer = self._host.peer(request.path_params["peer_id"])
        if peer is None:
            raise Refusal(404, "no such session: it has ended")
        _check_type(request, FRAGMENT)
        _check_match(request, peer.etag)
        fragment = Fragment.parse(await _body(request, "a fragment of SDP with candidates"))
        try:
            await peer.add_candidates(fragment)
        except RestartRefused as error:
            raise Refusal(422, str(error)) from None
        return Response(status_code=204, headers={"ETag": f'"{peer.etag}"'})

    async def end(self, request: Request) -> Response:
        """DELETE: the viewer leaves."""
        peer_id = request.path_params["peer_id"]
        peer = self._host.peer(peer_id)
        if peer:
            _check_match(request, peer.etag)
            await peer.close()
        elif peer_id not in self._begun:
            raise Refusal(404, "no such session")
        # Players close the connection first and then say so: gone already is as good.
        return Response(status_code=200)

    def _remember(self, peer_id: str) -> None:
        self._begun[peer_id] = None
        if len(self._begun) > REMEMBERED:
            self._begun.popitem(last=False)

    def _viewer_for(self, request: Request) -> tuple[Viewer | Spectator, bool]:
        """Whom `?session=` names, or a new viewer, or with `?watch=` spectator, for a player that only speaks WHEP.

        With an empty `?session=` its token comes as `Authorization: Bearer`; without it that is the server's own token,
        where it asks for one, or a player's own affair, such as what a proxy in front asks for.
        """
        token = request.query_params.get("session")
        if token == "":
            token = bearer(request.headers.get("authorization")) or ""
        if token is None and (watch_token := request.query_params.get("watch")) is not None:
            return self._new_spectator(watch_token), True
        if token is None:
            return self._new_viewer(request), True
        viewer = self._host.hub.find_watcher(token)
        if viewer is None:
            raise Refusal(404, "no such session: it has ended, or the token is not the one of welcome")
        if viewer.session.state is not State.LIVE:
            raise Refusal(409, "this session waits in line: ask again after the message live", {"Retry-After": "2"})
        return viewer, False

    def _new_spectator(self, watch_token: str) -> Spectator:
        try:
            spectator = self._host.hub.spectate(watch_token, lambda message: None)
        except ValueError as error:
            raise Refusal(404 if str(error) == UNKNOWN else 503, str(error), {"Retry-After": "5"}) from None
        if spectator.session.state is not State.LIVE:
            self._host.hub.dismiss(spectator)
            raise Refusal(409, "this session waits in line: ask again in a moment", {"Retry-After": "2"})
        return spectator

    def _new_viewer(self, request: Request) -> Viewer:
        hub = self._host.hub
        self._host.doors.check_token(bearer(request.headers.get("authorization")))
        prompt, seed = request.query_params.get("prompt", WHEP_PROMPT), _seed(request.query_params.get("seed"))
        check_prompt(prompt)
        if hub.world is not None and hub.world.image == "required":
            reason = "this world begins with a picture: send one for a session of /ws, and play that by its token"
            raise Refusal(409, reason)
        if not hub.has_room or hub.world is None:
            reason = "the world is full" if self._host.ready else "the world is being made ready"
            raise Refusal(503, f"{reason}: try again in a moment", {"Retry-After": str(RETRY_SECONDS)})
        preset = request.query_params.get("preset", hub.world.preset)
        if preset != hub.world.preset:
            raise ValueError(f"the preset {preset[:40]!r} is not served here; {hub.world.preset!r} is")
        return hub.enter(prompt, seed, lambda message: None)


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:17]) <= protocol.MAX_SEED):
        raise ValueError(f"the seed is {text[:40]!r}; it must be a whole number from 0 to {protocol.MAX_SEED}")
    return int(text[:17])


def _check_type(request: Request, wanted: str) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != wanted:
        header = "Accept-Post" if wanted == SDP else "Accept-Patch"
        reason = f"the body's Content-Type is {given[:80]!r}; it must be {wanted}"
        raise Refusal(415, reason, {header: wanted})


def _check_match(request: Request, etag: str) -> None:
    """If-Match names the ICE session that the request is meant for; without it the present one is meant."""
    given = request.headers.get("if-match")
    tags = {tag.strip() for tag in (given or "*").split(",")}
    if not tags & {"*", f'"{etag}"'}:
        raise Refusal(412, "If-Match does not name this session: it must be the ETag of the answer")


async def _body(request: Request, wanted: str) -> str:
    """The body as text; `wanted` says what it should be."""
    try:
        body = await read(request, BODY_SECONDS, MAX_OFFER_BYTES)
    except HTTPException as refused:  # is answered in JSON elsewhere
        raise Refusal(refused.status_code, refused.detail) from None
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the body is not UTF-8 text: send {wanted}") from None


def _links(servers: tuple[protocol.IceServer, ...]) -> list[str]:
    """Link headers that hand a player the STUN and TURN servers."""
    return [f'<{url}>; rel="ice-server"{_login(server)}' for server in servers for url in server.urls]


def _login(server: protocol.IceServer) -> str:
    if server.username is None or server.credential is None:
        return ""
    username, credential = (_quoted(text) for text in (server.username, server.credential))
    return f'; username={username}; credential={credential}; credential-type="password"'


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
