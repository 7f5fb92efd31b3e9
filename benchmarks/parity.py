"""Compare the real path with golden files: `python -m benchmarks.parity FILE...`.

A golden file is safetensors: `weights.*` under the public checkpoint's names, `in.*`, `out.*`, and in the metadata key
`config` as JSON the kind (dit, vae, umt5, camera) and the sizes. The model is built from that and run through the code
that serves viewers: the streaming cache, the sampler's loop, the streaming decoder and encoder. For each output the
relative error ||ours - out|| / ||out|| is printed.

Exit status: 0 all within the tolerance, 1 an error above it or not a number, 2 a file that is no golden data.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline import camera, checkpoint, sampler
from pipeline.kv_cache import KVCache, sink_beside_chunk
from pipeline.text_encoder import encode_tokens
from pipeline.transformer import Transformer, TransformerConfig
from pipeline.vae import WanVAE, WanVAEConfig

TOLERANCE = 1e-4
CAMERA_NAMES = ("patch_embedding_wancamctrl.", "c2ws_hidden_states_", ".cam_injector_", ".cam_scale_", ".cam_shift_")

Outputs = Iterator[tuple[str, Tensor]]


class NotGolden(Exception):
    """The file is no golden data; the message says why."""


@dataclass(frozen=True)
class Golden:
    """One golden file, its tensors without the prefixes `weights.`, `in.` and `out.`."""

    path: Path
    config: dict
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def read(path: Path) -> Golden:
    """Raises NotGolden for a file that is missing, no safetensors, or without a usable config."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        config = json.loads(metadata["config"])
    except (OSError, SafetensorError) as error:
        raise NotGolden(f"{path} cannot be read as safetensors: {error}") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise NotGolden(f"{path} has no JSON under the metadata key 'config'") from error
    if not isinstance(config, dict) or config.get("kind") not in RUNNERS:
        raise NotGolden(f"{path}: the config's kind must be one of {', '.join(RUNNERS)}")
    groups = (
        {k.removeprefix(p): t for k, t in tensors.items() if k.startswith(p)} for p in ("weights.", "in.", "out.")
    )
    return Golden(path, config, *groups)


