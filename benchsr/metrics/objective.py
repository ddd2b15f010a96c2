"""What an attack raises and a generator's training lowers: per-image losses between SR and HR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchsr.base.errors import InputError, ModelError
from benchsr.base.registry import Registry
from benchsr.metrics.perceptual import vgg_trunk

PerceptualNet = Literal["vgg16", "vgg19"]
Against = Literal["truth", "answer", "turned", "other"]
"""What SR is compared with: the truth, the model's own answer to the clean image, the truth turned upside down, or
another image that is given."""


def per_image_mean(values: Tensor) -> Tensor:
    """Mean over all but the first dimension: (N, ...) -> (N,)."""
    return values.flatten(1).mean(1)


@dataclass(frozen=True)
class Objective:
    """L = l1_weight * L1 + perceptual_weight * L_percep (paper, section 3.1), a mean over elements for each image.

    L_percep is the mean absolute difference of features before the activation: VGG-19 conv5_4 as in the paper, or
    VGG-16 conv5_3 where VGG-19 cannot be had; `mse_weight` adds the mean squared error. A weight of zero leaves its
    term out altogether. `against` says which image SR is compared with; with `toward` the objective is -L, so that
    raising it brings SR towards that image (a targeted attack). `aligned` weighs L1 pixel by pixel (CosPGD, Agnihotri
    et al. 2024) by the cosine similarity of the softmaxed colours of SR and that image, or with `toward` by 1 minus it;
    the weights count as constants in the gradient.
    """

    l1_weight: float = 1.0
    perceptual_weight: float = 1.0
    net: PerceptualNet = "vgg16"
    mse_weight: float = 0.0
    against: Against = "truth"
    toward: bool = False
    aligned: bool = False

    def __post_init__(self) -> None:
        weights = (self.l1_weight, self.perceptual_weight, self.mse_weight)
        if min(weights) < 0 or sum(weights) == 0:
            raise InputError(
                f"objective weights must be >= 0 and not all zero; got l1_weight={self.l1_weight}, "
                f"perceptual_weight={self.perceptual_weight}, mse_weight={self.mse_weight}"
            )

    def features(self, images: Tensor) -> Tensor:
        """Perceptual features (N, 512, H/16, W/16) of `images` (N, 3, H, W) in [0, 1], in float32."""
        trunk: Tensor = vgg_trunk(self.net).to(images.device)(images)
        return trunk

    def bind(self, hr: Tensor) -> BoundObjective:
        """Fix the image to compare with, `hr` (N, 3, H, W) in [0, 1], and compute its features once."""
        with torch.no_grad():
            features = self.features(hr) if self.perceptual_weight else None
        return BoundObjective(self, hr, features)


@dataclass(frozen=True)
class BoundObjective:
    """An Objective with the image that it compares with, `hr`.

    Maps SR (N, 3, H, W) to one loss per image (N,), differentiable in SR.
    """

    objective: Objective
    hr: Tensor
    features: Tensor | None

    def components(self, sr: Tensor) -> dict[str, Tensor]:
        """The unweighted terms, each (N,): `l1`, and `perceptual` and `mse` unless their weight is zero.

        Raises ModelError where `sr` has not the truth's shape.
        """
        if sr.shape != self.hr.shape:
            raise ModelError(
                f"the model answered {tuple(sr.shape)}, not {tuple(self.hr.shape)}, the shape of the truth"
            )
        errors = (sr - self.hr).abs()
        terms = {"l1": per_image_mean(self._alignment(sr) * errors if self.objective.aligned else errors)}
        if self.features is not None:
            terms["perceptual"] = per_image_mean((self.objective.features(sr) - self.features).abs())
        if self.objective.mse_weight:
            terms["mse"] = per_image_mean((sr - self.hr).square())
        return terms

    def _alignment(self, sr: Tensor) -> Tensor:
        """The weight of each pixel, (N, 1, H, W)."""
        found = F.cosine_similarity(sr.detach().softmax(1), self.hr.softmax(1), dim=1)[:, None]
        return 1 - found if self.objective.toward else found

    def __call__(self, sr: Tensor) -> Tensor:
        """The weighted sum of the terms, (N,); its negative where the objective leads towards the image."""
        terms = self.components(sr)
        loss = self.objective.l1_weight * terms["l1"]
        if "perceptual" in terms:
            loss = loss + self.objective.perceptual_weight * terms["perceptual"]
        if "mse" in terms:
            loss = loss + self.objective.mse_weight * terms["mse"]
        return -loss if self.objective.toward else loss

    def __getitem__(self, rows: slice) -> BoundObjective:
        """The same objective for some images of the batch."""
        features = None if self.features is None else self.features[rows]
        return BoundObjective(self.objective, self.hr[rows], features)


LOSSES: Registry[Objective] = Registry(
    "loss",
    {
        "l1": Objective(1.0, 0.0),
        "mse": Objective(0.0, 0.0, mse_weight=1.0),
        "perceptual": Objective(0.0, 1.0),
        "answer": Objective(1.0, 0.0, against="answer"),
        "turned": Objective(1.0, 0.0, against="turned", toward=True),
        "other": Objective(1.0, 0.0, against="other", toward=True),
        "aligned": Objective(1.0, 0.0, aligned=True),
    },
)
"""Objectives that a threat fixes by name, whatever the protocol's weights are."""
