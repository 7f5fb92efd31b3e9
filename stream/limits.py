"""Every limit of the service in one table. `python -m stream.limits --write` makes docs/limits.md from it."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "limits.md"

# What is limited, the constant, its unit ("bytes" are shown as KiB or MiB), what happens beyond it.
_TABLES: dict[str, list[tuple[str, str, str, str]]] = {
    "Connections": [
        (
            "connections of one address (of one IPv6 /64), /ws and pictures together; `--connections-per-address`",
            "doors.CONNECTIONS_PER_ADDRESS",
            "",
            "/ws: `ended` with the reason; WHEP: 429. Connections from the machine itself are not counted",
        ),
        ("TCP connections of one address before they are a WebSocket", "doors.SOCKETS_PER_ADDRESS", "", "it is closed"),
        ("what was sent and is not taken in", "serve.UNREAD_SECONDS", "s", "the connection is closed"),
        ("head of a request", "doors.HEAD_SECONDS", "s", "the connection is closed"),
        ("body of a small request", "doors.BODY_SECONDS", "s", "408"),
        ("body of a session file, or a picture", "doors.UPLOAD_SECONDS", "s", "408"),
        ("least that must come of a body", "body.PACE", "bytes a second", "408"),
        ("time before so much must come", "body.SLACK_SECONDS", "s", "408"),
        ("silence of a kept HTTP connection", "serve.KEEP_ALIVE_SECONDS", "s", "the connection is closed"),
        ("answer to a ping of /ws", "serve.PONG_SECONDS", "s", "the connection is closed"),
        (
            "from such an answer to the next ping",
            "serve.PING_SECONDS",
            "s",
            "a page that vanished is noticed within both",
        ),
        ("answer to a close of /ws", "doors.CLOSE_SECONDS", "s", "the connection is cut"),
        ("first message of /ws", "server.HELLO_SECONDS", "s", "`ended`, and the connection is closed"),
        ("messages that a slow reader leaves unread", "server.MAX_OUTGOING", "", "the connection is closed"),
    ],
    "Messages of /ws": [
        ("size", "protocol.MAX_MESSAGE_BYTES", "characters", "`error`; beyond four times as many, close code 1009"),
        ("rate", "server.MESSAGES_A_SECOND", "a second", "`error` once; the messages above it are not taken"),
        ("at once", "server.MESSAGES_AT_ONCE", "", "the same"),
        ("messages above the rate, less those within it", "server.FLOOD", "", "the connection is closed"),
        ("prompt", "pipeline.chunk.MAX_PROMPT_CHARACTERS", "characters", "`error`; HTTP: 400"),
        ("seed", "protocol.MAX_SEED", "", "`error`; HTTP: 400"),
        ("silence of held keys", "protocol.KEYS_HELD_SECONDS", "s", "they are released"),
        ("rewinds", "viewer.REWINDS_A_SECOND", "a second", "`error`"),
        ("rewinds at once", "viewer.REWINDS_AT_ONCE", "", "`error`"),
    ],
    "HTTP": [
        ("offer, and a trickled fragment", "webrtc.MAX_OFFER_BYTES", "bytes", "413"),
        ("lines of an offer", "webrtc.MAX_OFFER_LINES", "", "400"),
        ("media of an offer", "webrtc.MAX_MEDIA", "", "400"),
        ("ICE candidates of one picture", "webrtc.MAX_CANDIDATES", "", "400"),
        ("pictures that are told from those that never were", "whep.REMEMBERED", "", "DELETE: 404"),
        ("body of POST /api/sessions", "api.MAX_BODY_BYTES", "bytes", "413"),
        ("session file", "api.MAX_FILE_BYTES", "bytes", "413"),
        ("session files that are received at a time", "api.MAX_UPLOADS", "", "429"),
        ("chunks that a session file's world had", "api.MAX_CHUNKS", "", "400"),
        ("wait for a session's file from the engine", "api.FILE_SECONDS", "s", "503"),
        ("first answer of GET /api/presets", "catalogue.CATALOGUE_SECONDS", "s", "503"),
        ("picture to begin with", "protocol.MAX_PICTURE_BYTES", "bytes", "413"),
        ("its width times its height", "pipeline.picture.MAX_IMAGE_PIXELS", "pixels", "400"),
        ("time for decoding it", "upload.FIT_SECONDS", "s", "400"),
        ("memory for decoding it", "pipeline.picture.MEMORY_BYTES", "bytes", "400"),
        ("wait for the pictures before it, which are decoded one by one", "upload.PATIENCE_SECONDS", "s", "503"),
        ("restarts of a live world", "viewer.RESTARTS_A_SECOND", "a second", "error"),
        ("restarts of a live world in a row", "viewer.RESTARTS_AT_ONCE", "", "error"),
        ("session files of a live viewer", "viewer.FILES_A_SECOND", "a second", "429"),
        ("session files of a live viewer in a row", "viewer.FILES_AT_ONCE", "", "429"),
        ("pictures of a viewer, one at a time", "viewer.PICTURES_A_SECOND", "a second", "429"),
        ("pictures of a viewer in a row", "viewer.PICTURES_AT_ONCE", "", "429"),
    ],
    "A viewer": [
        ("line in front of the slots", "hub.MAX_WAITING", "viewers", "`ended`; HTTP: 503"),
        ("an offer that does not connect", "webrtc.CONNECT_SECONDS", "s", "the picture's connection is closed"),
        ("silence of a receiver", "webrtc.SILENCE_SECONDS", "s", "the picture's connection is closed"),
        ("a live viewer who fetches no picture", "hub.PICTURE_SECONDS", "s", "the session ends"),
        ("absence after a broken connection", "hub.GRACE_SECONDS", "s", "the session is parked"),
        ("answer of an idle viewer who was asked (`--idle`)", "fairness.ASKED_SECONDS", "s", "the session is parked"),
        ("two deaths of the engine at work for one session", "hub.FORGIVEN_SECONDS", "s", "the session ends"),
        (
            "frames on their way over /frames",
            "frames.MOST_AHEAD_SECONDS",
            "s",
            "no more are sent, the world waits",
        ),
        ("messages of /frames", "frames.SAID_A_SECOND", "a second", "the connection is closed"),
        ("messages of /frames at once", "frames.SAID_AT_ONCE", "", "the same"),
        ("length of a message of /frames", "frames.MAX_TEXT", "characters", "the connection is closed"),
        ("controls whose time until a frame obeys them is measured", "viewer.MAX_STEERED", "", "no figure in /metrics"),
        ("from one news of the line to the next for those in it", "hub.LINE_SECONDS", "s", "changes are told together"),
        ("who watches one session, `--spectators`", "audience.SPECTATORS", "", "`ended`; WHEP: 503"),
        ("bitrate, `--max-bitrate`", "codec.MAX_BITRATE", "bit/s", "quality falls"),
    ],
    "Parked sessions": [
        ("number", "archive.MAX_SESSIONS", "", "the oldest is deleted"),
        ("all together", "archive.MAX_BYTES", "bytes", "the oldest is deleted"),
        ("age", "archive.MAX_SECONDS", "s", "it is deleted"),
    ],
    "The process": [
        (
            "silence of the engine when a chunk like those before it is due (or five chunk times, if that is more)",
            "worker.HANG_SECONDS",
            "s",
            "it is ended and started again; also when it does nothing meanwhile. Waiting for a processor is no silence",
        ),
        ("so many times as long, however busy the machine is", "worker.LONGEST_WAITS", "", "the same"),
        ("its silence over a new prompt, while it is at work", "worker.PATIENCE_SECONDS", "s", "the same"),
        ("pause between starts of an engine that dies", "worker.LONGEST_PAUSE_SECONDS", "s", "it grows up to this"),
        ("wait for a STUN or TURN server", "ice.SERVER_SECONDS", "s", "the answer goes without it"),
        (
            "wait for what the live sessions are when the server ends",
            "server.DRAIN_SECONDS",
            "s",
            "what was kept before counts",
        ),
        ("pages that read why their session ends, then", "server.LAST_WORDS_SECONDS", "s", "they are cut off"),
        ("open requests when the server ends", "serve.SHUTDOWN_SECONDS", "s", "they are cut off"),
    ],
}

_HEAD = """\
# Limits

