"""Trains the packaged tiny model: python -m tests.benchmarks.garments --output FOLDER

Seeded, on one thread, so that the same machine and versions give the same bits. Snapshots are kept beside
the output, and the same command resumes from the last one. The pictures are Fashion-MNIST's four idx files, such as
those of Debian's package `dataset-fashion-mnist`; nothing of them is needed to use the model.

The denoiser learns v = √ᾱ·ε − √(1 − ᾱ)·x₀ (Salimans and Ho 2022) with a cosine schedule of zero terminal SNR
(Nichol and Dhariwal 2021; Lin et al. 2024); a tenth of the classes are hidden, for guidance (Ho and Salimans 2022).
"""

import argparse
import gzip
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from rose.diffusion.loading import ANY, FOLDER

SIDE = 28  # pixels
DENOISER = {
    "num_attention_heads": 4,
    "attention_head_dim": 36,
    "num_layers": 4,
    "in_channels": 1,
    "out_channels": 1,
    "sample_size": SIDE,
    "patch_size": 7,
    "num_embeds_ada_norm": ANY,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": True,
}
DATA = Path("/usr/share/datasets/fashion-mnist")
HIDDEN_CLASSES = 0.1
WARM_UP = 200
SEED, RATE, DECAY = 0, 1.5e-3, 0.998  # highest learning rate; decay of the mean of the weights


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the model and writes its folder."""
    parser = argparse.ArgumentParser(description="Train the packaged diffusion model on Fashion-MNIST.")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the four .gz files (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=FOLDER, help="default: where the package looks for it")
    parser.add_argument("--snapshot", type=Path, default=Path("garments.snapshot.pt"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1650, help="of the denoiser (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="pictures a step (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not (options.data / "train-images-idx3-ubyte.gz").is_file():
        parser.error(f"{options.data} lacks train-images-idx3-ubyte.gz; install dataset-fashion-mnist or give --data")
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    pictures, classes = read_pictures(options.data)
    facts: dict[str, Any] = {"denoiser": train_denoiser(options, pictures, classes)}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    facts["versions"] = versions
    facts["data"] = "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), MIT licence"
    (options.output / "made.json").write_text(json.dumps(facts, indent=1) + "\n")
    options.snapshot.unlink(missing_ok=True)


def read_pictures(folder: Path) -> tuple[Tensor, Tensor]:
    """Pictures (n, 1, 28, 28) between −1 and 1, and classes (n,) int64, from idx files (LeCun's format)."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        raw = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8, offset=16)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8, offset=8)
    return raw.view(-1, 1, SIDE, SIDE).float() / 127.5 - 1, labels.long()


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of one epoch after another, shuffled; an incomplete last batch is left out."""
    while True:
        yield from torch.randperm(count, generator=generator)[: count // size * size].split(size)


def train_denoiser(options: argparse.Namespace, pictures: Tensor, classes: Tensor) -> dict[str, Any]:
    """Trains the DiT, from a snapshot where there is one; returns what made.json says of it."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = DiTTransformer2DModel(**DENOISER)
    # Its own dropout of classes draws anew in every block, so that no picture would be without a class in all of
    # them: classes are hidden here, and the model stays in evaluation mode, which changes nothing else.
    model.eval()
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, options.steps))
    signal = DDIMScheduler(**SCHEDULER).alphas_cumprod
    first, seconds = 0, 0.0
    losses: list[list[float]] = []  # step, and the mean loss since the one before
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if options.snapshot.is_file():
        snapshot = torch.load(options.snapshot)
        for name, part in parts.items():
            part.load_state_dict(snapshot[name])
        generator.set_state(snapshot["generator"])
        mean, first, losses, seconds = snapshot["mean"], snapshot["step"], snapshot["losses"], snapshot["seconds"]
    epoch = iter(batches(len(pictures), options.batch, torch.Generator().manual_seed(SEED + 1)))
    for _ in range(first):
        next(epoch)
    began, temporary = time.perf_counter(), options.snapshot.with_suffix(".tmp")
    running: list[float] = []
    for step in range(first, options.steps):
        chosen = next(epoch)
        loss = denoising_loss(model, signal, pictures[chosen], classes[chosen], generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(DECAY, (step + 1) / (step + 10))
        for name, value in model.state_dict().items():
            mean[name].lerp_(value, 1 - decay)
        running.append(float(loss.detach()))
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            losses.append([step + 1, round(sum(running) / len(running), 5)])
            spent = seconds + time.perf_counter() - began
            print(f"step {step + 1}: loss {losses[-1][1]:.4f}, {spent:.0f} s", flush=True)
            running = []
            state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
            state |= {"generator": generator.get_state(), "mean": mean}
            torch.save(state | {"step": step + 1, "losses": losses, "seconds": spent}, temporary)
            temporary.replace(options.snapshot)  # whole or not at all
    model.load_state_dict(mean)
    model.half().save_pretrained(options.output)
    DDIMScheduler(**SCHEDULER).save_pretrained(options.output)
    return {
        "seed": SEED,
        "steps": options.steps,
        "batch": options.batch,
        "learning_rate": RATE,
        "mean_of_weights_decay": DECAY,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss_by_step": losses,
    }


def denoising_loss(
    model: nn.Module, signal: Tensor, pictures: Tensor, classes: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean of (v̂ − v)² at one random t for each picture."""
    count = len(pictures)
    times = torch.randint(len(signal), (count,), generator=generator)
    noise = torch.randn(pictures.shape, generator=generator, dtype=torch.float32)
    shown = torch.where(torch.rand(count, generator=generator, dtype=torch.float32) < HIDDEN_CLASSES, ANY, classes)
    a, b = (part.sqrt().view(-1, 1, 1, 1) for part in (signal[times], 1 - signal[times]))
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(a * pictures + b * noise, times, shown).sample
    return F.mse_loss(predicted.float(), a * noise - b * pictures)


def rate_at(step: int, steps: int) -> float:
    """Share of the highest learning rate: a linear rise, a plateau, and a linear fall to zero over the last 15 %."""
    return max(0.0, min(1.0, (step + 1) / WARM_UP, (steps - step) / (0.15 * steps)))


if __name__ == "__main__":
    main()
