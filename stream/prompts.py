"""Prompts are what somebody typed: no log shows one unless it was asked for (`serve --log-prompts`)."""

import logging
from collections import OrderedDict

from pipeline.chunk import Session

log = logging.getLogger(__name__)

REMEMBERED = 512
SHORTEST = 4
"""Characters of a prompt that is looked for in a log: a shorter one says nothing, and is part of any word."""
MASK = "(a prompt)"


class Prompts:
    """The newest prompts, which are taken out of what is logged; with `shown` each is logged instead."""

    def __init__(self, shown: bool = False) -> None:
        self._shown = shown
        self._newest: OrderedDict[str, None] = OrderedDict()

    def note(self, session: str, prompt: str | None) -> None:
        """A session has this prompt now; None is none."""
        if not prompt:
            return
        if self._shown:
            log.info("%s: %r", session, prompt)
        self._newest[prompt] = None
        self._newest.move_to_end(prompt)
        if len(self._newest) > REMEMBERED:
            self._newest.popitem(last=False)

    def masked(self, text: str) -> str:
        """The text without the prompts, also where they stand as Python writes them."""
        if self._shown:
            return text
        for prompt in sorted(self._newest, key=len, reverse=True):
            for written in (prompt, repr(prompt)[1:-1]):
                if len(written) >= SHORTEST:
                    text = text.replace(written, MASK)
        return text

    def guard_logs(self) -> None:
        """Let all that this process logs, from warnings on, go to stderr through here."""
        handler = logging.StreamHandler()
        handler.setFormatter(_Masking(self))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        log.setLevel(logging.INFO)


class _Masking(logging.Formatter):
    def __init__(self, prompts: Prompts) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._prompts = prompts

    def format(self, record: logging.LogRecord) -> str:
        return self._prompts.masked(super().format(record))


def prompts_of(data: Session) -> list[str]:
    """All prompts of a session as plain data; the last one is in force. The first may be empty, as in its spec."""
    later = [*(event.prompt for event in data.events), data.waiting and data.waiting.prompt]
    return [data.spec.prompt, *(prompt for prompt in later if prompt)]
