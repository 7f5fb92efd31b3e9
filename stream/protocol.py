"""The messages of /ws, version 1: JSON objects whose `type` names one of the models below.

The page opens the socket and says `hello`; the server answers `welcome`, then `queued` until a slot
is free, then `live`. `keys` carries every key that is held, not the change, and is sent again while
any is held, so that a lost message leaves no key stuck. `received` and `applied` answer `prompt`,
`keys`, `restart`, `rewind` and `unpause` by their `seq`, `received` and `paused` a `pause`; numbers rise. A control
replaces what waits for a chunk that has not begun.

A connection that breaks keeps its slot for 10 s, then the session is parked; `hello` with the `token` of `welcome`
goes on with it: within the 10 s at once, later through the line, for a day. A connection that is closed with code
1000 or 1001, or that says `leave`, has left. Nothing here knows of sockets.

`python -m stream.protocol --write` makes web/messages.js, the page's copy, and docs/protocol.md from these models.
"""

import argparse
import json
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from pipeline.chunk import KEYS, MAX_PROMPT_CHARACTERS, check_keys, check_prompt

VERSION = 1
MAX_MESSAGE_BYTES = 16 * 1024
MAX_PICTURE_BYTES = 16 * 2**20
MAX_SEED = 2**53 - 1
"""The greatest whole number that JavaScript holds exactly."""

KEYS_HELD_SECONDS = 1.0
"""Keys that were not sent again for this long are released."""


def _whole_characters(text: str) -> str:
    """JSON can name half of a character (a lone surrogate), which no one could send on."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text has a broken character (a lone surrogate); send whole ones") from None
    return text


Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Sequence = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]
Version = Annotated[int, Field(strict=True)]
Token = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_-]{8,64}$")]
Text = Annotated[str, StringConstraints(strict=True), AfterValidator(_whole_characters)]
Picture = Annotated[str, StringConstraints(strict=True, pattern=r"^(none|[0-9a-f]{16})$")]
NO_PICTURE = "none"


class ProtocolError(ValueError):
    """A message that cannot be taken; the text says what would be right, `seq` is the message's own if it had one."""

    def __init__(self, reason: str, seq: int | None = None) -> None:
        super().__init__(reason)
        self.seq = seq


class WrongVersion(ProtocolError):
    """The page speaks another version; nothing it says could be understood."""


