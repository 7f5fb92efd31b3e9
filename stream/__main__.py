"""The command line: chunkcast serve, watch, generate, train, presets and doctor.

What a user can mend is said in one sentence on stderr, with exit code 2. Torch is imported only where a
subcommand needs it, and for `serve` only in the engine's own process.
"""

import argparse
import asyncio
import importlib.metadata
import ipaddress
import os
import random
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.chunk import Session, SessionSpec, check_prompt, parse_keys
from pipeline.huggingface import check_place
from stream.audience import SPECTATORS
from stream.codec import MAX_BITRATE, MIN_BITRATE
from stream.doors import CONNECTIONS_PER_ADDRESS, Doors
from stream.fairness import Fairness
from stream.ice import Reach, parse_ports, parse_server
from stream.playout import Bounds
from stream.protocol import MAX_SEED
from stream.schedule import LEAD_SECONDS
from stream.webrtc import CODECS, PLAYOUT_DELAY, Media

if TYPE_CHECKING:
    from pipeline.cues import Cue

ENGINE = "pipeline.engine:build"
SCHEDULES = ("auto", "turns", "batch", "parallel")
DEFAULT_FRAMES = 96
MOST_LEAD_MS = 10_000


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
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="show a live world to browsers"))
    _add_watch(commands.add_parser("watch", help="watch a served world without a browser, into a video file"))
    _add_generate(commands.add_parser("generate", help="write a video file"))
    train = commands.add_parser("train", help="train the shipped world on a GPU")
    train.add_argument("what", choices=["tiny"], help="`chunkcast train tiny --help` lists its options")
    train.add_argument("arguments", nargs=argparse.REMAINDER, help="options of that training")
    train.set_defaults(run=_train)
    _add_profile(commands.add_parser("profile", help="trace warm steps and say where their time goes"))
    presets = commands.add_parser("presets", help="list the models")
    presets.add_argument("--json", action="store_true", help="as data, with whether this machine could run them")
    presets.set_defaults(run=_presets)
    _add_doctor(commands.add_parser("doctor", help="say what is there, what is missing and what fits"))
    return parser


def _version() -> str:
    try:
        return f"chunkcast {importlib.metadata.version('chunkcast')}"
    except importlib.metadata.PackageNotFoundError:
        return "chunkcast, from a folder where it is not installed"


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        default="tiny",
        help="the model; `chunkcast presets` lists them, and NAME-chunkN is the same in chunks of N latent frames: "
        "shorter ones answer sooner, and look worse where a model was made for longer ones (default: tiny)",
    )
    _add_weights_options(parser)
    parser.add_argument("--image", metavar="FILE", help="a picture to begin with, for presets that take one")
    parser.add_argument(
        "--context",
        type=int,
        metavar="FRAMES",
        help="latent frames remembered by a model without a window (default: what the GPU's memory holds; 21 on a CPU)",
    )
    parser.add_argument(
        "--prompt-change",
        choices=["rebuild", "swap"],
        help="whether a new prompt has the model's memory written anew under it (default: the preset's own choice)",
    )
    _add_precision_options(parser)
    _add_attention_options(parser)
    _add_speed_options(parser)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")


def _add_precision_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=["bf16", "fp8"],
        help="of the transformer's matrix products on a GPU: fp8 is quicker, in half the memory, and a little off "
        "(default: bf16)",
    )
    parser.add_argument(
        "--vae-precision",
        choices=["exact", "bf16", "fp16", "rows", "rows-fp16"],
        help="of the Wan models' decoder and picture encoder: quicker than exact and a little off, see the README "
        "(default: exact)",
    )


def _add_attention_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--attention",
        metavar="NAME",
        help="one kernel for all attention, such as cudnn, for the same bits in every process; or fp8, self-attention "
        "in FP8, which is quicker on a Hopper GPU and a little off; `chunkcast doctor` lists them (default: for each "
        "shape the quickest, as timed on a GPU)",
    )
    parser.add_argument(
        "--cache",
        choices=["plain", "fp8"],
        help="fp8: keys and values in a byte a number, half the memory of a viewer's past, and a little off; with "
        "--attention fp8 they always are (default: plain)",
    )


