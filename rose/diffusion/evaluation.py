"""Effects of pruning on a diffusion model: drift by step, denoising loss by t, and the Fréchet distance.

Drift needs only the two models. Loss and distance need the packaged model's real pictures and classifier. That model is
a class-conditional DiT (Peebles and Xie 2023), which draws ten classes of garments in 28 × 28 grey pixels. It was
trained on Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT licence) by `tests/benchmarks/garments.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rose.diffusion.steps import STEPS
from rose.diffusion.trajectory import DrawOptions, Trajectory, denoiser_of, record_trajectory
from rose.errors import RoseError, is_whole

GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
ANY = len(GARMENTS)  # the class that means "no class", for guidance
SIDE = 28
FOLDER = Path(__file__).with_name("tiny")
LOSS_TIMES = tuple(range(50, 1000, 100))  # of the scheduler's 1000
PICTURES = 200  # unless told
FEATURE_BATCH = 500


class Classifier(nn.Module):
    """A small convolutional network; its last hidden layer is the feature space of the Fréchet distance. Pictures (n,
    1, 28, 28) between −1 and 1 -> logits (n, 10)."""

    FEATURES = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 7 * 7, self.FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(self.FEATURES, len(GARMENTS))

    def features(self, pictures: Tensor) -> Tensor:
        """(n, 1, 28, 28) -> (n, 64)."""
        return self.body(pictures)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.features(pictures))


LEAST_PICTURES = Classifier.FEATURES + 1  # for a covariance of full rank


def load_classifier() -> Classifier:
    """The packaged classifier, in evaluation mode."""
    classifier = Classifier()
    classifier.load_state_dict({k: v.float() for k, v in load_file(FOLDER / "classifier.safetensors").items()})
    return classifier.eval().requires_grad_(False)


def load_references() -> dict[str, Tensor]:
    """Facts about 10 000 real pictures that were not trained on: "mean" (64,) and "covariance" (64, 64) of the
    classifier's features; 256 "pictures", (256, 1, 28, 28) between −1 and 1, and their "classes", (256,) int64."""
    tensors = load_file(FOLDER / "references.safetensors")
    tensors["pictures"] = tensors["pictures"].float() / 127.5 - 1
    tensors["classes"] = tensors["classes"].long()
    return tensors


@dataclass(frozen=True)
class DiffusionScores:
    """Measurements of one model.

    Attributes:
        drift: see `trajectory_drift`; empty without a dense model.
        loss_times, loss: t, and the mean squared error of the predicted v there, on real pictures that were not trained
            on.
        frechet, accuracy: see `judge_pictures`; `pictures` were drawn for them.
    """

    drift: tuple[float, ...]
    loss_times: tuple[int, ...]
    loss: tuple[float, ...]
    frechet: float
    accuracy: float
    pictures: int
    seconds: float


def evaluate_diffusion(
    pipeline: Any,
    dense: Trajectory | None = None,
    *,
    pictures: int = PICTURES,
    steps: int = STEPS,
    seed: int = 0,
    guidance: float | None = None,
    tick: Callable[[float], Any] | None = None,
) -> DiffusionScores:
    """Measures the packaged model, dense or pruned.

    Args:
        dense: the dense model's `evaluation_trajectory` with the same arguments; None leaves the drift out.
        pictures: drawn, the ten classes in turn.
        steps, seed, guidance: see `rose.record_trajectory`.
        tick: called with the share done, 0 to 1; may raise to stop.

    Raises RoseError for another model, too few pictures for the Fréchet distance, or a dense trajectory of another run.
    """
    check_garments(pipeline)
    check_pictures(pictures)
    if dense is not None and dense.states.shape[:2] != (steps, pictures):
        raise RoseError("The dense trajectory has other steps or pictures; draw both with the same numbers.")
    began = time.perf_counter()
    drawing: DrawOptions = {"steps": steps, "seed": seed, "guidance": guidance}
    trajectory = evaluation_trajectory(pipeline, pictures=pictures, tick=tick, **drawing)
    if dense is not None and not torch.equal(dense.states[0], trajectory.states[0]):
        raise RoseError("The dense trajectory began with other noise; draw both with the same pictures and seed.")
    distance, accuracy = judge_pictures(trajectory.pictures)
    references = load_references()
    loss = tuple(denoising_loss(pipeline, references["pictures"], references["classes"], seed=seed).tolist())
    drift = () if dense is None else tuple(trajectory_drift(trajectory, dense).tolist())
    return DiffusionScores(drift, LOSS_TIMES, loss, distance, accuracy, pictures, time.perf_counter() - began)