class Message(BaseModel):
    """What all messages share: frozen, and no fields but those named."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClientMessage(Message):
    """A message from the page; `example` is shown to whoever sends a wrong one."""

    example: ClassVar[str]


class _WithPrompt(ClientMessage):
    @field_validator("prompt", "text", check_fields=False)
    @classmethod
    def _prompt_can_be_shown(cls, value: str | None) -> str | None:
        if value is not None:
            check_prompt(value)
        return value


class Hello(_WithPrompt):
    """The first message: what to see; without a seed the server draws one.

    With the `token` of an earlier welcome that session goes on; if it is gone, a new one begins.
    `access` is the server's own token, where it asks for one.
    """

    example = '{"type": "hello", "version": 1, "prompt": "a snowy forest at night", "seed": 7}'
    type: Literal["hello"] = "hello"
    version: Version
    prompt: Text
    seed: Seed | None = None
    token: Token | None = None
    access: Annotated[Text, Field(max_length=256)] | None = Field(default=None, repr=False)


class Spectate(ClientMessage):
    """In place of `hello`: to watch a session that someone else steers, by the `watch_token` of their `welcome`.

    What comes is told as to a viewer, with a `token` that fetches the picture. A spectator says nothing but `leave`.
    """

    example = '{"type": "spectate", "version": 1, "token": "the watch_token of a welcome"}'
    type: Literal["spectate"] = "spectate"
    version: Version
    token: Token


class Prompt(_WithPrompt):
    """A new prompt; the world goes on from where it is."""

    example = '{"type": "prompt", "seq": 3, "text": "the sun comes up"}'
    type: Literal["prompt"] = "prompt"
    seq: Sequence
    text: Text


class Keys(ClientMessage):
    """All keys that are held now, [] when none is."""

    example = '{"type": "keys", "seq": 4, "held": ["w", "l"]}'
    type: Literal["keys"] = "keys"
    seq: Sequence
    held: Annotated[tuple[Text, ...], Field(max_length=32)]

    @field_validator("held")
    @classmethod
    def _keys_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_keys(frozenset(value))
        return value


class Shown(ClientMessage):
    """The page saw the first frame that obeys message `seq`, `ms` milliseconds after it sent it."""

    example = '{"type": "shown", "seq": 4, "ms": 212.5}'
    type: Literal["shown"] = "shown"
    seq: Sequence
    ms: Annotated[float, Field(ge=0, le=600_000)]


class Restart(ClientMessage):
    """Begin again in the same slot; what is not given stays (seed and picture) or is the newest (the prompt).

    `image` is what the answer to PUT /api/sessions/{session}/image calls the picture to begin with, or "none". With a
    picture, in a world that names pictures, `prompt` may be "": then it is what the picture shows.
    """

    example = '{"type": "restart", "seq": 5, "seed": 7, "prompt": "a desert at noon"}'
    type: Literal["restart"] = "restart"
    seq: Sequence
    seed: Seed | None = None
    prompt: Text | None = None
    image: Picture | None = None

    @field_validator("prompt")
    @classmethod
    def _prompt_can_be_shown(cls, value: str | None) -> str | None:
        if value:  # whether it may be empty is the hub's to know
            check_prompt(value)
        return value


class Rewind(ClientMessage):
    """Go back to where the world had `chunk` chunks, 0 for its beginning, and go on from there."""

    example = '{"type": "rewind", "seq": 6, "chunk": 12}'
    type: Literal["rewind"] = "rewind"
    seq: Sequence
    chunk: Sequence


class Pause(ClientMessage):
    """Make no more of the world; the slot stays."""

    example = '{"type": "pause", "seq": 7}'
    type: Literal["pause"] = "pause"
    seq: Sequence


class Unpause(ClientMessage):
    """Go on."""

    example = '{"type": "unpause", "seq": 8}'
    type: Literal["unpause"] = "unpause"
    seq: Sequence


class Park(ClientMessage):
    """Keep the world and give the slot back; `hello` with the token goes on with it."""

    example = '{"type": "park"}'
    type: Literal["park"] = "park"


class Leave(ClientMessage):
    """The viewer goes; the slot is free at once."""

    example = '{"type": "leave"}'
    type: Literal["leave"] = "leave"


class IceServer(Message):
    """One STUN or TURN server, in the shape that RTCPeerConnection takes."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = None


class Welcome(Message):
    """What the world is. `token` is the secret that lets this viewer, and no one else, fetch its picture and come back.

    `seq` is the newest number of the session so far: the page counts on from there. `keys` is empty where the world has
    no camera; `image` says whether it begins with a picture of the viewer's: "none", "optional" or "required".
    `names_pictures`: it tells by itself what such a picture shows, so that a `restart` with one needs no prompt.
    `watch_token` may be given to others: `spectate` with it watches and steers nothing; absent where no one may watch.
    `spectates`: this is not one's own session, but one that is watched.
    """

    type: Literal["welcome"] = "welcome"
    version: int
    session: str
    token: str
    preset: str
    width: int
    height: int
    fps: int
    chunk_frames: int
    keys: tuple[str, ...]
    image: str
    ice_servers: tuple[IceServer, ...]
    seq: int | None = None
    names_pictures: bool | None = None
    watch_token: str | None = None
    spectates: bool | None = None


class Queued(Message):
    """Not live now: `place` in line counts from 1, of `waiting` in all; `reason` says why.

    `wait_seconds` is the wait to be expected, where one can tell; `restoring` that the world had begun and goes on;
    `needs_picture` that it waits for the viewer's picture, which others need not wait for.
    """

    type: Literal["queued"] = "queued"
    place: int
    waiting: int
    reason: str
    wait_seconds: int | None = None
    restoring: bool | None = None
    needs_picture: bool | None = None


class Live(Message):
    """The session has a slot and begins; POST /whep?session=TOKEN fetches the picture.

    `prompt` is "" where the world began with a picture and no words: `scene` says what it was taken for.
    """

    type: Literal["live"] = "live"
    slot: int
    seed: int
    prompt: str


class Received(Message):
    """Message `seq` is taken and will be in the next chunk that begins."""

    type: Literal["received"] = "received"
    seq: int


class Applied(Message):
    """`frame` (the first of chunk `chunk`) obeys all messages up to `seq` and has just been sent.

    `rtp` is that frame's RTP timestamp, as requestVideoFrameCallback reports it.
    """

    type: Literal["applied"] = "applied"
    seq: int
    chunk: int
    frame: int
    rtp: int | None = None


