"""The corruption suite: 15 kinds, each at 5 severities, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchsr.threats import corruptions

CIFAR = "CIFAR-10-C (Hendrycks and Dietterich 2019), whose images are as small as LR crops"
OURS = "ours"


@dataclass(frozen=True)
class Kind:
    """One kind of corruption: the function, its settings from severity 1 to 5, and their source."""

    title: str
    make: Callable[..., Tensor]
    source: str
    settings: Mapping[str, Sequence[float | int | str]]

    def at(self, severity: int) -> dict[str, float | int | str]:
        """The settings at a severity from 1 to 5."""
        return {name: values[severity - 1] for name, values in self.settings.items()}


SEVERITIES = (1, 2, 3, 4, 5)

KINDS: Mapping[str, Kind] = {
    "gaussian": Kind("Gaussian noise", corruptions.gaussian_noise, CIFAR, {"sigma": (0.04, 0.06, 0.08, 0.09, 0.1)}),
    "shot": Kind("Shot noise", corruptions.shot_noise, CIFAR, {"photons": (500.0, 250.0, 100.0, 75.0, 50.0)}),
    "impulse": Kind("Impulse noise", corruptions.impulse_noise, CIFAR, {"amount": (0.01, 0.02, 0.03, 0.05, 0.07)}),
    "speckle": Kind("Speckle noise", corruptions.speckle_noise, CIFAR, {"sigma": (0.06, 0.1, 0.12, 0.16, 0.2)}),
    "correlated": Kind(
        "Correlated noise", corruptions.correlated_noise, "Gaussian noise", {"sigma": (0.04, 0.06, 0.08, 0.09, 0.1)}
    ),
    "defocus": Kind(
        "Defocus blur",
        corruptions.defocus,
        CIFAR,
        {"radius": (0.3, 0.4, 0.5, 1.0, 1.5), "soft": (0.4, 0.5, 0.6, 0.2, 0.1)},
    ),
    "motion": Kind(
        "Motion blur",
        corruptions.motion_blur,
        "spread of the one-sided Gaussian of CIFAR-10-C (0.6 of its sigma) around the pixel; the last two ours",
        {"sigma": (0.6, 0.9, 1.2, 1.35, 1.5)},
    ),
    "softness": Kind(
        "Gaussian blur",
        corruptions.gaussian_blur,
        CIFAR,
        {"sigma": (0.4, 0.6, 0.7, 0.8, 1.0), "size": (9, 9, 9, 9, 9)},
    ),
    "jpeg": Kind("JPEG", corruptions.jpeg_file, CIFAR, {"quality": (80, 65, 58, 50, 40)}),
    "bits": Kind("Bit depth", corruptions.few_bits, OURS, {"bits": (6, 5, 4, 3, 2)}),
    "kernel": Kind(
        "Other kernels",
        corruptions.other_kernel,
        "Pillow's kernels beside bicubic, by how far LR is from it",
        {"kernel": ("lanczos", "hamming", "area", "bilinear", "nearest")},
    ),
    "cast": Kind("Colour cast", corruptions.colour_cast, "brightness", {"by": (0.05, 0.1, 0.15, 0.2, 0.3)}),
    "contrast": Kind("Contrast", corruptions.contrast, CIFAR, {"factor": (0.75, 0.5, 0.4, 0.3, 0.15)}),
    "brightness": Kind("Brightness", corruptions.brightness, CIFAR, {"by": (0.05, 0.1, 0.15, 0.2, 0.3)}),
    "pixelate": Kind("Pixelate", corruptions.pixelate, CIFAR, {"factor": (0.95, 0.9, 0.85, 0.75, 0.65)}),
}
"""Every kind of the suite; a threat of each severity is called `shot-3`."""
