"""PSNR, SSIM and LPIPS of super-resolved images: one figure an image, whatever batch it came in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from benchsr.base.errors import BenchsrError, InputError
from benchsr.base.inference import full_float32, to_8bit
from benchsr.base.registry import Registry
from benchsr.base.schema import Table
from benchsr.metrics.perceptual import lpips_net

Colour = Literal["rgb", "y"]

WINDOW, SIGMA = 11, 1.5
"""Side in pixels and standard deviation of SSIM's Gaussian window."""

LPIPS_MIN_SIDE = 32
"""Smallest image, in pixels, that AlexNet's five stages can shrink."""


def psnr(sr: Tensor, hr: Tensor, border: int = 0, colour: Colour = "rgb") -> Tensor:
    """Peak signal-to-noise ratio in dB of `sr` against `hr`, both (N, 3, H, W) in [0, 1]: (N,) float64.

    10 log10(1 / MSE), the mean over all pixels and channels `border` pixels inside; equal images give infinity.
    `colour` "y" compares BT.601 luma alone, as MATLAB's rgb2ycbcr gives it (16/255 to 235/255). Raises InputError for
    tensors of unlike or other shapes, integers, values outside [0, 1] (clamp a network's output first) and NaN.
    """
    sr, hr = _comparable(sr, hr, border, colour)
    return torch.stack([-10 * (a.double() - b.double()).square().mean().log10() for a, b in zip(sr, hr, strict=True)])


def ssim(sr: Tensor, hr: Tensor, border: int = 0, colour: Colour = "rgb") -> Tensor:
    """Structural similarity of `sr` and `hr`, both (N, 3, H, W) in [0, 1]: (N,) float64, at most 1, higher is better.

    Wang et al. 2004: 11 x 11 Gaussian window of sigma 1.5, K = (0.01, 0.03), biased covariance; the mean over those
    windows that lie wholly `border` pixels inside, and over channels. `colour` and errors as in `psnr`; the images
    must hold at least one window.
    """
    sr, hr = _comparable(sr, hr, border, colour, smallest=WINDOW)
    return torch.stack([_ssim_torch(a, b) if a.is_cuda else _ssim_skimage(a, b) for a, b in zip(sr, hr, strict=True)])


def lpips(sr: Tensor, hr: Tensor) -> Tensor:
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018) of `sr` and `hr`, both (N, 3, H, W) RGB: (N,) float64, lower is better.

    Both are taken to be in [0, 1]; `sr` is clamped. At least 32 x 32 pixels. Raises InputError as `psnr` does, and
    UnavailableError where AlexNet's weights cannot be had.
    """
    sr, hr = _comparable(sr.clamp(0, 1), hr, smallest=LPIPS_MIN_SIDE)
    net = lpips_net().to(sr.device)
    with torch.no_grad(), full_float32():
        scores = [net(2 * a[None].float() - 1, 2 * b[None].float() - 1) for a, b in zip(sr, hr, strict=True)]
    return torch.stack(scores).flatten().double()


def score(sr: Tensor, hr: Tensor, settings: MetricSettings) -> dict[str, Tensor]:
    """The figures of `sr` against `hr`, both (N, 3, H, W), by each metric that `settings` names: (N,) float64 each.

    `sr` is clamped to [0, 1]. Metrics that can leave a border out follow `settings`; others see the whole image,
    unrounded. Raises what they raise.
    """
    sr = sr.clamp(0, 1)
    seen = to_8bit(sr) if settings.quantise_sr else sr
    figures = {}
    for metric in map(METRICS.__getitem__, settings.names):
        inside = (seen, hr, settings.border, settings.colour)
        figures[metric.name] = metric.function(*inside) if metric.border else metric.function(sr, hr)
    return figures


def _comparable(
    sr: Tensor, hr: Tensor, border: int = 0, colour: Colour = "rgb", smallest: int = 1
) -> tuple[Tensor, Tensor]:
    """The parts of `sr` and `hr` to compare, without gradients. Raises InputError for what `psnr` says."""
    if sr.shape != hr.shape or sr.dim() != 4 or sr.shape[1] != 3 or not len(sr):
        raise InputError(f"metrics compare two (N, 3, H, W), N > 0; got SR {tuple(sr.shape)} and HR {tuple(hr.shape)}")
    if border < 0 or min(sr.shape[2:]) - 2 * border < smallest:
        raise InputError(f"a border of {border} must leave {smallest} pixels a side; the images are {tuple(sr.shape)}")
    if colour not in _TO_COLOUR:
        raise InputError(f"unknown colour {colour!r}; use {' or '.join(_TO_COLOUR)}")
    for name, image in (("SR", sr), ("HR", hr)):
        if not image.is_floating_point():
            raise InputError(f"metrics need float images in [0, 1]; {name} is {image.dtype}: divide by 255")
        if not (float(image.min()) >= 0 and float(image.max()) <= 1):
            raise InputError(f"metrics need images in [0, 1] without NaN; {name} is not: clamp or scale it")
    inside = (..., slice(border, sr.shape[2] - border), slice(border, sr.shape[3] - border))
    convert = _TO_COLOUR[colour]
    return convert(sr.detach()[inside]), convert(hr.detach()[inside])


def _luma(x: Tensor) -> Tensor:
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=x.device) / 255
    return torch.einsum("nchw,c->nhw", x.double(), weights)[:, None] + 16 / 255


_TO_COLOUR: dict[str, Callable[[Tensor], Tensor]] = {"rgb": lambda x: x, "y": _luma}


def _ssim_skimage(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of two (C, H, W) on the CPU, where scikit-image is six times as fast as convolutions."""
    from skimage.metrics import structural_similarity

    value = structural_similarity(  # type: ignore[no-untyped-call]
        a.float().numpy(),
        b.float().numpy(),
        channel_axis=0,
        data_range=1.0,
        gaussian_weights=True,
        sigma=SIGMA,
        use_sample_covariance=False,
    )
    return torch.tensor(float(value), dtype=torch.float64)