class Paused(Message):
    """Message `seq` is obeyed: chunk `chunk` and those after it are not begun before `unpause`.

    Who comes back to a world that stands hears it again.
    """

    type: Literal["paused"] = "paused"
    seq: int
    chunk: int


class Asked(Message):
    """Others wait and nothing was steered for a while: without any control in `seconds` the session is parked."""

    type: Literal["asked"] = "asked"
    seconds: int


class Parked(Message):
    """The session is kept and its slot free; this connection ends. `hello` with the token goes on with it.

    `by_itself`: the page should say it without being asked, for the server did not want this either.
    """

    type: Literal["parked"] = "parked"
    reason: str
    by_itself: bool | None = None


class Scene(Message):
    """How the prompt was understood, and the words of it that were not.

    `guessed_words` were understood though no one listed them: pairs of the word and what it was taken for.
    Who comes back hears it again.
    """

    type: Literal["scene"] = "scene"
    text: str
    unknown_words: tuple[str, ...]
    guessed_words: tuple[tuple[str, str], ...] | None = None


class Stats(Message):
    """About once a second: frames/s sent, times in milliseconds, and how many frames came late or were dropped.

    `chunk` is how many chunks the world has; `turn_seconds` what is left of the viewer's turn, where turns are limited
    and others wait.
    """

    type: Literal["stats"] = "stats"
    fps: float
    chunk_ms: float
    lead_ms: float
    viewers: int
    waiting: int
    dropped: int
    late: int
    chunk: int | None = None
    turn_seconds: int | None = None


class Ended(Message):
    """The session is over; `reason` is a sentence for the viewer. `needs_access`: the hello lacked the server's own
    token, or had a wrong one."""

    type: Literal["ended"] = "ended"
    reason: str
    needs_access: bool | None = None


class Error(Message):
    """A message was refused and nothing changed; `message` says what would be right."""

    type: Literal["error"] = "error"
    message: str
    seq: int | None = None


FromClient = Hello | Prompt | Keys | Shown | Restart | Rewind | Pause | Unpause | Park | Leave | Spectate
FromServer = Welcome | Queued | Live | Received | Applied | Paused | Asked | Parked | Scene | Stats | Ended | Error

_CLIENT: dict[str, type[ClientMessage]] = {model.model_fields["type"].default: model for model in get_args(FromClient)}
_SERVER: dict[str, type[Message]] = {model.model_fields["type"].default: model for model in get_args(FromServer)}
_NUMBER = TypeAdapter(Sequence)


def parse(text: str) -> FromClient:
    """The message in a text frame of the page. ProtocolError, with a sentence for its author, for any other text."""
    if len(text) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"the message has {len(text)} characters; at most {MAX_MESSAGE_BYTES} are taken")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError(f"that is not JSON; a message looks like {Keys.example}") from None
    if not isinstance(data, dict):
        raise ProtocolError(f"a message is a JSON object, like {Keys.example}")
    return _check(data)


def _check(data: dict[str, Any]) -> FromClient:
    kind, seq = data.get("type"), _sequence_of(data)
    if not isinstance(kind, str) or kind not in _CLIENT:
        raise ProtocolError(f"no such type of message: {_short(kind)}; the types are {', '.join(_CLIENT)}", seq)
    model = _CLIENT[kind]
    if kind in ("hello", "spectate") and data.get("version", VERSION) != VERSION:
        raise WrongVersion(f"this server speaks version {VERSION}, not {_short(data['version'])}: reload the page")
    try:
        return typing.cast(FromClient, model.model_validate(data))
    except ValidationError as error:
        raise ProtocolError(_sentence(model, error), seq) from None


def _sequence_of(data: dict[str, Any]) -> int | None:
    try:
        return _NUMBER.validate_python(data.get("seq"))
    except ValidationError:
        return None


def _sentence(model: type[ClientMessage], error: ValidationError) -> str:
    """The first fault in words: our own checks speak for themselves, pydantic's need the field and an example."""
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    field = str(fault["loc"][0])[:40]
    return f"{field!r} is wrong ({fault['msg'].lower()}); such a message looks like {model.example}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


# The page's copy.

PAGE_COPY = Path(__file__).resolve().parent.parent / "web" / "messages.js"

