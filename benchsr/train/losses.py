"""The adversarial loss, frequency separation, the median.

L1 and perceptual losses are those of the attacks, `objectives.Objective`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def relativistic_loss(likelier: Tensor, other: Tensor) -> Tensor:
    """Relativistic average GAN loss (Jolicoeur-Martineau 2018; ESRGAN, Wang et al. 2018, equations 1 to 3), a scalar.

    Low when the logits `likelier` (N, k, ...) lie above the mean of the logits `other` (M, k, ...), and those below its
    mean. Each of the k channels is a judge of its own; further dimensions are patches. The discriminator minimises it
    with (real, fake), the generator with (fake, real). Half the sum of the two parts, as in ESRGAN's code.
    """
    within = [dim for dim in range(other.dim()) if dim != 1]
    above = F.softplus(-(likelier - other.mean(within, keepdim=True))).mean()
    below = F.softplus(other - likelier.mean(within, keepdim=True)).mean()
    return (above + below) / 2


def low_pass(images: Tensor, side: int) -> Tensor:
    """The mean over `side` x `side` pixels (odd) around each pixel of `images` (N, C, H, W); edges are replicated.

    The box filter of frequency separation (Fritsche et al. 2019); the high frequencies are what it takes away.
    """
    padded = F.pad(images, (side // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, side, stride=1)


def median(draws: Tensor) -> Tensor:
    """Median over the first dimension of `draws` (K, ...): for even K the mean of the two middle values.

    With the two draws of MRS fine-tuning (spec: paper, section 4) the median is thus their mean. `torch.median` would
    take the lower one, whose expectation lies below the median of a symmetric distribution, and the network would learn
    to answer too brightly; with the 21 draws of inference the two agree.
    """
    ordered = draws.sort(dim=0).values
    k = len(draws)
    return (ordered[(k - 1) // 2] + ordered[k // 2]) / 2
