"""Which device, and tensors on their way to it."""

import torch
from torch import Tensor


def choose_device(name: str) -> torch.device:
    """Raises ValueError for an unknown device, and for "cuda" where torch sees no GPU."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"no device {name!r}; it is auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device; use --device cpu, or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; the host does not wait for the copy to a GPU."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
