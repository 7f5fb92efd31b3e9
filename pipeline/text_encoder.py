"""Prompts to text embeddings: UMT5 through transformers, and a cache in front of any encoder.

R rows, one for each token of the prompt; D width of an embedding.
"""

import hashlib
import html
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.device import to_device

if TYPE_CHECKING:  # importing it takes seconds, which a model with another text encoder need not pay
    from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

MAX_TOKENS = 512
CACHED_PROMPTS = 64  # at most 4 MB each for the public models


class EncodedPrompt(NamedTuple):
    """rows: (R, D); scene: how the prompt was understood; unknown_words: what was not; guessed_words: as in a Chunk."""

    rows: Tensor
    scene: str
    unknown_words: tuple[str, ...]
    guessed_words: tuple[tuple[str, str], ...] = ()


class TextEncoder(Protocol):
    def encode(self, prompt: str) -> EncodedPrompt: ...

    def merge(self, previous: str, prompt: str) -> str:
        """The whole prompt that holds once `prompt` is said on top of `previous`."""


def clean_prompt(prompt: str) -> str:
    """Mend broken Unicode, resolve HTML entities (twice: they arrive doubly escaped), collapse white space."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split())


class UMT5Encoder:
    """umt5-xxl; only the rows of real tokens go on, which the transformer pads."""

    def __init__(self, model: "UMT5EncoderModel", tokenizer: "PreTrainedTokenizerBase"):
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode(self, prompt: str) -> EncodedPrompt:
        """At most 512 tokens with the end token; what is longer is cut off. rows: (R, 4096)."""
        text = clean_prompt(prompt)
        tokens = self.tokenizer(text, max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        (rows,) = encode_tokens(self.model, tokens.input_ids, tokens.attention_mask)
        return EncodedPrompt(rows, text, ())

    def merge(self, previous: str, prompt: str) -> str:
        """A sentence stands for itself: the new one replaces the old one."""
        return prompt


def encode_tokens(model: "UMT5EncoderModel", ids: Tensor, mask: Tensor) -> list[Tensor]:
    """ids, mask: (B, S) int64, mask 1 for real tokens. Returns for each prompt the rows of its real tokens, (R, D)."""
    kept = [row.nonzero().squeeze(1) for row in mask.cpu()]  # found on the host, which then waits for no device
    there = model.device
    hidden = model(input_ids=to_device(ids, there), attention_mask=to_device(mask, there)).last_hidden_state
    return [rows.index_select(0, to_device(index, rows.device)) for rows, index in zip(hidden, kept, strict=True)]


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Raises ValueError that names the folder when it holds no tokenizer."""
    if not folder.is_dir():
        raise ValueError(
            f"there is no tokenizer: {folder} is no folder (it should be google/umt5-xxl of the checkpoint)"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tokenizer in {folder} cannot be read: {error}") from error


class PromptCache:
    """Remembers what an encoder made of a prompt; the key is the sha256 of the cleaned prompt.

    Bounded: the prompt that was not asked for the longest is forgotten first.
    """

    def __init__(self, encoder: TextEncoder, capacity: int = CACHED_PROMPTS):
        """Raises ValueError for a capacity below 1."""
        if capacity < 1:
            raise ValueError(f"the prompt cache has room for {capacity} prompts; it takes at least 1")
        self._encoder = encoder
        self._capacity = capacity
        self._entries: OrderedDict[str, EncodedPrompt] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def encode(self, prompt: str) -> EncodedPrompt:
        text = clean_prompt(prompt)
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if key not in self._entries:
            self._entries[key] = self._encoder.encode(text)
        self._entries.move_to_end(key)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        return self._entries[key]

    def merge(self, previous: str, prompt: str) -> str:
        return self._encoder.merge(previous, prompt)

    def clear_text_cache(self) -> None:
        self._entries.clear()
