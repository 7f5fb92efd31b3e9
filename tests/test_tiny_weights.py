"""What the shipped weights show, held against the renderer. All figures: python -m benchmarks.tiny_world."""

from types import SimpleNamespace

import torch

from benchmarks.tiny_rows import compared, scenes_of
from benchmarks.tiny_sessions import plan_sessions
from benchmarks.tiny_truth import Truth
from benchmarks.tiny_walks import PRESET, poses, run
from pipeline.engine import Engine
from pipeline.load import load_parts


def test_walks_under_changing_prompts_show_the_renderers_pictures_and_their_edges():
    engine = Engine(PRESET, load_parts(PRESET, None, torch.device("cpu")), slots=2)
    records = run(engine, "sessions", plan_sessions(4, seconds=4), SimpleNamespace(asked=False))
    kept = [(record, max(record.full)) for record in records]
    made = torch.stack([record.full[chunk] for record, chunk in kept])
    stands = torch.stack([poses(record.walk)[chunk + 1] for record, chunk in kept])
    scenes = torch.stack([scenes_of(record.walk, [chunk])[0] for record, chunk in kept])
    psnr, ssim, sharpness = compared(made, Truth("cpu").full(stands, scenes))
    assert psnr.mean() > 26 and ssim.mean() > 0.8
    assert 0.7 < sharpness.log().mean().exp() < 1.2