_HEAD = """\
// Made from stream/protocol.py by `python -m stream.protocol --write`; change it there.
// The messages of /ws: functions that write those of the page, and parse() for those of the server.

export const VERSION = {version};
export const KEYS = {keys};
export const MAX_PROMPT_CHARACTERS = {prompt};
export const MAX_SEED = {seed};
export const MAX_PICTURE_BYTES = {picture};

/** Held keys must be sent again within this many milliseconds, or the server releases them. */
export const KEYS_HELD_MS = {held};
"""

_TAIL = """\
/**
 * The message in a text frame of the server.
 * @param {string} text
 * @returns {%s}
 * @throws {Error} when it is none of the messages above
 */
export function parse(text) {
  const message = JSON.parse(text);
  const fields = Object.hasOwn(FIELDS, message?.type) ? FIELDS[message.type] : null;
  if (fields === null) throw new Error(`no such message from the server: ${text.slice(0, 80)}`);
  for (const field of fields) {
    if (!(field in message)) throw new Error(`the server's ${message.type} lacks ${field}`);
  }
  return message;
}
"""


def javascript() -> str:
    """web/messages.js as it must be for the models of this file."""
    head = _HEAD.format(
        version=VERSION,
        keys=json.dumps(sorted(KEYS)),
        prompt=MAX_PROMPT_CHARACTERS,
        seed=MAX_SEED,
        picture=MAX_PICTURE_BYTES,
        held=round(1000 * KEYS_HELD_SECONDS),
    )
    writers = [_writer(model) for model in _CLIENT.values()]
    typedefs = [_typedef(model) for model in (IceServer, *_SERVER.values())]
    names = "|".join(model.__name__ for model in _SERVER.values())
    return "\n".join([head, *writers, *typedefs, _fields_table(), _TAIL % names])


def _writer(model: type[ClientMessage]) -> str:
    """A JavaScript function that writes one message of the page."""
    fields = {name: field for name, field in model.model_fields.items() if name not in ("type", "version")}
    # What is not given stays undefined, and JSON.stringify leaves it out.
    params = ", ".join(fields)
    values = ["type: " + json.dumps(model.model_fields["type"].default)]
    values += ["version: VERSION"] if "version" in model.model_fields else []
    values += list(fields)
    head = f"export function {model.__name__.lower()}({f'{{ {params} }}' if params else ''}) {{\n"
    return f"{_comment(model)}{head}  return JSON.stringify({{ {', '.join(values)} }});\n}}\n"


def _typedef(model: type[Message]) -> str:
    fields = ", ".join(f"{name}: {_js_type(field.annotation)}" for name, field in model.model_fields.items())
    return f"{_comment(model, f'@typedef {{{{ {fields} }}}} {model.__name__}')}"


def _comment(model: type[Message], *lines: str) -> str:
    text = [line.strip() for line in (model.__doc__ or "").strip().splitlines() if line.strip()]
    return "/**\n" + "".join(f" * {line}\n" for line in (*text, *lines)) + " */\n"


def _fields_table() -> str:
    rows = [f"  {kind}: {json.dumps(_required(model))},\n" for kind, model in _SERVER.items()]
    return f"const FIELDS = {{\n{''.join(rows)}}};\n"


def _required(model: type[Message]) -> list[str]:
    optional = {name for name, field in model.model_fields.items() if field.default is None}
    return [name for name in model.model_fields if name not in optional | {"type"}]


def _js_type(annotation: Any) -> str:
    """The JSDoc type of a field's annotation."""
    origin, arguments = typing.get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _js_type(arguments[0])
    if origin is Literal:
        return json.dumps(arguments[0])
    if origin is tuple:
        return f"{_js_type(arguments[0])}[]"
    if origin in (types.UnionType, typing.Union):
        return "|".join(_js_type(argument) for argument in arguments)
    simple = {int: "number", float: "number", bool: "boolean", str: "string", type(None): "null"}
    return simple.get(annotation) or annotation.__name__


# The document.

DOCUMENT = PAGE_COPY.parent.parent / "docs" / "protocol.md"

