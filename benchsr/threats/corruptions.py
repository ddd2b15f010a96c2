"""Corruptions of the LR image: (LR (N, 3, h, w), one generator for each image) -> LR, not yet clipped."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchsr.base.inference import to_bytes
from benchsr.base.rng import normal_like, uniform_like

Corruption = Callable[..., Tensor]
"""(LR (N, 3, h, w), one generator per image, **settings) -> corrupted LR, not yet clipped."""


def identity(x: Tensor, gens: Sequence[torch.Generator]) -> Tensor:
    """The clean image."""
    return x


def gaussian_noise(x: Tensor, gens: Sequence[torch.Generator], *, sigma: float = 0.03) -> Tensor:
    """Sensor noise: pixel-wise i.i.d. N(0, sigma^2) (paper, section 5.2)."""
    return x + sigma * normal_like(x, gens)


def random_signs(x: Tensor, gens: Sequence[torch.Generator], *, eps: float = 10 / 255) -> Tensor:
    """A random corner of the L-infinity ball: what an attack of this eps must beat."""
    return x + eps * uniform_like(x, gens).sign()


def gaussian_blur(x: Tensor, gens: Sequence[torch.Generator], *, size: int = 10, sigma: float = 0.3) -> Tensor:
    """Gaussian kernel of `size` taps and standard deviation `sigma` pixels (paper, section 5.2).

    An even size has no centre tap. As in OpenCV the anchor is tap size // 2, so the image moves by half a pixel to the
    bottom right; at the paper's setting that half-pixel shift and a 2x2 average are nearly all that happens. Borders
    are mirrored without repeating the edge pixel.
    """
    taps = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-taps.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(x)
    before, after = size // 2, size - 1 - size // 2
    weight = kernel.expand(3, 1, 1, size).contiguous()
    x = F.conv2d(F.pad(x, (before, after, 0, 0), mode="reflect"), weight, groups=3)
    return F.conv2d(F.pad(x, (0, 0, before, after), mode="reflect"), weight.transpose(2, 3), groups=3)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """Round an image (3, h, w) to 8 bit and send it through JPEG with 4:2:0 chroma."""
    pixels = to_bytes(image).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling=2)
    decoded = np.asarray(Image.open(buffer), dtype=np.float32) / 255
    return torch.from_numpy(decoded).permute(2, 0, 1).to(image)


def _correlated_noise(x: Tensor, gens: Sequence[torch.Generator], sigma: float) -> Tensor:
    """Noise of standard deviation `sigma` whose neighbours correlate, as demosaicing leaves it: N(0, 1) * [1 2 1]/4."""
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    weight = (taps[:, None] * taps[None, :]).expand(3, 1, 3, 3).contiguous()
    noise = F.conv2d(F.pad(normal_like(x, gens), (1, 1, 1, 1), mode="circular"), weight, groups=3)
    return noise * (sigma / float(weight[0].square().sum().sqrt()))


def processed_noise(
    x: Tensor,
    gens: Sequence[torch.Generator],
    *,
    sigma: float = 0.04,
    median: int = 3,
    sharpen: float = 0.8,
    quality: int = 90,
) -> Tensor:
    """Our stand-in for NTIRE 2020 track 1, version 1: what a camera's image processing leaves of noise.

    Correlated noise of standard deviation `sigma`; a `median` x `median` denoiser; an unsharp mask of strength
    `sharpen` (Gaussian, sigma 1) that raises its residue again; JPEG of `quality`.
    """
    noisy = x + _correlated_noise(x, gens, sigma)
    rows = []
    for image in noisy:
        pixels = image.clamp(0, 1).permute(1, 2, 0).contiguous().cpu().numpy()
        denoised = cv2.medianBlur(pixels, median)
        blurred = cv2.GaussianBlur(denoised, (0, 0), 1.0)
        sharpened = torch.from_numpy(denoised + sharpen * (denoised - blurred)).permute(2, 0, 1).to(x)
        rows.append(_jpeg(sharpened, quality))
    return torch.stack(rows)


def sensor_noise(
    x: Tensor,
    gens: Sequence[torch.Generator],
    *,
    blur: float = 0.6,
    read: float = 0.02,
    shot: float = 0.05,
    quality: int = 75,
) -> Tensor:
    """Our stand-in for AIM 2019 track 2, version 1: soft optics, a small sensor and JPEG.

    Gaussian blur of `blur` pixels; correlated noise whose standard deviation is sqrt(read^2 + shot^2 * intensity);
    JPEG of `quality`.
    """
    soft = gaussian_blur(x, gens, size=7, sigma=blur)
    noise = _correlated_noise(x, gens, 1.0) * (read**2 + shot**2 * soft.clamp(0, 1)).sqrt()
    return torch.stack([_jpeg(image, quality) for image in soft + noise])


def phone_noise(
    x: Tensor,
    gens: Sequence[torch.Generator],
    *,
    blur: float = 0.8,
    luma: float = 0.015,
    chroma: float = 0.04,
    sharpen: float = 0.5,
    quality: int = 85,
) -> Tensor:
    """Our stand-in for DPED's iPhone 3 photographs, version 1: soft optics, grain, colour blotches, sharpening, JPEG.

    Gaussian blur of `blur` pixels; correlated grain of standard deviation `luma`, equal in all channels; colour noise
    of standard deviation `chroma` drawn at half resolution, whose sum over the channels is zero; an unsharp mask of
    strength `sharpen` (Gaussian, sigma 1); JPEG of `quality`. The real set has no aligned truth: this one does.
    """
    soft = gaussian_blur(x, gens, size=7, sigma=blur)
    grain = _correlated_noise(x, gens, luma)[:, :1]
    coarse = chroma * normal_like(x[..., ::2, ::2], gens)
    blotches = F.interpolate(coarse - coarse.mean(1, keepdim=True), size=x.shape[-2:], mode="nearest")
    noisy = soft + grain + blotches
    sharpened = noisy + sharpen * (noisy - gaussian_blur(noisy, gens, size=7, sigma=1.0))
    return torch.stack([_jpeg(image, quality) for image in sharpened])