def _add_speed_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--context-pass",
        choices=["exact", "reuse"],
        help="reuse: remember a chunk as its last denoising pass saw it, which saves one pass a chunk and changes what "
        "is made (default: exact)",
    )
    parser.add_argument(
        "--graphs",
        action="store_true",
        default=None,
        help="on a GPU run whole passes as CUDA graphs once a window is full: the same pictures, more memory",
    )


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
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; :: for all (default: local)")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    parser.add_argument(
        "--slots", type=int, default=2, help="viewers at once, if the machine carries them (default: 2)"
    )
    parser.add_argument(
        "--schedule",
        default="auto",
        choices=SCHEDULES,
        help="how two viewers share the machine: in turns, in one batch, or on cores of their own (default: what is "
        "soonest, as measured at the start)",
    )
    parser.add_argument(
        "--lead",
        type=float,
        default=1000 * LEAD_SECONDS,
        metavar="MS",
        help="how long before its time a chunk is to be there: more is smoother, less is quicker to steer; it grows by "
        "itself while chunks come late (default: %(default)g)",
    )
    parser.add_argument(
        "--log-prompts", action="store_true", help="log what viewers ask for (default: no log shows a prompt)"
    )
    _add_life_options(parser.add_argument_group("when others wait, and when viewers come back"))
    _add_picture_options(parser.add_argument_group("the picture"))
    _add_reach_options(parser.add_argument_group("reaching it from outside (docs/reaching.md)"))
    parser.set_defaults(run=_serve)


def _add_life_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--turn", type=float, metavar="SECONDS", help="a viewer's turn while others wait (default: no limit)"
    )
    parser.add_argument(
        "--idle",
        type=float,
        metavar="MINUTES",
        help="park who steers nothing for so long while others wait, once asked (default: never)",
    )
    parser.add_argument(
        "--sessions",
        type=Path,
        metavar="DIR",
        help="keep parked worlds here for a day (default: as long as the server runs)",
    )
    parser.add_argument(
        "--spectators",
        type=int,
        default=SPECTATORS,
        metavar="N",
        help=f"so many may watch one viewer's world by its link, 0 for none (default: {SPECTATORS})",
    )


def _add_picture_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--codec", default=CODECS[0], choices=CODECS, help=f"what to prefer (default: {CODECS[0]})")
    for name, default in (("min", MIN_BITRATE), ("max", MAX_BITRATE)):
        parser.add_argument(
            f"--{name}-bitrate",
            type=int,
            default=default // 1000,
            metavar="KBIT",
            help=f"bound of what one viewer is sent a second (default: {default // 1000})",
        )
    parser.add_argument(
        "--playout-delay",
        default="{}-{}".format(*PLAYOUT_DELAY),
        metavar="MIN-MAX",
        help="milliseconds that a browser may hold frames: MIN on an even link, up to MAX on an uneven one; "
        "or off (default: %(default)s)",
    )
    parser.add_argument(
        "--mark",
        action="store_true",
        help="for measurements: write into each frame's top rows which one it is and what it obeys, and tell at "
        "/mark, to all who may see worlds, when it was made and left",
    )


