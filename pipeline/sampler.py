"""Few-step flow matching as plain functions.

x_t = (1 - sigma) * x0 + sigma * noise, flow = noise - x0, so x0 = x_t - sigma * flow. Latents are (B, C, T, h, w).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TRAINING_STEPS = 1000
TOP_SIGMA = 0.999  # the LingBot grid runs from here to 0, not from 1


PREDICTIONS = ("flow", "sample")
"""What a model may give of a noisy chunk: the flow, noise - x0, or x0 itself."""


class Step(NamedTuple):
    """One denoising pass.

    sigma: the share of noise that its prediction assumes; timestep: what the model is told; renoise_sigma: the share of
    noise that its input gets when it follows another step.
    """

    sigma: float
    timestep: float
    renoise_sigma: float


CHUNK_NOISE, PLACE = 0, 1  # purposes of a session's random streams
CONTEXT = Step(0.0, 0.0, 0.0)  # the pass over the clean chunk that writes its keys and values


def steps_from_indexes(indexes: Sequence[int], shift: float) -> tuple[Step, ...]:
    """The LingBot schedule: places on a grid of 1000 from 0.999 down to 0, shifted; timesteps cut to whole numbers.

    Where several places share a whole timestep, the input is re-noised to the second of them. That is inferred from the
    golden files, whose flow is met to 5e-7 so and missed by 4e-4 with the step's own sigma; of their steps only index
    179 shows it. Raises ValueError unless 0 <= indexes < 1000 rise and shift > 0.
    """
    if not indexes or list(indexes) != sorted(set(indexes)) or not 0 <= indexes[0] <= indexes[-1] < TRAINING_STEPS:
        raise ValueError(f"the step indexes are {list(indexes)}; they must rise within 0 and {TRAINING_STEPS - 1}")
    grid = [_shifted(TOP_SIGMA * (1 - place / TRAINING_STEPS), shift) for place in range(TRAINING_STEPS)]
    whole = [int(sigma * TRAINING_STEPS) for sigma in grid]
    sharing = [[sigma for sigma, timestep in zip(grid, whole, strict=True) if timestep == whole[i]] for i in indexes]
    return tuple(Step(grid[i], float(whole[i]), same[:2][-1]) for i, same in zip(indexes, sharing, strict=True))


def steps_from_timesteps(timesteps: Sequence[float], shift: float) -> tuple[Step, ...]:
    """The Self-Forcing schedule: timesteps before the shift, such as 1000, 750, 500, 250; fractions are kept.

    Raises ValueError unless 0 < timesteps <= 1000 fall and shift > 0.
    """
    falling = sorted(set(timesteps), reverse=True)
    if not timesteps or list(timesteps) != falling or not TRAINING_STEPS >= timesteps[0] >= timesteps[-1] > 0:
        raise ValueError(
            f"the timesteps are {list(timesteps)}; they must fall from at most {TRAINING_STEPS} to above 0"
        )
    sigmas = [_shifted(timestep / TRAINING_STEPS, shift) for timestep in timesteps]
    return tuple(Step(sigma, sigma * TRAINING_STEPS, sigma) for sigma in sigmas)


def _shifted(sigma: float, shift: float) -> float:
    """shift * sigma / (1 + (shift - 1) * sigma): a shift above 1 spends more steps where there is much noise."""
    if not shift > 0:
        raise ValueError(f"the shift is {shift}; it must be positive")
    return shift * sigma / (1 + (shift - 1) * sigma)


def predict_clean(noisy: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """x0 = x_t - sigma * flow, computed in float64 as the model was trained, in the dtype of `noisy`."""
    return (noisy.double() - sigma * flow.double()).to(noisy.dtype)


def add_noise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """(1 - sigma) * clean + sigma * noise."""
    return (1 - sigma) * clean + sigma * noise


def noise(seed: int, chunk: int, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 noise on the CPU, a function of its arguments alone.

    So a session can be replayed, rewound and moved. Raises ValueError for a number that is not from 0 to 2^64 - 1.
    """
    generator = stream(seed, CHUNK_NOISE, chunk, step)
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def stream(seed: int, purpose: int, chunk: int = 0, step: int = 0) -> np.random.Generator:
    """A generator of its own for each set of arguments, all from 0 to 2^64 - 1.

    numpy's Philox, because torch's CPU generator keeps only 32 bits of a seed and its normals differ in the last bits
    between processors. Seed and purpose are its key, chunk and step the upper words of its counter: no two streams meet
    before one has given 2^128 numbers. (A SeedSequence of the four would mix up large seeds and late chunks.)
    """
    if min(seed, purpose, chunk, step) < 0:
        raise ValueError(f"seed, purpose, chunk and step count from 0: {seed}, {purpose}, {chunk}, {step}")
    key, counter = (np.array(words, np.uint64) for words in ((seed, purpose), (0, 0, step, chunk)))
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def denoise_chunk(
    steps: Sequence[Step],
    predict: Callable[[Tensor, int], Tensor],
    fresh_noise: Callable[[int], Tensor],
    prediction: str = "flow",
) -> Tensor:
    """From noise to the clean latents of one chunk.

    predict(noisy, i) is the model's output at steps[i], one of PREDICTIONS; fresh_noise(i) is the noise that enters
    before it. All of one shape, such as (B, C, T, h, w), which is the result's too.
    """
    clean = None
    for index, step in enumerate(steps):
        entering = fresh_noise(index)
        # The first step gets the noise itself although its sigma may be 0.9998: that is how the models were trained.
        noisy = entering if clean is None else add_noise(clean, entering, step.renoise_sigma)
        output = predict(noisy, index)
        clean = output if prediction == "sample" else predict_clean(noisy, output, step.sigma)
    assert clean is not None, "a schedule has at least one step"
    return clean