_INTRODUCTION = """\
# The protocol of /ws

Made from stream/protocol.py and stream/session.py by `python -m stream.protocol --write`; change it there.

Text frames with one JSON object each, whose `type` names one of the messages below. Version {version}; at most
{bytes} characters a message. What is not known is refused, with an `error` that says what would be right; the
connection stays. `chunkcast watch` (stream/client.py) is the reference for clients.

{talk}

Sessions over HTTP are described by the server itself, at `/openapi.json`; the picture is fetched by WHEP
(`POST /whep?session=TOKEN` with the token of `welcome`, or `POST /whep?session=` with `Authorization: Bearer TOKEN`),
or frame by frame over a WebSocket ([reaching.md](reaching.md)). Who was given the `watch_token` of a `welcome` says
`spectate` in place of `hello`, and watches that session; a player that speaks WHEP alone does so by
`POST /whep?watch=WATCH_TOKEN`.

A world that takes a picture (`image` of `welcome`) begins with it like this: `PUT /api/sessions/SESSION/image` with the
file as body, its `Content-Type` and `Authorization: Bearer TOKEN`, at most {picture} MiB; the answer is
`{{"image": NAME}}`, or a refusal with a `detail` in words, and the world goes on as it was. Then say `restart` with
that name. It goes by HTTP so that no key waits behind a picture and messages stay small.
"""


def markdown() -> str:
    """docs/protocol.md as it must be for the models of this file and the life of a session."""
    talk = (__doc__ or "").split("\n\n", 1)[1].rpartition("\n\n")[0].replace(" Nothing here knows of sockets.", "")
    head = _INTRODUCTION.format(version=VERSION, bytes=MAX_MESSAGE_BYTES, picture=MAX_PICTURE_BYTES >> 20, talk=talk)
    client = [_section(model, f"\n\n```json\n{model.example}\n```") for model in _CLIENT.values()]
    server = [_section(model) for model in (*_SERVER.values(), IceServer)]
    return "\n".join([head, "## From the page\n", *client, "## From the server\n", *server, _life()])


def _section(model: type[Message], example: str = "") -> str:
    """A message in the document: what it means, its fields, an example."""
    name = model.model_fields["type"].default if "type" in model.model_fields else "an element of `ice_servers`"
    fields = {name: field for name, field in model.model_fields.items() if name != "type"}
    rows = [f"| `{each}` | {_json_type(each, field)} |" for each, field in fields.items()]
    table = "\n\n| field | |\n|---|---|\n" + "\n".join(rows) if rows else ""
    words = "\n".join(line.strip() for line in (model.__doc__ or "").strip().splitlines())
    title = f"`{name}`" if "type" in model.model_fields else name
    return f"### {title}\n{words}{table}{example}\n"


def _json_type(name: str, field: Any) -> str:
    """A field's type, its bounds, and whether it may be left out, in words."""
    words = _js_type(field.annotation).replace("|null", "").replace("|", " or ")
    bounds = [
        f"{sign} {getattr(each, bound)}"
        for each in (*field.metadata, *_metadata(field.annotation))
        for bound, sign in (("ge", "from"), ("le", "to"), ("max_length", "of at most"))
        if getattr(each, bound, None) is not None
    ]
    optional = [] if field.is_required() else ["may be absent or null"]
    return ", ".join([" ".join([words, *bounds]), *optional])


def _metadata(annotation: Any) -> list[Any]:
    """The bounds that are written into an annotation, at any depth."""
    own = [each for field in getattr(annotation, "__metadata__", ()) for each in getattr(field, "metadata", [field])]
    return own + [each for inner in get_args(annotation) for each in _metadata(inner)]


def _life() -> str:
    """The table of stream/session.py."""
    from stream.session import LIFE  # which stands on this module

    rows = [f"| {state.value} | {event} | {step.then.value} | {step.does} |" for (state, event), step in LIFE.items()]
    head = "## The life of a session\n\n| state | event | then | what happens |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n\nNothing else can happen.\n"


def main(argv: list[str] | None = None) -> int:
    """Print web/messages.js. --write puts it and docs/protocol.md into place; --check ends with 1 if one is stale."""
    parser = argparse.ArgumentParser(prog="python -m stream.protocol", description=main.__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    made = {PAGE_COPY: javascript, DOCUMENT: markdown}
    if options.write:
        for path, make in made.items():
            path.write_text(make())
    elif options.check:
        stale = [path.name for path, make in made.items() if not path.exists() or path.read_text() != make()]
        for name in stale:
            print(f"{name} is stale: run python -m stream.protocol --write", file=sys.stderr)
        return 1 if stale else 0
    else:
        print(javascript(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
