"""Corruptions of the LR image: (LR (N, 3, h, w), one generator for each image) -> LR, not yet clipped.

One that makes LR anew from the truth takes HR (N, 3, sh, sw) as its third argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchsr.base import pixels
from benchsr.base.pixels import Pixels
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


def shot_noise(x: Tensor, gens: Sequence[torch.Generator], *, photons: float = 100.0) -> Tensor:
    """A sensor that counts: Poisson noise, where white is `photons` photons on average."""
    rates = (x.clamp(0, 1) * photons).cpu()
    return torch.stack([torch.poisson(r, generator=g) for r, g in zip(rates, gens, strict=True)]).to(x) / photons


def impulse_noise(x: Tensor, gens: Sequence[torch.Generator], *, amount: float = 0.03) -> Tensor:
    """Salt and pepper: a share `amount` of the elements becomes 0 or 1."""
    draw = uniform_like(x, gens).double() / 2 + 0.5
    return torch.where(draw < amount / 2, 0.0, torch.where(draw < amount, 1.0, x))


def speckle_noise(x: Tensor, gens: Sequence[torch.Generator], *, sigma: float = 0.12) -> Tensor:
    """Noise that grows with the signal: x + x N(0, sigma^2)."""
    return x + x * sigma * normal_like(x, gens)


def correlated_noise(x: Tensor, gens: Sequence[torch.Generator], *, sigma: float = 0.08) -> Tensor:
    """Noise of standard deviation `sigma` whose neighbours correlate, as demosaicing leaves it."""
    return x + _correlated_noise(x, gens, sigma)


def _filtered(x: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Each image filtered with its own kernel (k, k), k odd; borders are mirrored without repeating the edge pixel."""
    rows = []
    for image, kernel in zip(x, kernels, strict=True):
        padded = F.pad(image[:, None], (len(kernel) // 2,) * 4, mode="reflect")
        rows.append(F.conv2d(padded, kernel[None, None].to(image))[:, 0])
    return torch.stack(rows)


def defocus(x: Tensor, gens: Sequence[torch.Generator], *, radius: float = 1.0, soft: float = 0.2) -> Tensor:
    """Out of focus: a disk of `radius` pixels, its edge softened by a 3 x 3 Gaussian of standard deviation `soft`."""
    at = torch.arange(-3, 4, dtype=torch.float32)
    disk = (at[:, None].square() + at.square() <= radius**2).float()
    kernel = torch.from_numpy(cv2.GaussianBlur((disk / disk.sum()).numpy(), (3, 3), soft))
    return _filtered(x, [kernel] * len(x))


def motion_blur(x: Tensor, gens: Sequence[torch.Generator], *, sigma: float = 1.2) -> Tensor:
    """A moving camera: a Gaussian of `sigma` pixels along a line, whose angle each image draws between -45 and 45
    degrees; between pixels it is interpolated linearly.
    """
    reach = 5
    along, at = torch.linspace(-reach, reach, 8 * reach + 1), torch.arange(-reach, reach + 1.0)
    weight = torch.exp(-along.square() / (2 * sigma**2))
    kernels = []
    for gen in gens:
        angle = (torch.rand((), generator=gen) - 0.5) * torch.pi / 2
        down, right = ((1 - (at[:, None] - along * move).abs()).clamp_min(0) for move in (angle.sin(), angle.cos()))
        kernel = torch.einsum("it,jt,t->ij", down, right, weight)
        kernels.append(kernel / kernel.sum())
    return _filtered(x, kernels)


def jpeg_file(x: Tensor, gens: Sequence[torch.Generator], *, quality: int = 58) -> Tensor:
    """LR came as a JPEG of `quality`, chroma 4:2:0."""
    return pixels.jpeg(x, quality)


def few_bits(x: Tensor, gens: Sequence[torch.Generator], *, bits: int = 4) -> Tensor:
    """LR has `bits` bits a channel."""
    return pixels.levels(x, bits)


KERNELS = {
    "lanczos": Image.Resampling.LANCZOS,
    "hamming": Image.Resampling.HAMMING,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
"""Kernels that shrink HR, of Pillow, beside the bicubic one that networks are trained for."""


def other_kernel(x: Tensor, gens: Sequence[torch.Generator], hr: Tensor, *, kernel: str = "bilinear") -> Tensor:
    """LR was made from HR with another `kernel` than bicubic: what networks for one kernel fear most."""
    size = x.shape[-1], x.shape[-2]
    shrunk = [[_resampled(channel, size, kernel) for channel in image] for image in hr.detach().cpu()]
    return torch.stack([torch.stack(channels) for channels in shrunk]).to(x)


def _resampled(channel: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    image = Image.fromarray(channel.contiguous().numpy()).resize(size, KERNELS[kernel])
    return torch.from_numpy(np.array(image))


def colour_cast(x: Tensor, gens: Sequence[torch.Generator], *, by: float = 0.15) -> Tensor:
    """A wrong white balance, warm: red times 1 + `by`, blue times 1 - `by`."""
    gains = torch.tensor([1 + by, 1.0, 1 - by], dtype=x.dtype, device=x.device)
    return x * gains[:, None, None]


def contrast(x: Tensor, gens: Sequence[torch.Generator], *, factor: float = 0.4) -> Tensor:
    """Less contrast: each channel's distance from its mean over the image, times `factor`."""
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * factor + mean


def brightness(x: Tensor, gens: Sequence[torch.Generator], *, by: float = 0.15) -> Tensor:
    """Too bright: V of HSV raised by `by`, hue and saturation kept."""

    def brighter(picture: Pixels) -> Pixels:
        hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
        hsv[..., 2] = (hsv[..., 2] + by).clip(0, 1)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    return pixels.by_image(x, brighter)


def pixelate(x: Tensor, gens: Sequence[torch.Generator], *, factor: float = 0.75) -> Tensor:
    """LR has been shrunk to `factor` of its side and enlarged again, by boxes (Pillow)."""
    size = x.shape[-1], x.shape[-2]
    small = int(size[0] * factor), int(size[1] * factor)

    def coarse(channel: Tensor) -> Tensor:
        image = Image.fromarray(channel.contiguous().numpy()).resize(small, Image.Resampling.BOX)
        return torch.from_numpy(np.array(image.resize(size, Image.Resampling.BOX)))

    return torch.stack([torch.stack([coarse(c) for c in image]) for image in x.detach().cpu()]).to(x)


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
        picture = image.clamp(0, 1).permute(1, 2, 0).contiguous().cpu().numpy()
        denoised = cv2.medianBlur(picture, median)
        blurred = cv2.GaussianBlur(denoised, (0, 0), 1.0)
        sharpened = torch.from_numpy(denoised + sharpen * (denoised - blurred)).permute(2, 0, 1).to(x)
        rows.append(sharpened)
    return pixels.jpeg(torch.stack(rows), quality)


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
    return pixels.jpeg(soft + noise, quality)


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
    return pixels.jpeg(sharpened, quality)
