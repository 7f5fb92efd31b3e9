"""A server's process from its socket to its end: listen, run, say what is ready, and end in order."""

import asyncio
import contextlib
import errno
import functools
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import uvicorn

from pipeline.chunk import World
from stream.doors import Impatient, ImpatientSocket
from stream.prompts import Prompts
from stream.protocol import MAX_MESSAGE_BYTES
from stream.server import Service, create_app
from stream.webrtc import Media

SHUTDOWN_SECONDS = 1
KEEP_ALIVE_SECONDS = 5
PING_SECONDS, PONG_SECONDS = 1.5, 3.5
"""A page that vanishes without a word is noticed within the sum of both."""
UNREAD_SECONDS = 10
"""A peer that takes nothing of what was sent for so long is gone. The kernel ends the connection: closing it would wait
for the peer."""
EXPECTED = ("Invalid UTF-8", "Invalid HTTP request", "timeout graceful shutdown exceeded")
"""What uvicorn calls an error or warns of and is none: broken text is answered with close code 1007, what is no request
with 400, and at the end we wait for no one who does not hang up. A stranger could fill the log with it."""


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on the address, had before the engine's start costs time. ValueError says what is wrong."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; it must be from 0 to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        _refuse_address(host)
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; what it accepts has it too
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREAD_SECONDS)
        if family == socket.AF_INET6:
            # `::` is all addresses, those of IPv4 too, whatever the system's default is.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            _explain(error, host, port)
        listener.setblocking(False)
        yield listener


def _explain(error: OSError, host: str, port: int) -> NoReturn:
    if error.errno == errno.EADDRINUSE:
        raise ValueError(f"port {port} is in use; choose another with --port, or end what uses it") from None
    if error.errno == errno.EACCES:
        raise ValueError(f"port {port} may not be opened by this user; choose one above 1023") from None
    _refuse_address(host)


def _refuse_address(host: str) -> NoReturn:
    raise ValueError(f"--host {host} is no address of this machine; try 127.0.0.1, or 0.0.0.0 or :: for all") from None


def serve(
    listener: socket.socket,
    factory: str,
    options: dict[str, Any],
    media: Media | None = None,
    tls: tuple[str, str] | None = None,
    log_prompts: bool = False,
    **settings: Any,
) -> int:
    """Serve on a bound socket until SIGINT or SIGTERM; the exit code. `factory` is the engine's and `options` are for
    it, `tls` names the certificate and its key, `settings` are more of the Service's.
    """
    prompts = Prompts(shown=log_prompts)
    prompts.guard_logs()
    _allow_many_files()
    media, address, failures = media or Media(), _address(listener, tls is not None), []
    stop = asyncio.Event()

    def fail(died: Any) -> None:
        failures.append(died)
        stop.set()

    def say_ready(ready: Any) -> None:
        _leave_alone_what_stays()
        _say_ready(address, ready.world, media)

    service = Service(factory, options, media=media, on_ready=say_ready, on_failure=fail, prompts=prompts, **settings)
    print(f"The world is being made ready; its page is {address}", flush=True)
    asyncio.run(_run(service, listener, stop, tls))
    if failures:
        print(f"chunkcast: {failures[0].reason}", file=sys.stderr)
        return 1 if failures[0].ours else 2
    return 0


def _allow_many_files() -> None:
    """As many open files as the system lets us have: a viewer needs a few sockets, and the default is often 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _leave_alone_what_stays() -> None:
    """Let Python's collector look at what comes and goes only: pictures wait while it looks at all that was imported,
    and because that takes long it comes seldom, which leaves what viewers had lying about."""
    gc.collect()
    gc.freeze()


def _address(listener: socket.socket, is_tls: bool) -> str:
    """The page's address as one would type it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::", "127.0.0.1"):
        shown = "localhost"
    return f"{'https' if is_tls else 'http'}://{shown}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are ours, so that the first one ends all in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def configuration(service: Service, tls: tuple[str, str] | None = None) -> uvicorn.Config:
    """How uvicorn serves a service; its access log, which would show what stands in addresses, is off."""
    config = uvicorn.Config(
        create_app(service),
        ws=ImpatientSocket,
        ws_max_size=MAX_MESSAGE_BYTES * 4,
        http=functools.partial(Impatient, doors=service.doors),  # type: ignore[arg-type]
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_config=None,  # its words go where all others go
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        ssl_certfile=tls and tls[0],
        ssl_keyfile=tls and tls[1],
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)  # after uvicorn has set up its logging; once is enough
    return config


def _is_news(record: logging.LogRecord) -> bool:
    was_cut_off = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not was_cut_off and not any(map(record.getMessage().count, EXPECTED))


async def _run(
    service: Service, listener: socket.socket, stop: asyncio.Event, tls: tuple[str, str] | None = None
) -> None:
    """uvicorn on our socket, ended by `stop` or by a signal."""
    server = _Server(configuration(service, tls))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.ensure_future(server.serve([listener]))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    await service.drain()
    server.should_exit = True
    stopping.cancel()
    await serving


def _say_ready(address: str, world: World, media: Media) -> None:
    slots = f"{world.slots} viewer{'s' if world.slots > 1 else ''} at once"
    print(
        f"Ready: {address}  ({world.preset}, {world.width}x{world.height}, {world.fps} frames/s, {slots})", flush=True
    )
    low, high = media.min_bitrate // 1000, media.max_bitrate // 1000
    delay = "{}-{} ms".format(*media.playout_delay) if media.playout_delay else "off"
    print(f"Picture: {media.codec} preferred, {low} to {high} kbit/s, playout delay {delay}", flush=True)
    if world.limit:
        print(world.limit, flush=True)