def _add_reach_options(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--ice-server",
        action="append",
        default=[],
        metavar="URL[,USER,SECRET]",
        help="a STUN or TURN server, also told to viewers: stun:host:3478 or turn:host:3478,user,@file-with-secret",
    )
    parser.add_argument("--public-ip", metavar="ADDRESS", help="the address of this server outside its NAT")
    parser.add_argument("--udp-ports", metavar="FIRST-LAST", help="the ports for media, such as 40000-40100")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="another site whose pages may play and steer, or *",
    )
    parser.add_argument(
        "--connections-per-address",
        type=int,
        default=CONNECTIONS_PER_ADDRESS,
        metavar="N",
        help="so many at most for one viewer's address, of which a page needs 2 (default: %(default)s)",
    )
    _add_token_options(parser, "give worlds only to those who have this token")
    parser.add_argument("--certfile", metavar="FILE", help="the certificate, for https")
    parser.add_argument("--keyfile", metavar="FILE", help="the certificate's key")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_engine_options(parser)
    told = "what to see; needed unless a session is resumed, the script begins with it, or --image says it"
    parser.add_argument("--prompt", help=told)
    parser.add_argument("--keys", default="", metavar="SCRIPT", help="keys by frames, such as w-48,wl-24,none-10")
    parser.add_argument("--script", type=Path, metavar="FILE", help="prompts and keys by frames (docs/sessions.md)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the session, to be resumed later")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on with a saved session; --frames are new ones")
    parser.add_argument("--frames", type=int, help=f"default: the length of --keys, or {DEFAULT_FRAMES}")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the video: .mp4, .mkv or .mov"
    )
    parser.set_defaults(run=_generate)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the server's page, such as http://localhost:8080")
    parser.add_argument("--prompt", help="what to see; needed unless --image says it")
    parser.add_argument("--keys", default="", metavar="SCRIPT", help="keys by frames seen, such as w-48,wl-24,none-10")
    parser.add_argument("--frames", type=int, help=f"default: the length of --keys, or {DEFAULT_FRAMES}")
    parser.add_argument("--seed", type=int, help="default: one of the server's")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture to begin with, where the world takes one")
    _add_token_options(parser, "the server's token, where it asks for one")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the video: .mp4, .mkv or .mov"
    )
    parser.set_defaults(run=_watch)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    _add_engine_options(parser)
    parser.add_argument("--slots", type=int, default=1, help="live sessions (default: 1)")
    parser.add_argument("--schedule", default="auto", choices=SCHEDULES, help="default: what prewarm finds soonest")
    parser.add_argument("--chunks", type=int, default=4, help="steps to trace (default: 4)")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="where the files go (default: here)")
    parser.set_defaults(run=_profile)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="also say whether this model fits (`chunkcast presets` lists them)")
    _add_weights_options(parser)
    _add_precision_options(parser)
    _add_attention_options(parser)
    parser.set_defaults(run=_doctor)


# serve


def _serve(options: argparse.Namespace) -> int:
    from stream.serve import listening, serve

    _check_serve(options)
    origins, tls = tuple(map(_origin, options.allow_origin)), _tls(options.certfile, options.keyfile)
    with listening(options.host, options.port) as listener:
        return serve(
            listener,
            ENGINE,
            engine_options(options),
            media_options(options, listener.getsockname()[0]),
            tls,
            lead=options.lead / 1000,
            allowed_origins=origins,
            fairness=fairness_options(options),
            sessions=options.sessions,
            doors=door_options(options),
            log_prompts=options.log_prompts,
            spectators=options.spectators,
            marks=options.mark,
        )


def door_options(options: argparse.Namespace) -> Doors:
    """Who may come in. ValueError says what the user can mend."""
    return Doors(options.connections_per_address, server_token(options))


def server_token(options: argparse.Namespace) -> str | None:
    """The server's token, None where there is none. UserError never repeats it."""
    if options.token_file is None:
        return options.token
    if options.token is not None:
        raise UserError("--token and --token-file are two ways to say the same; give one")
    try:
        return options.token_file.read_text().strip()
    except (OSError, ValueError):
        raise UserError(f"{options.token_file} cannot be read; --token-file takes a text file with the token") from None


def _add_token_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup, use: str) -> None:
    parser.add_argument(
        "--token", metavar="SECRET", help=f"{use}; the list of processes shows it, --token-file does not"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="the token from a file")


def fairness_options(options: argparse.Namespace) -> Fairness:
    """What is done when others wait. UserError says what the user can mend."""
    for name, unit in (("turn", "seconds"), ("idle", "minutes")):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} is {value}; it must be more than 0 {unit}")
    return Fairness(options.turn, None if options.idle is None else 60 * options.idle)


def media_options(options: argparse.Namespace, address: str) -> Media:
    """How pictures are sent by a server that listens on `address`. ValueError says what the user can mend."""
    asked = ipaddress.ip_address(address)
    reach = Reach(
        # Who listens on this machine alone has a proxy in front, or viewers whose browsers are on it too.
        address=None if asked.is_unspecified or asked.is_loopback else address,
        public_ip=options.public_ip,
        ports=parse_ports(options.udp_ports) if options.udp_ports is not None else None,
    )
    return Media(
        options.codec,
        1000 * options.min_bitrate,
        1000 * options.max_bitrate,
        Bounds.parse(options.playout_delay),
        tuple(map(parse_server, options.ice_server)),
        reach,
    )


def _origin(text: str) -> str:
    """An origin as browsers send it."""
    parts = urlsplit(text)
    if text != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/")):
        raise UserError(f"--allow-origin is {text!r}; it must look like https://example.org, or be *")
    return text.removesuffix("/").lower()