def check_pictures(pictures: int) -> None:
    """Raises RoseError where these are too few for the Fréchet distance."""
    if not is_whole(pictures) or pictures < LEAST_PICTURES:
        raise RoseError(f"The Fréchet distance needs at least {LEAST_PICTURES} pictures, not {pictures!r}.")


def evaluation_trajectory(
    pipeline: Any,
    *,
    pictures: int = PICTURES,
    tick: Callable[[float], Any] | None = None,
    **options: Unpack[DrawOptions],
) -> Trajectory:
    """The trajectory of the pictures that `evaluate_diffusion` judges; arguments as there."""
    options.setdefault("batch", 100)
    return record_trajectory(pipeline, classes_in_turn(pictures), tick=tick, **options)


def judge_pictures(pictures: Tensor) -> tuple[float, float]:
    """Fréchet distance to real pictures, and the share that the classifier assigns to the requested class.
    `pictures`: (n, 1, 28, 28), the ten classes in turn; values outside −1 to 1 are clamped."""
    classifier, real = load_classifier(), load_references()
    features = torch.cat([classifier.features(part) for part in pictures.clamp(-1, 1).split(FEATURE_BATCH)])
    classes = torch.tensor(classes_in_turn(len(pictures)))
    accuracy = (classifier.head(features).argmax(1) == classes).float().mean()
    features = features.double()
    return frechet_distance(features.mean(0), features.T.cov(), real["mean"], real["covariance"]), float(accuracy)


def classes_in_turn(pictures: int) -> list[int]:
    """This many class labels, 0 to 9 in turn."""
    return [number % len(GARMENTS) for number in range(pictures)]


def is_garments(pipeline: Any) -> bool:
    """Whether this is the packaged model, dense or pruned."""
    config = denoiser_of(pipeline).config
    sizes = [getattr(config, name, None) for name in ("sample_size", "num_embeds_ada_norm")]
    return sizes == [SIDE, len(GARMENTS)]


def check_garments(pipeline: Any) -> None:
    """Raises RoseError unless this is the packaged model, dense or pruned."""
    if not is_garments(pipeline):
        raise RoseError(
            "Loss and Fréchet distance are measured for the packaged model only, since they need its real pictures and "
            "its classifier; for other pipelines compare trajectories."
        )


def trajectory_drift(pruned: Trajectory, dense: Trajectory) -> Tensor:
    """‖x_t − x_t dense‖ / ‖x_t dense‖ before each step and, last, of the pictures; mean over pictures, (steps + 1,).
    Raises RoseError for trajectories with different steps or pictures."""
    if pruned.states.shape != dense.states.shape or pruned.times != dense.times:
        raise RoseError("The two trajectories have different steps or pictures; draw both with the same numbers.")
    ways = zip([*pruned.states, pruned.pictures], [*dense.states, dense.pictures], strict=True)
    shares = []
    for state, other in ways:
        apart, size = (state - other).flatten(1).norm(dim=1), other.flatten(1).norm(dim=1)
        shares.append((apart / size.clamp_min(torch.finfo(size.dtype).tiny)).mean())
    return torch.stack(shares)


@torch.no_grad()
def denoising_loss(pipeline: Any, pictures: Tensor, classes: Tensor, *, seed: int = 0) -> Tensor:
    """Mean of (v̂ − v)² at each of `LOSS_TIMES`, on real pictures (n, 1, 28, 28) between −1 and 1. The model predicts
    v = √ᾱ·ε − √(1 − ᾱ)·x₀; ε is the same for every t."""
    denoiser = denoiser_of(pipeline)
    parameter = next(denoiser.parameters())
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    losses = []
    for t in LOSS_TIMES:
        signal = float(pipeline.scheduler.alphas_cumprod[t])
        a, b = signal**0.5, (1 - signal) ** 0.5
        noisy = (a * pictures + b * noise).to(parameter)
        at = torch.full((len(noisy),), t, device=parameter.device)
        predicted = denoiser(noisy, timestep=at, class_labels=classes.to(parameter.device)).sample
        losses.append((predicted.float().cpu() - (a * noise - b * pictures)).square().mean())
    return torch.stack(losses)


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½) of two normal distributions (Dowson and Landau 1982); Σ is (features,
    features). The root has the trace of (Σ^½ Σ' Σ^½)^½, which is symmetric."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    common = torch.linalg.eigvalsh(root @ other_covariance.double() @ root).clamp_min(0).sqrt().sum()
    apart = (mean.double() - other_mean.double()).square().sum()
    return float(apart + covariance.double().trace() + other_covariance.double().trace() - 2 * common)
