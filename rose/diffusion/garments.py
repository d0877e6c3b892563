"""The packaged tiny diffusion model: ten classes of garments, 28 × 28 grey pixels, and the classifier that judges them.

A class-conditional DiT (Peebles and Xie 2023) in pixel space, trained on Fashion-MNIST (Xiao, Rasul and Vollgraf 2017,
MIT licence) by `tests/benchmarks/garments.py`.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
ANY = len(GARMENTS)  # the class that means "no class", for guidance
SIDE = 28
FOLDER = Path(__file__).with_name("tiny")


class Classifier(nn.Module):
    """A small convolutional network; its last hidden layer is the feature space of the Fréchet distance.

    Pictures (n, 1, 28, 28) between −1 and 1 -> logits (n, 10).
    """

    FEATURES = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, self.FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.FEATURES, len(GARMENTS))

    def features(self, pictures: Tensor) -> Tensor:
        """(n, 1, 28, 28) -> (n, 64)."""
        return self.body(pictures)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.features(pictures))


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