def run_dit(golden: Golden) -> Outputs:
    """Every chunk as the engine makes it: denoise, then the context pass, through one slot of a KVCache."""
    noise, step_noise = golden.inputs["noise"], golden.inputs["step_noise"]
    model = _transformer(golden)
    config = golden.config
    steps = _steps(config["sigmas"], config["timesteps"])
    times = [model.embed_time(torch.tensor([step.timestep])) for step in (*steps, sampler.CONTEXT)]
    text = model.embed_text(golden.inputs["text_embedding"][None])
    chunks, _, frames, h, w = noise.shape
    cache = _cache(golden, model.config, chunks * frames, frames, h * w // 4)
    flows, clean = [], []
    for chunk in range(chunks):
        view = cache.view([0], frames, h // 2, w // 2)
        camera = model.embed_camera(golden.inputs["plucker"][chunk, None]) if model.config.camera_channels else None
        condition = golden.inputs["y"][chunk, None] if "y" in golden.inputs else noise.new_empty(1, 0, frames, h, w)

        def flow(noisy: Tensor, step: int, view=view, camera=camera, condition=condition) -> Tensor:
            flows.append(model(torch.cat((noisy, condition), 1), times[step], text, camera, view))
            return flows[-1]

        def fresh(step: int, chunk=chunk) -> Tensor:
            return noise[chunk, None] if step == 0 else step_noise[chunk, None, step - 1]

        clean.append(sampler.denoise_chunk(steps, flow, fresh))
        model(torch.cat((clean[-1], condition), 1), times[-1], text, camera, view)
        cache.advance([0], frames)
    yield "flow", torch.cat(flows).unflatten(0, (chunks, -1))
    yield "x0", torch.cat(clean)


def _steps(sigmas: list[float], timesteps: list[float]) -> Sequence[sampler.Step]:
    """The schedule with these sigmas and timesteps, from the shift and the indexes that they betray.

    The first step is at index 0, as in every public schedule. Where that does not lead back to the given numbers, they
    are taken as they are.
    """
    top = sampler.TOP_SIGMA
    shift = round(sigmas[0] * (1 - top) / (top * (1 - sigmas[0])), 1) if sigmas[0] < 1 else 1.0
    places = [sigma / (shift - (shift - 1) * sigma) / top for sigma in sigmas]
    try:
        steps = sampler.steps_from_indexes([round((1 - place) * sampler.TRAINING_STEPS) for place in places], shift)
    except ValueError:
        steps = ()
    told = list(zip(sigmas, timesteps, strict=True))
    same = len(steps) == len(told) and all(
        abs(step.sigma - sigma) < 1e-6 and step.timestep == timestep
        for step, (sigma, timestep) in zip(steps, told, strict=True)
    )
    return steps if same else [sampler.Step(sigma, timestep, sigma) for sigma, timestep in told]


def _transformer(golden: Golden) -> Transformer:
    plucker, config, weights = golden.inputs.get("plucker"), golden.config, golden.weights
    if plucker is None:  # a file without camera control may still carry the layers for it
        weights = {name: t for name, t in weights.items() if not any(part in name for part in CAMERA_NAMES)}
    sizes = TransformerConfig(
        dim=config["dim"],
        ffn_dim=config["ffn_dim"],
        heads=config["num_heads"],
        layers=config["num_layers"],
        in_channels=config["in_dim"],
        out_channels=weights["head.head.weight"].shape[0] // 4,
        text_dim=config["text_dim"],
        time_frequencies=weights["time_embedding.0.weight"].shape[1],
        camera_channels=plucker.shape[1] if plucker is not None else 0,
    )
    return checkpoint.assemble(lambda: Transformer(sizes), weights, golden.path)


def _cache(golden: Golden, config: TransformerConfig, stream_frames: int, chunk: int, tokens: int) -> KVCache:
    window = golden.config["local_attn_size"]
    window, sink = (stream_frames, 0) if window == -1 else (window, golden.config["sink_size"])
    sink = sink_beside_chunk(window, sink, chunk)
    return KVCache(config.layers, 1, window, sink, tokens, config.heads, config.head_width, torch.float32, "cpu")


def run_vae(golden: Golden) -> Outputs:
    """Encode and decode a latent frame at a time, each stream of the batch by itself."""
    config, inputs = golden.config, golden.inputs
    sizes = WanVAEConfig(
        dim=config["dim"],
        latent_channels=config["z_dim"],
        multipliers=tuple(config["dim_mult"]),
        residual_blocks=config["num_res_blocks"],
        temporal_downsample=tuple(config["temporal_downsample"]),
        mean=tuple(inputs["mean"].tolist()),
        std=tuple(inputs["std"].tolist()),
    )
    vae = checkpoint.assemble(lambda: WanVAE(sizes), golden.weights, golden.path)
    if "video" in inputs:
        yield "encoded", torch.stack([_encode(vae, video) for video in inputs["video"]])
    if "latent" in inputs:
        decoded = torch.stack([_decode(vae, latent) for latent in inputs["latent"]])
        clamped = golden.outputs["decoded"].abs().max() <= 1
        yield "decoded", decoded.clamp(-1, 1) if clamped else decoded


def _encode(vae: WanVAE, video: Tensor) -> Tensor:
    stream = vae.encoder()
    groups = (video[:, :1], *video[:, 1:].split(vae.config.group, dim=1))
    return torch.cat([stream.encode(group) for group in groups if group.shape[1]], dim=1)


def _decode(vae: WanVAE, latent: Tensor) -> Tensor:
    stream = vae.decoder()
    return torch.cat([stream.decode_unclamped(frame) for frame in latent.split(1, dim=1)], dim=1)


def run_umt5(golden: Golden) -> Outputs:
    """Only the rows of real tokens, which are all that goes on to the transformer."""
    model = checkpoint.assemble_umt5(golden.weights, golden.path, golden.config)
    mask = golden.inputs["mask"]
    golden.outputs["hidden"] = golden.outputs["hidden"][mask.bool()]
    yield "hidden", torch.cat(encode_tokens(model, golden.inputs["ids"], mask))


def run_camera(golden: Golden) -> Outputs:
    """A recorded path to motions from frame to frame and to the folded map."""
    config, inputs = golden.config, golden.inputs
    motion = camera.recorded_motion(inputs["poses"], config["chunk"])
    height, width = config["height"], config["width"]
    intrinsics = camera.Intrinsics(*inputs["intrinsics"][0].double().tolist()).scaled(
        height / config["intrinsics_height"], width / config["intrinsics_width"]
    )
    directions = camera.ray_directions(intrinsics, height, width)
    flags = [tensor for name, tensor in inputs.items() if name not in ("poses", "intrinsics")]
    if flags:  # the actions of each video frame: the `act` variant
        plucker = camera.action_map(motion, directions, flags[0][:: camera.FRAMES_PER_LATENT][: len(motion)])
    else:
        plucker = camera.plucker_map(motion, directions)
    yield "poses_relative", motion
    yield "plucker", plucker[None]


RUNNERS: dict[str, Callable[[Golden], Outputs]] = {
    "dit": run_dit,
    "vae": run_vae,
    "umt5": run_umt5,
    "camera": run_camera,
}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs|| in float64; infinite for another shape."""
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def check(golden: Golden) -> bool:
    """Print the error of each output; whether all are within the tolerance."""
    fine = True
    with torch.inference_mode():
        for name, ours in RUNNERS[golden.config["kind"]](golden):
            error = relative_error(ours, golden.outputs[name])
            within = error <= TOLERANCE  # false for NaN
            print(f"{golden.path.name}: {name} {error:.2e} {'ok' if within else f'ABOVE {TOLERANCE:.0e}'}")
            fine &= within
    return fine


def _checked(path: Path) -> bool:
    golden = read(path)
    try:
        return check(golden)
    except KeyError as error:
        raise NotGolden(f"{path} lacks {error}, which golden data of kind {golden.config['kind']} has") from error
    except ValueError as error:
        raise NotGolden(f"{path} is not consistent: {error}") from error


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    try:
        results = [_checked(path) for path in parser.parse_args(argv).files]
    except NotGolden as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
