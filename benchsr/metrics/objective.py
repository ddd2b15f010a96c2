"""What an attack raises and a generator's training lowers: per-image losses between SR and HR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchsr.base.errors import InputError, ModelError
from benchsr.base.pairs import SCALE
from benchsr.metrics.perceptual import vgg_trunk

PerceptualNet = Literal["vgg16", "vgg19"]


def per_image_mean(values: Tensor) -> Tensor:
    """Mean over all but the first dimension: (N, ...) -> (N,)."""
    return values.flatten(1).mean(1)


@dataclass(frozen=True)
class Objective:
    """L = l1_weight * L1 + perceptual_weight * L_percep (paper, section 3.1), a mean over elements for each image.

    L_percep is the mean absolute difference of features before the activation: VGG-19 conv5_4 as in the paper, or
    VGG-16 conv5_3 where VGG-19 cannot be had. A weight of zero leaves its term out altogether.
    """

    l1_weight: float = 1.0
    perceptual_weight: float = 1.0
    net: PerceptualNet = "vgg16"

    def __post_init__(self) -> None:
        if min(self.l1_weight, self.perceptual_weight) < 0 or self.l1_weight + self.perceptual_weight == 0:
            raise InputError(
                f"objective weights must be >= 0 and not both zero; got l1_weight={self.l1_weight}, "
                f"perceptual_weight={self.perceptual_weight}"
            )

    def features(self, images: Tensor) -> Tensor:
        """Perceptual features (N, 512, H/16, W/16) of `images` (N, 3, H, W) in [0, 1], in float32."""
        trunk: Tensor = vgg_trunk(self.net).to(images.device)(images)
        return trunk

    def bind(self, hr: Tensor) -> BoundObjective:
        """Fix the truth `hr` (N, 3, 4h, 4w) in [0, 1] and compute its features once."""
        with torch.no_grad():
            features = self.features(hr) if self.perceptual_weight else None
        return BoundObjective(self, hr, features)


@dataclass(frozen=True)
class BoundObjective:
    """An Objective with its truth: maps SR (N, 3, 4h, 4w) to one loss per image (N,), differentiable in SR."""

    objective: Objective
    hr: Tensor
    features: Tensor | None

    def components(self, sr: Tensor) -> dict[str, Tensor]:
        """The unweighted terms, each (N,): `l1`, and `perceptual` unless its weight is zero.

        Raises ModelError where `sr` has not the truth's shape.
        """
        if sr.shape != self.hr.shape:
            raise ModelError(
                f"the model answered {tuple(sr.shape)}; a x{SCALE} model gives {tuple(self.hr.shape)} here"
            )
        terms = {"l1": per_image_mean((sr - self.hr).abs())}
        if self.features is not None:
            terms["perceptual"] = per_image_mean((self.objective.features(sr) - self.features).abs())
        return terms

    def __call__(self, sr: Tensor) -> Tensor:
        """The weighted sum of the terms, (N,)."""
        terms = self.components(sr)
        loss = self.objective.l1_weight * terms["l1"]
        if "perceptual" in terms:
            loss = loss + self.objective.perceptual_weight * terms["perceptual"]
        return loss

    def __getitem__(self, rows: slice) -> BoundObjective:
        """The same objective for some images of the batch."""
        features = None if self.features is None else self.features[rows]
        return BoundObjective(self.objective, self.hr[rows], features)
