import math

import public_checkpoint
import pytest
import torch

from pipeline import memory
from pipeline.checkpoint import UMT5_XXL, _umt5
from pipeline.engine import GLOBAL_CONTEXT, build
from pipeline.presets import PRESETS, at_precision, find_preset
from pipeline.vae import WanVAE, WanVAEConfig
from pipeline.vae_precision import at_vae_precision

FRAME = 1560  # tokens of a latent frame


def test_the_peak_counts_what_lives_at_once_and_not_what_lived():
    kept = torch.zeros(1000)  # there before: not counted

    def run():
        first = kept + 1  # 4000 bytes
        second = torch.cat((first, first))  # 8000 more
        del first
        return (second.view(2, -1) + 1).sum()  # 8000 more; a view costs nothing

    assert memory._peak(run) == pytest.approx(16004, abs=16)


def test_the_rehearsal_without_numbers_finds_what_a_real_stream_keeps_and_takes(monkeypatch):
    monkeypatch.setattr(memory, "WanVAE", lambda: WanVAE(public_checkpoint.VAE))
    vae = memory.WanVAE().eval().requires_grad_(False)
    with torch.inference_mode():
        decoder, latent = vae.decoder(), torch.zeros(16, 1, 4, 6)  # the engine decodes a chunk one by one
        decoder.decode(latent)
        peak = memory._peak(lambda: decoder.decode(latent))
        with memory.META:
            rehearsed = memory._vae_needs.__wrapped__("wan", "exact", (16, 3, 4, 6), 32, 48, False)
    assert rehearsed.weights == sum(each.nbytes for each in vae.parameters())
    assert rehearsed.kept == sum(each.nbytes for each in memory._tensors(decoder))
    assert rehearsed.decoding == pytest.approx(peak, rel=0.05)


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["fp16", "rows", "rows-fp16"])
def test_another_vae_precision_is_counted_as_it_is_made(monkeypatch, precision):
    monkeypatch.setattr(memory, "WanVAE", lambda: WanVAE(WanVAEConfig(dim=16)))
    vae = memory.WanVAE().eval().requires_grad_(False)
    made = at_vae_precision(vae, precision, (4, 6))
    decoder = made.decoder()
    decoder.decode(torch.zeros(16, 2, 4, 6))
    with memory.META:
        exact, rehearsed = (
            memory._vae_needs.__wrapped__("wan", name, (16, 3, 4, 6), 32, 48, False) for name in ("exact", precision)
        )
    if precision == "fp16":
        assert rehearsed.weights == exact.weights / 2 and rehearsed.kept == exact.kept / 2
        assert rehearsed.kept == sum(each.nbytes for each in memory._tensors(decoder))
    else:  # the encoder's in 16 bits, and the decoder's as its kernels want them
        encoder = [*vae._modules["encoder"].parameters(), *vae.conv1.parameters()]
        own = list(memory._tensors([made._weights]))
        assert rehearsed.weights == memory._bytes(own) + sum(2 * each.numel() for each in encoder)
        tables = [each for program in decoder._programs.values() for each in memory._tensors([program])]
        assert rehearsed.kept == memory._bytes(set(memory._tensors(decoder)) - {*own, *tables})


def test_fp8_linears_are_counted_in_bytes_with_their_scales():
    preset = find_preset("lingbot-world-v2-1.3b")
    plain, fp8 = (memory.needs(at_precision(preset, name), 21) for name in ("bf16", "fp8"))
    config = preset.transformer
    linears = config.layers * (12 * config.dim**2 + 2 * config.dim * config.ffn_dim)
    scales = config.layers * (13 * config.dim + config.ffn_dim)
    assert plain.weights - fp8.weights == linears - 4 * scales
    assert fp8.parameters == plain.parameters and fp8.denoising == plain.denoising


def test_the_text_encoder_is_counted_as_transformers_builds_it():
    with torch.device("meta"):
        model = _umt5(UMT5_XXL)()
    assert memory._text_bytes(find_preset("lingbot-world-fast")) == 2 * sum(each.numel() for each in model.parameters())


def test_the_cache_is_counted_by_window_and_by_slot():
    need = memory.needs(find_preset("wan2.1-1.3b-longlive"), context=99)
    # keys and values, bfloat16, 30 layers, 12 latent frames; the time channels of a sink's keys, 44 of 128, once more
    assert need.cache == 2 * 2 * 30 * 12 * FRAME * 1536 + 2 * 30 * 3 * FRAME * 12 * 44
    more = need.total(2) - need.total(1)
    assert more == need.cache + need.kept + need.denoising[2] - need.denoising[1]


def test_without_a_window_the_cache_is_as_long_as_it_is_told_to_be():
    preset = public_checkpoint.small("lingbot-world-fast")
    short, long = (memory.needs(preset, context).cache for context in (6, 60))
    assert long - short == 2 * 2 * 2 * 54 * math.prod(preset.token_grid) * 24


def test_the_table_has_a_line_for_each_preset_in_straight_columns():
    presets = [find_preset("tiny"), public_checkpoint.small("lingbot-world-v2-1.3b")]
    head, *rows = memory.describe(presets, GLOBAL_CONTEXT).splitlines()
    for row, preset in zip(rows, presets, strict=False):
        assert row.startswith(f"{preset.name} ") and row[head.index("what") :] == preset.summary
        assert row[: head.index("parameters") + len("parameters")].endswith(("e6", "e9"))
    assert rows[2] == "" and "1 slot, 2 slots: GPU memory" in "\n".join(rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("slots", [1, 2])
def test_the_estimate_is_near_what_a_gpu_measures(slots):
    name = "wan2.1-1.3b-self-forcing"
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    build(name, "random", slots=slots, device="cuda", schedule="batch").prewarm()
    measured = torch.cuda.max_memory_allocated() - before
    need = memory.needs(PRESETS[name], GLOBAL_CONTEXT)
    estimate = need.total(slots) - need.text  # random weights come without a text encoder
    assert 0.75 < measured / estimate < 1.25, (measured, estimate)