def _tls(certfile: str | None, keyfile: str | None) -> tuple[str, str] | None:
    """The two files of a certificate, tried before the engine's start costs time."""
    if certfile is None and keyfile is None:
        return None
    if certfile is None or keyfile is None:
        raise UserError("--certfile and --keyfile belong together: https needs the certificate and its key")
    for name, file in (("--certfile", certfile), ("--keyfile", keyfile)):
        if not Path(file).is_file():
            raise UserError(f"there is no file {file}; {name} takes a PEM file")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        told = f"{certfile} and {keyfile} are no certificate and its unencrypted key ({error})"
        raise UserError(told) from None
    return certfile, keyfile


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the engine's factory is called with."""
    names = ("preset", "weights", "parts", "lora", "device", "slots", "schedule", "image", "context", "prompt_change",
             "precision", "vae_precision", "attention", "context_pass", "graphs", "cache")  # fmt: skip
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return {name: value for name, value in given.items() if value is not None}


def _check_serve(options: argparse.Namespace) -> None:
    _check_files(options)
    if not 1 <= options.slots <= 64:
        raise UserError(f"--slots is {options.slots}; it must be from 1 to 64")
    fairness_options(options)
    door_options(options)
    _check_folder(options.sessions)
    if not 0 <= options.spectators <= 1000:
        raise UserError(f"--spectators is {options.spectators}; it must be from 0 to 1000")
    if not 0 <= options.lead <= MOST_LEAD_MS:
        raise UserError(f"--lead is {options.lead:g}; it must be from 0 to {MOST_LEAD_MS} milliseconds")


def _check_folder(folder: Path | None) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--sessions {folder} cannot be made ({error.strerror}); it takes a folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--sessions {folder} cannot be written; it takes a folder of your own")


def _check_files(options: argparse.Namespace) -> None:
    _check_weights(options)
    if options.context is not None and options.context < 1:
        raise UserError(f"--context is {options.context}; it must be at least 1, and room for the sink and a chunk")
    image = options.image
    if image is not None and not Path(image).is_file():
        raise UserError(f"there is no file {image}; --image takes a picture")


def _check_weights(options: argparse.Namespace) -> None:
    """What can be seen before anything is loaded. Raises ValueError."""
    for name in ("weights", "parts", "lora"):
        place = getattr(options, name)
        if place is not None and not (name == "weights" and place == "random"):
            check_place(place, f"--{name}")


# generate, train, presets, doctor


def _watch(options: argparse.Namespace) -> int:
    from stream.client import Wish, watch

    if options.prompt is not None or options.image is None:
        check_prompt(options.prompt or "")
    walk = parse_keys(options.keys)
    frames = options.frames if options.frames is not None else len(walk) or DEFAULT_FRAMES
    if frames < 1:
        raise UserError(f"--frames is {frames}; it must be at least 1")
    if options.seed is not None and not 0 <= options.seed <= MAX_SEED:
        raise UserError(f"--seed is {options.seed}; it must be from 0 to {MAX_SEED}")
    image = None if options.image is None else _picture(options.image)
    wish = Wish(options.prompt or "", frames, options.seed, walk, image, server_token(options))
    seen = asyncio.run(watch(options.url, wish, options.output, lambda line: print(line, flush=True)))
    print(f"{options.output}: {seen} frames")
    return 0


def _picture(path: Path) -> bytes:
    from stream.protocol import MAX_PICTURE_BYTES

    try:
        size = path.stat().st_size
        if size > MAX_PICTURE_BYTES:
            raise UserError(f"{path} has {size / 2**20:.0f} MiB; --image takes at most {MAX_PICTURE_BYTES >> 20}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); --image takes a picture's file") from None


def _generate(options: argparse.Namespace) -> int:
    _check_files(options)
    walk, cues = parse_keys(options.keys), _cues(options)
    start = _resumed(options) if options.resume is not None else _fresh(options, walk, cues)
    frames = options.frames if options.frames is not None else len(walk) or DEFAULT_FRAMES
    if options.save is not None and not options.save.parent.is_dir():
        raise UserError(f"there is no folder {options.save.parent} for the session file")

    from tqdm import tqdm

    from pipeline.engine import build
    from pipeline.generate import generate, walking_on
    from pipeline.video_file import check_output

    check_output(options.output)
    engine = build(**engine_options(options), slots=1)
    if options.resume is None:
        print(f"seed {start.seed}")
    elif walk:
        start = walking_on(start, engine.preset, walk)
    with tqdm(total=frames, unit=" frames") as bar:
        written = generate(engine, start, frames, options.output, bar.update, cues, options.save)
    print(f"{options.output}: {written} frames")
    return 0 if written == frames else 130


