"""How exactly the Wan VAE is computed: a name of VAE_PRECISIONS.

"exact" is float32 as torch computes it, whose convolutions on a GPU round what they multiply to TF32. "bf16" and "fp16"
compute all of it in 16 bits with channels last, as the units of a GPU want them, and let cuDNN choose each convolution
by timing. fp16 rounds eight times finer, as TF32 does, and holds no number beyond 65,504. "rows" decodes with the
kernels of kernels.conv (see pipeline.vae_rows) in bfloat16 and encodes as "bf16" does, "rows-fp16" in fp16 and as
"fp16" does. What each is off by, and how quick it is, `python -m benchmarks.vae` measures.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from kernels.conv import conv_missing
from pipeline.vae import VAE, StillEncoder, StreamingDecoder, WanVAE
from pipeline.vae_rows import RowDecoder, prepare, rows_missing

VAE_PRECISIONS = ("exact", "bf16", "fp16", "rows", "rows-fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "rows": torch.bfloat16, "rows-fp16": torch.float16}


def at_vae_precision(vae: VAE, precision: str, size: tuple[int, int]) -> VAE:
    """The VAE computed in that precision; size: height and width of the latents. `vae` itself stays as it is.

    Raises ValueError for another precision, for what is not the Wan VAE, and where the GPU, or the row decoder for a
    VAE of these sizes, cannot do it.
    """
    if precision not in VAE_PRECISIONS:
        raise ValueError(f"no VAE precision {precision!r}; it is one of {', '.join(VAE_PRECISIONS)}")
    if precision == "exact":
        return vae
    if not isinstance(vae, WanVAE):
        raise ValueError(f"the VAE precision {precision} is for the Wan VAE; this preset's own is always exact")
    if not precision.startswith("rows"):
        return HalfVAE(vae, DTYPES[precision])
    if reason := conv_missing(vae.conv1.weight.device) or rows_missing(vae.config):
        raise ValueError(f"the VAE precision {precision} cannot run: {reason}; bf16 can")
    return RowVAE(vae, DTYPES[precision], size)


def channels_last(vae: WanVAE) -> WanVAE:
    """The same, its convolutions' weights laid out anew; what they give is laid out so too."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return vae


class HalfVAE:
    """A copy of the weights in 16 bits, channels last."""

    def __init__(self, vae: WanVAE, dtype: torch.dtype):
        self._half, self.dtype = _copied(vae, dtype), dtype

    def decoder(self) -> StreamingDecoder:
        return _TunedDecoder(self._half.decoder())

    def encoder(self) -> StillEncoder:
        return _TunedEncoder(self._half.encoder())


class RowVAE(HalfVAE):
    """Decodes with the kernels of kernels.conv; the weights that these see are made once for all streams."""

    def __init__(self, vae: WanVAE, dtype: torch.dtype, size: tuple[int, int]):
        self.dtype, self._size = dtype, size
        self._half = _copied(vae, self.dtype, without=("decoder", "conv2"))
        self._weights = prepare(vae, self.dtype)

    def decoder(self) -> StreamingDecoder:
        return RowDecoder(self._weights, *self._size)


def _copied(vae: WanVAE, dtype: torch.dtype, without: Iterable[str] = ()) -> WanVAE:
    left_out = {id(vae._modules[name]): None for name in without}  # for deepcopy these are copied already, as None
    return channels_last(copy.deepcopy(vae, left_out).to(dtype))


class _TunedDecoder:
    """A StreamingDecoder whose convolutions cuDNN chooses by timing, at the first of each shape."""

    def __init__(self, decoder: StreamingDecoder):
        self._decoder = decoder
        self.reach = decoder.reach

    def reset(self) -> None:
        self._decoder.reset()

    def decode(self, latent: Tensor) -> Tensor:
        with _chosen_by_timing():
            return self._decoder.decode(latent)

    def decode_unclamped(self, latent: Tensor) -> Tensor:
        with _chosen_by_timing():
            return self._decoder.decode_unclamped(latent)


class _TunedEncoder:
    """The same for a StillEncoder."""

    def __init__(self, encoder: StillEncoder):
        self._encoder = encoder

    def encode_still(self, image: Tensor) -> Tensor:
        with _chosen_by_timing():
            return self._encoder.encode_still(image)


@contextlib.contextmanager
def _chosen_by_timing() -> Iterator[None]:
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
