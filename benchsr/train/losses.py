"""The adversarial loss and the median; L1 and perceptual losses are those of the attacks, `objectives.Objective`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def relativistic_loss(likelier: Tensor, other: Tensor) -> Tensor:
    """Relativistic average GAN loss (Jolicoeur-Martineau 2018; ESRGAN, Wang et al. 2018, equations 1 to 3), a scalar.

    Low when the logits `likelier` (N, 1) lie above the mean of the logits `other` (M, 1), and those below its mean. The
    discriminator minimises it with (real, fake), the generator with (fake, real). Half the sum of the two parts, as in
    ESRGAN's code.
    """
    above = F.softplus(-(likelier - other.mean())).mean()
    below = F.softplus(other - likelier.mean()).mean()
    return (above + below) / 2


def median(draws: Tensor) -> Tensor:
    """Median over the first dimension of `draws` (K, ...): for even K the mean of the two middle values.

    With the two draws of MRS fine-tuning (spec: paper, section 4) the median is thus their mean. `torch.median` would
    take the lower one, whose expectation lies below the median of a symmetric distribution, and the network would learn
    to answer too brightly; with the 21 draws of inference the two agree.
    """
    ordered = draws.sort(dim=0).values
    k = len(draws)
    return (ordered[(k - 1) // 2] + ordered[k // 2]) / 2