def _profile(options: argparse.Namespace) -> int:
    _check_files(options)
    if not options.out.is_dir():
        raise UserError(f"there is no folder {options.out} for the trace")

    import json

    from tqdm import tqdm

    from pipeline.digest import render
    from pipeline.engine import build
    from pipeline.profiling import profile_engine

    engine = build(**engine_options(options))
    world = engine.prewarm()
    name = f"profile-{options.preset}-{options.slots}"
    trace, facts = (options.out / f"{name}.{kind}.json" for kind in ("trace", "digest"))
    with tqdm(total=options.chunks, unit=" chunks") as bar:
        found = profile_engine(engine, options.slots, options.chunks, trace, bar.update)
    found |= {"preset": options.preset, "sessions": options.slots, "schedule": world.schedule}
    found |= {"attention": engine.attention.report()}
    facts.write_text(json.dumps(found, indent=1) + "\n")
    text = render(found)
    facts.with_suffix("").with_suffix(".txt").write_text(text)
    print(f"{text}\n{trace}\n{facts}")
    return 0


def _cues(options: argparse.Namespace) -> "tuple[Cue, ...]":
    """The script's, with --prompt for a resumed session as one of its first frame."""
    from pipeline.cues import Cue, read_cues

    cues = () if options.script is None else read_cues(options.script)
    if options.keys and any(cue.keys is not None for cue in cues):
        raise UserError("--keys and keys in --script exclude each other; write all of them into the script")
    if options.prompt is not None and cues and cues[0].frame == 0 and cues[0].prompt is not None:
        raise UserError("--prompt and the script's frame 0 both name a prompt; leave one out")
    if options.prompt is None or options.resume is None:
        return cues
    return (Cue(0, None, options.prompt), *cues)


def _fresh(options: argparse.Namespace, walk: tuple[frozenset[str], ...], cues: "Sequence[Cue]") -> SessionSpec:
    prompt = options.prompt
    if prompt is None and cues and cues[0].frame == 0:
        prompt = cues[0].prompt
    if prompt is None and options.image is None:
        raise UserError("there is no prompt: give --prompt, a script whose frame 0 names one, --image, or --resume")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    from pipeline.picture import read_file

    image = None if options.image is None else read_file(options.image)
    return SessionSpec("generate", prompt or "", seed, image, walk)


def _resumed(options: argparse.Namespace) -> Session:
    """The saved session; what it brings itself cannot be given besides."""
    for name in ("seed", "image"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} cannot be changed in a session that is resumed; leave it out")
    session = Session.load(options.resume)
    if options.preset not in ("tiny", session.preset):
        raise UserError(f"the session is of the preset {session.preset}, not {options.preset}; leave --preset out")
    options.preset = session.preset
    return session


def _train(options: argparse.Namespace) -> int:
    """A whole training ends with what it is worth, in a checkout: the package has no benchmarks."""
    import importlib.util
    import subprocess

    from pipeline.tiny.train import main as train
    from pipeline.tiny.train import to_be_judged

    status, weights = train(options.arguments), to_be_judged(options.arguments)
    if status or weights is None or importlib.util.find_spec("benchmarks") is None:
        return status
    command = [sys.executable, "-m", "benchmarks.tiny_world", "--weights", str(weights)]
    return subprocess.run(command, check=False).returncode


def _presets(options: argparse.Namespace) -> int:
    import json

    from pipeline.catalogue import catalogue
    from pipeline.context import GLOBAL_CONTEXT
    from pipeline.memory import describe
    from pipeline.presets import PRESETS

    presets = PRESETS.values()
    print(json.dumps(catalogue(presets)) if options.json else describe(presets, GLOBAL_CONTEXT))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    _check_weights(options)

    from pipeline.doctor import examine
    from stream.codec import missing_encoders

    chosen = {name: getattr(options, name) for name in ("precision", "vae_precision", "cache", "attention")}
    places = (options.weights, options.parts, options.lora)
    named = {name: value for name, value in chosen.items() if value is not None}
    report = examine(options.preset, *places, missing_encoders(), **named)
    print(report)
    return 0 if report.fine else 1


if __name__ == "__main__":
    sys.exit(main())
