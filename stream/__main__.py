"""The command line: chunkcast serve, generate, train, presets and doctor.

What a user can mend is said in one sentence on stderr, with exit code 2. Torch is imported only where a
subcommand needs it, and for `serve` only in the engine's own process.
"""

import argparse
import asyncio
import contextlib
import logging
import random
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pipeline.chunk import SessionSpec, check_keys
from pipeline.huggingface import check_place
from stream.webrtc import CODECS

ENGINE = "pipeline.engine:build"
SHUTDOWN_SECONDS = 1
DEFAULT_FRAMES = 96


class UserError(Exception):
    """What the user can mend, in a sentence."""


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; the exit code: 0, 1 for our failures, 2 for a user's mistake, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        return options.run(options)
    except (UserError, ValueError, FileNotFoundError) as error:
        print(f"chunkcast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chunkcast", description="Live generated worlds in a browser.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="show a live world to browsers"))
    _add_generate(commands.add_parser("generate", help="write a video file"))
    train = commands.add_parser("train", help="train the shipped world", add_help=False)
    train.add_argument("what", choices=["tiny"])
    train.add_argument("arguments", nargs=argparse.REMAINDER)
    train.set_defaults(run=_train)
    commands.add_parser("presets", help="list the models").set_defaults(run=_presets)
    _add_doctor(commands.add_parser("doctor", help="say what is there, what is missing and what fits"))
    return parser


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="tiny", help="the model; `chunkcast presets` lists them (default: tiny)")
    _add_weights_options(parser)
    parser.add_argument("--image", metavar="FILE", help="a picture to begin with, for presets that take one")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")


def _add_weights_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", metavar="PLACE", help="a folder, a file or org/name[@revision] on the hub; `random` for speed work"
    )
    parser.add_argument(
        "--parts", metavar="PLACE", help="where VAE, text encoder and tokenizer are, if not beside the transformer"
    )
    parser.add_argument("--lora", metavar="PLACE", help="a LoRA to merge into the transformer")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_engine_options(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 for all (default: local)"
    )
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--slots", type=int, default=2, help="viewers at once, if the machine carries them (default: 2)"
    )
    parser.add_argument(
        "--schedule", default="auto", choices=["auto", "turns", "batch", "parallel"], help="default: what is soonest"
    )
    parser.add_argument(
        "--lead",
        type=float,
        default=1.0,
        metavar="CHUNKS",
        help="how far the world is made ahead of the picture: more is smoother, less is quicker to steer (default: 1)",
    )
    parser.add_argument("--codec", default=CODECS[0], choices=CODECS, help=f"what to prefer (default: {CODECS[0]})")
    parser.add_argument("--ice-server", action="append", default=[], metavar="URL", help="a STUN or TURN server")
    parser.set_defaults(run=_serve)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_engine_options(parser)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--keys", default="", metavar="SCRIPT", help="keys by frames, such as w-48,wl-24,none-10")
    parser.add_argument("--frames", type=int, help=f"default: the length of --keys, or {DEFAULT_FRAMES}")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.set_defaults(run=_generate)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="also say whether this model fits (`chunkcast presets` lists them)")
    _add_weights_options(parser)
    parser.set_defaults(run=_doctor)


# serve


def _serve(options: argparse.Namespace) -> int:
    _check_serve(options)
    with _listening(options.host, options.port) as listener:
        return serve(listener, ENGINE, engine_options(options), options.lead, options.codec, tuple(options.ice_server))


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the engine's factory is called with."""
    names = ("preset", "weights", "parts", "lora", "device", "slots", "schedule", "image")
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return {name: value for name, value in given.items() if value is not None}


def serve(
    listener: socket.socket,
    factory: str,
    options: dict[str, Any],
    lead: float = 1.0,
    codec: str = CODECS[0],
    ice_servers: tuple[str, ...] = (),
) -> int:
    """Serve on a bound socket until SIGINT or SIGTERM; the exit code."""
    from stream.protocol import IceServer
    from stream.server import Service

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    host, port = listener.getsockname()[:2]
    address = f"http://{_shown_host(host)}:{port}"
    failures: list[Any] = []
    stop = asyncio.Event()

    def fail(died: Any) -> None:
        failures.append(died)
        stop.set()

    service = Service(
        factory,
        options,
        lead,
        codec,
        tuple(IceServer(urls=(url,)) for url in ice_servers),
        on_ready=lambda ready: _say_ready(address, ready.world),
        on_failure=fail,
    )
    print(f"The world is being made ready; its page is {address}", flush=True)
    asyncio.run(_run_server(service, listener, stop))
    if failures:
        print(f"chunkcast: {failures[0].reason}", file=sys.stderr)
        return 1 if failures[0].ours else 2
    return 0


