"""The regions of kernels.fused through torch.compile: one pass over the memory each, for fixed shapes.

What is compiled is kept on disk (kernels.caches).
"""

import warnings
from collections.abc import Callable

import torch

from kernels.caches import keep_on_disk
from kernels.fused import WHOLE_ROWS, Regions, quantizing

SHAPES = 64
"""How many shapes one region may meet in a process: presets, slots in a batch. Torch's own limit is 8."""


def compiled(quantized: bool, backend: str = "inductor", mode: str | None = None) -> Regions:
    """The regions, each compiled at its first call for each shape; `quantized`: for FP8 linears.

    The same result as kernels.fused.PLAIN gives but for rounding: between the steps of a region nothing is rounded to
    the dtype of the stream. `backend` and `mode` are those of torch.compile.
    """
    keep_on_disk()  # before the import, which settles on a folder
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    regions = quantizing(WHOLE_ROWS) if quantized else WHOLE_ROWS
    options = {"backend": backend, "mode": mode}
    return Regions(*(_Compiled(region, options) for region in regions))


class _Compiled:
    """A function compiled for each shape that it is called with; where that cannot be done, itself."""

    def __init__(self, function: Callable, options: dict):
        self._plain = function
        self._run = torch.compile(function, fullgraph=True, dynamic=False, **options)

    def __call__(self, *inputs):
        try:
            return self._run(*inputs)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            # No C compiler, no Triton, a folder that cannot be written, too many shapes: slower, but it runs.
            why = " ".join(str(error).split("\n")[:2])
            warnings.warn(f"a part of the model runs uncompiled and slower: {why}", RuntimeWarning, stacklevel=2)
            self._run = self._plain
            return self._plain(*inputs)