Made from the code by `python -m stream.limits --write`; change it in stream/limits.py.

What is beyond a limit is refused in a sentence that says what would be right, and changes nothing for anyone else.
"""


def constants() -> set[str]:
    """The names of all constants in the tables, such as `server.FLOOD`."""
    return {name for rows in _TABLES.values() for _, name, _, _ in rows}


def markdown() -> str:
    """docs/limits.md as it must be for the constants of the code."""
    parts = [_HEAD]
    for title, rows in _TABLES.items():
        lines = [f"| {what} | {_value(name, unit)} | {then} | `{name}` |" for what, name, unit, then in rows]
        parts.append(f"## {title}\n\n| what | limit | beyond it | constant |\n|---|---|---|---|\n" + "\n".join(lines))
    return "\n".join(parts).replace("\n## ", "\n\n## ").replace("\n\n\n", "\n\n") + "\n"


def _value(name: str, unit: str) -> str:
    """A constant as it is now, in words."""
    module, _, constant = (name if name.startswith("pipeline.") else f"stream.{name}").rpartition(".")
    value: Any = getattr(importlib.import_module(module), constant)
    if unit == "bytes":
        power = max(power for power in (0, 1, 2, 3) if value >= 1024**power)
        value, unit = value / 1024**power, ("bytes", "KiB", "MiB", "GiB")[power]
    number = f"{value:g}" if value < 1e6 else f"{value:,.0f}".replace(",", " ")
    return f"{number} {unit}".strip()


def main(argv: list[str] | None = None) -> int:
    """Print docs/limits.md. --write puts it into place; --check ends with 1 if it is stale."""
    parser = argparse.ArgumentParser(prog="python -m stream.limits", description=main.__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    if options.write:
        DOCUMENT.write_text(markdown())
    elif not options.check:
        print(markdown(), end="")
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != markdown():
        print(f"{DOCUMENT.name} is stale: run python -m stream.limits --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