def _ssim_torch(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of two (C, H, W) on their device. In float64, which no device rounds to TF32."""
    a, b = a.double(), b.double()
    offsets = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window = window / window.sum()
    maps = torch.cat([a, b, a * a, b * b, a * b])[:, None]
    for kernel in (window.view(1, 1, -1, 1), window.view(1, 1, 1, -1)):
        maps = F.conv2d(maps, kernel)
    mean_a, mean_b, square_a, square_b, product = maps[:, 0].chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * (product - mean_a * mean_b) + c2) / (square_a - mean_a**2 + square_b - mean_b**2 + c2)
    return (luminance * structure).mean()


@dataclass(frozen=True)
class Metric:
    """A metric and what its figures mean.

    `function(sr, hr, ...)` takes (N, 3, H, W) in [0, 1] to (N,). `value_range` is that of its figures in `unit`.
    `colour` are the colour spaces that it can compare in, `border` whether it can leave pixels at the edge out, and
    `needs` what it must fetch ("" for nothing).
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    value_range: tuple[float, float]
    colour: tuple[Colour, ...]
    border: bool
    needs: str
    function: Callable[..., Tensor]


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        metric.name: metric
        for metric in (
            Metric("psnr", "PSNR", "dB", True, (0.0, math.inf), ("rgb", "y"), True, "", psnr),
            Metric("ssim", "SSIM", "", True, (-1.0, 1.0), ("rgb", "y"), True, "", ssim),
            Metric("lpips", "LPIPS", "", False, (0.0, math.inf), ("rgb",), False, "AlexNet's ImageNet weights", lpips),
        )
    },
)


class MetricSettings(Table):
    """How SR is scored: by the metrics `names` of the table METRICS.

    Those that can leave a border out, PSNR and SSIM, compare in `colour`, `border` HR pixels cropped, SR rounded to 8
    bit if `quantise_sr`. Others, such as LPIPS, always see the whole, unrounded RGB output, clamped to [0, 1].
    """

    names: tuple[str, ...] = Field(("psnr", "ssim", "lpips"), min_length=1)
    border: int = Field(4, ge=0, le=64)
    colour: Literal["rgb", "y"] = "rgb"
    quantise_sr: bool = True

    @field_validator("names")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(METRICS.select(",".join(names)))
        except BenchsrError as error:
            raise ValueError(str(error)) from None
