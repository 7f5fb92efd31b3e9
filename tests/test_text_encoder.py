import pytest
import torch

from pipeline.text_encoder import EncodedPrompt, PromptCache, clean_prompt, encode_tokens, load_tokenizer


class Counting:
    """An encoder that remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def encode(self, prompt):
        self.asked.append(prompt)
        return EncodedPrompt(torch.zeros(len(prompt.split()), 4), prompt, ())

    def merge(self, previous, prompt):
        return f"{previous}, {prompt}"


def test_a_prompt_is_cleaned_of_entities_space_and_broken_unicode():
    assert clean_prompt("  a &amp;amp; b\n\tcafÃ© ") == "a & b café"


def test_a_repeated_prompt_is_encoded_once_however_it_is_spaced():
    encoder = Counting()
    cache = PromptCache(encoder)
    assert cache.encode("a  snowy\nforest ") is cache.encode("a snowy forest")
    assert encoder.asked == ["a snowy forest"]


def test_the_cache_is_bounded_and_forgets_what_was_not_asked_for_the_longest():
    encoder = Counting()
    cache = PromptCache(encoder, capacity=2)
    for prompt in ("one", "two", "one", "three", "one", "two"):
        cache.encode(prompt)
    assert encoder.asked == ["one", "two", "three", "two"]
    assert len(cache) == 2


def test_a_cleared_cache_encodes_again():
    encoder = Counting()
    cache = PromptCache(encoder)
    cache.encode("one")
    cache.clear_text_cache()
    cache.encode("one")
    assert encoder.asked == ["one", "one"]


def test_the_cache_leaves_merging_to_the_encoder():
    assert PromptCache(Counting()).merge("a forest", "at night") == "a forest, at night"


def test_a_cache_without_room_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        PromptCache(Counting(), capacity=0)


def test_only_the_rows_of_real_tokens_go_on():
    from transformers import UMT5Config, UMT5EncoderModel

    model = UMT5EncoderModel(UMT5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_heads=2, num_layers=1)).eval()
    ids = torch.tensor([[3, 4, 5, 1], [6, 1, 0, 0]])
    with torch.inference_mode():
        rows = encode_tokens(model, ids, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
        alone = encode_tokens(model, ids[1:, :2], torch.ones(1, 2, dtype=torch.int64))
    assert [len(row) for row in rows] == [4, 2]
    torch.testing.assert_close(rows[1], alone[0])


def test_a_missing_tokenizer_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="google/umt5-xxl is no folder"):
        load_tokenizer(tmp_path / "google/umt5-xxl")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)