async def _run_server(service: Any, listener: socket.socket, stop: asyncio.Event) -> None:
    """uvicorn on our socket, ended by `stop`; signals are ours, so that the first one ends all in order."""
    import uvicorn

    from stream.protocol import MAX_MESSAGE_BYTES
    from stream.server import create_app

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        create_app(service),
        ws="auto",  # the websockets package, by whichever of uvicorn's two ways is current
        ws_max_size=MAX_MESSAGE_BYTES * 4,
        ws_ping_interval=5,
        ws_ping_timeout=5,
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    # A client's broken text is answered with close code 1007; uvicorn would log its own traceback besides.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Invalid UTF-8" not in record.getMessage())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server = Server(config)
    serving = asyncio.ensure_future(server.serve([listener]))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    service.hub.close("The server is closing.")
    stopping.cancel()
    await serving


def _check_serve(options: argparse.Namespace) -> None:
    _check_files(options)
    if not 1 <= options.slots <= 64:
        raise UserError(f"--slots is {options.slots}; it must be from 1 to 64")
    if not 0 < options.lead <= 16:
        raise UserError(f"--lead is {options.lead}; it must be more than 0 and at most 16 chunks")
    for url in options.ice_server:
        if url.partition(":")[0] not in ("stun", "turn", "turns"):
            raise UserError(f"--ice-server is {url!r}; it must look like stun:host:3478 or turn:host:3478")


def _check_files(options: argparse.Namespace) -> None:
    _check_weights(options)
    image = options.image
    if image is not None and not Path(image).is_file():
        raise UserError(f"there is no file {image}; --image takes a picture")


def _check_weights(options: argparse.Namespace) -> None:
    """What can be seen before anything is loaded. Raises ValueError."""
    for name in ("weights", "parts", "lora"):
        place = getattr(options, name)
        if place is not None and not (name == "weights" and place == "random"):
            check_place(place, f"--{name}")


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on the address, had before the engine's start costs time. UserError says what is wrong."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; it must be from 0 to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host {host} is no address of this machine; try 127.0.0.1 or 0.0.0.0") from None
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(128)
        except OSError as error:
            _explain(error, host, port)
        listener.setblocking(False)
        yield listener


def _explain(error: OSError, host: str, port: int) -> NoReturn:
    import errno

    if error.errno == errno.EADDRINUSE:
        raise UserError(f"port {port} is in use; choose another with --port, or end what uses it") from None
    if error.errno == errno.EACCES:
        raise UserError(f"port {port} may not be opened by this user; choose one above 1023") from None
    raise UserError(f"--host {host} is no address of this machine; try 127.0.0.1 or 0.0.0.0") from None


def _shown_host(host: str) -> str:
    if host in ("0.0.0.0", "::", "127.0.0.1"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _say_ready(address: str, world: Any) -> None:
    slots = f"{world.slots} viewer{'s' if world.slots > 1 else ''} at once"
    print(
        f"Ready: {address}  ({world.preset}, {world.width}x{world.height}, {world.fps} frames/s, {slots})", flush=True
    )
    if world.limit:
        print(world.limit, flush=True)


# generate, train, presets, doctor


def parse_keys(script: str) -> tuple[frozenset[str], ...]:
    """The keys held in each video frame of a script like "w-48,wl-24,none-10". ValueError says what is wrong."""
    walk: list[frozenset[str]] = []
    for part in filter(None, (part.strip() for part in script.split(","))):
        keys, _, frames = part.partition("-")
        if not keys or not frames.isascii() or not frames.isdigit() or int(frames[:6]) == 0:
            raise ValueError(f"--keys has {part!r}; write keys and frames, such as w-48,wl-24,none-10")
        held = frozenset() if keys == "none" else frozenset(keys)
        check_keys(held)
        walk += [held] * int(frames[:6])
    return tuple(walk)


def _generate(options: argparse.Namespace) -> int:
    _check_files(options)
    walk = parse_keys(options.keys)
    frames = options.frames if options.frames is not None else len(walk) or DEFAULT_FRAMES
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    spec = SessionSpec("generate", options.prompt, seed, script=walk)

    from tqdm import tqdm

    from pipeline.engine import build
    from pipeline.generate import check_output, generate

    check_output(options.output)
    engine = build(**engine_options(options), slots=1)
    print(f"seed {seed}")
    with tqdm(total=frames, unit=" frames") as bar:
        written = generate(
            engine, spec, frames, options.output, lambda chunk: bar.update(min(len(chunk.frames), frames - bar.n))
        )
    print(f"{options.output}: {written} frames")
    return 0 if written == frames else 130


def _train(options: argparse.Namespace) -> int:
    from pipeline.tiny.train import main as train

    return train(options.arguments) or 0


def _presets(options: argparse.Namespace) -> int:
    from pipeline.engine import GLOBAL_CONTEXT
    from pipeline.memory import describe
    from pipeline.presets import PRESETS

    print(describe(PRESETS.values(), GLOBAL_CONTEXT))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    _check_weights(options)

    from pipeline.doctor import examine
    from stream.codec import missing_encoders

    report = examine(options.preset, options.weights, options.parts, options.lora, missing_encoders())
    print(report)
    return 0 if report.fine else 1


if __name__ == "__main__":
    sys.exit(main())
