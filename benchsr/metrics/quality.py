"""PSNR, SSIM and LPIPS of super-resolved images: one figure an image, whatever batch it came in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from benchsr.base.errors import BenchsrError, InputError, NotApplicableError
from benchsr.base.inference import full_float32, to_8bit
from benchsr.base.pairs import scale_of
from benchsr.base.registry import Registry
from benchsr.base.schema import Table
from benchsr.base.shrinking import bicubic_downscale
from benchsr.metrics import iqa
from benchsr.metrics.perceptual import dists_net, lpips_net

Colour = Literal["rgb", "y"]

WINDOW, SIGMA = 11, 1.5
"""Side in pixels and standard deviation of SSIM's Gaussian window."""

LPIPS_MIN_SIDE = 32
"""Smallest image, in pixels, that AlexNet's five stages can shrink."""

DISTS_MIN_SIDE = 16
"""Smallest image, in pixels, of which VGG-16's four poolings leave one."""

SCALES = 5
"""Of MS-SSIM: its window must fit into the image halved four times."""


def psnr(sr: Tensor, hr: Tensor, border: int = 0, colour: Colour = "rgb") -> Tensor:
    """Peak signal-to-noise ratio in dB of `sr` against `hr`, both (N, 3, H, W) in [0, 1]: (N,) float64.

    10 log10(1 / MSE), the mean over all pixels and channels `border` pixels inside; equal images give infinity.
    `colour` "y" compares BT.601 luma alone, as MATLAB's rgb2ycbcr gives it (16/255 to 235/255). Raises InputError for
    tensors of unlike or other shapes, integers, values outside [0, 1] (clamp a network's output first) and NaN.

    Examples:
        >>> import benchsr, torch
        >>> hr = torch.full((1, 3, 16, 16), 0.5)
        >>> benchsr.psnr(hr + 0.1, hr, border=4)
        tensor([20.0000], dtype=torch.float64)
    """
    sr, hr = _comparable(sr, hr, border, colour)
    return torch.stack([-10 * (a.double() - b.double()).square().mean().log10() for a, b in zip(sr, hr, strict=True)])


def ssim(sr: Tensor, hr: Tensor, border: int = 0, colour: Colour = "rgb") -> Tensor:
    """Structural similarity of `sr` and `hr`, both (N, 3, H, W) in [0, 1]: (N,) float64, at most 1, higher is better.

    Wang et al. 2004: 11 x 11 Gaussian window of sigma 1.5, K = (0.01, 0.03), biased covariance; the mean over those
    windows that lie wholly `border` pixels inside, and over channels. `colour` and errors as in `psnr`; the images
    must hold at least one window.

    Examples:
        >>> import benchsr, torch
        >>> hr = torch.full((1, 3, 16, 16), 0.5)
        >>> benchsr.ssim(hr, hr)
        tensor([1.], dtype=torch.float64)
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


def psnr_y(sr: Tensor, hr: Tensor, border: int = 0) -> Tensor:
    """`psnr` of luma, as papers on super-resolution print it."""
    return psnr(sr, hr, border, "y")


def ssim_y(sr: Tensor, hr: Tensor, border: int = 0) -> Tensor:
    """`ssim` of luma, as papers on super-resolution print it."""
    return ssim(sr, hr, border, "y")


def ms_ssim(sr: Tensor, hr: Tensor, border: int = 0, colour: Colour = "rgb") -> Tensor:
    """Multi-scale SSIM (Wang et al. 2003) of `sr` and `hr`, both (N, 3, H, W) in [0, 1]: (N,) float64, up to 1.

    Five scales with the paper's weights, by pytorch-msssim; negative contrasts count as 0. More than 160 pixels a side
    must be left inside the border; NotApplicableError otherwise.
    """
    import pytorch_msssim

    sr, hr = _comparable(sr, hr, border, colour, smallest=(WINDOW - 1) * 2 ** (SCALES - 1) + 1)
    pairs = ((a[None].double(), b[None].double()) for a, b in zip(sr, hr, strict=True))
    return torch.cat([pytorch_msssim.ms_ssim(a, b, data_range=1.0, size_average=False) for a, b in pairs])


def dists(sr: Tensor, hr: Tensor) -> Tensor:
    """DISTS (Ding et al. 2020) of `sr` and `hr`, both (N, 3, H, W) RGB: (N,) float64, lower is better.

    Both are taken to be in [0, 1], at the size that they have; `sr` is clamped. At least 16 x 16 pixels. Raises
    InputError as `psnr` does, and UnavailableError where the weights cannot be had.
    """
    sr, hr = _comparable(sr.clamp(0, 1), hr, smallest=DISTS_MIN_SIDE)
    net = dists_net().to(sr.device)
    with torch.no_grad(), full_float32():
        scores = [net(a[None].float(), b[None].float()) for a, b in zip(sr, hr, strict=True)]
    return torch.cat(scores).double()


def lr_psnr(sr: Tensor, lr: Tensor) -> Tensor:
    """PSNR in dB of `sr` (N, 3, H, W) shrunk again against the clean `lr` (N, 3, h, w): (N,) float64.

    Whether SR is an enlargement of what was given at all (Lugmayr et al. 2021). SR is shrunk by the MATLAB bicubic with
    8-bit rounding that LR is made with; nothing is cropped.
    """
    return psnr(bicubic_downscale(sr, scale_of(lr, sr)), lr)


class Scores(NamedTuple):
    """`figures`: metric -> (N,) float64; `lacking`: metric -> why these images have no figure of it."""

    figures: dict[str, Tensor]
    lacking: dict[str, str]


def score(sr: Tensor, hr: Tensor, lr: Tensor, settings: MetricSettings) -> Scores:
    """`sr` against `hr`, both (N, 3, H, W), and the clean `lr` (N, 3, h, w), by each metric that `settings` names.

    `sr` is clamped to [0, 1]. Metrics that ask for a border follow `settings`, rounding included; others see the whole
    image, unrounded. Raises what they raise, but for NotApplicableError.
    """
    sr = sr.clamp(0, 1)
    given = {"sr": sr, "hr": hr, "lr": lr, "border": settings.border, "colour": settings.colour}
    inside = given | {"sr": to_8bit(sr) if settings.quantise_sr else sr}
    found = Scores({}, {})
    for metric in map(METRICS.__getitem__, settings.names):
        try:
            found.figures[metric.name] = metric(inside if metric.inside else given)
        except NotApplicableError as error:
            found.lacking[metric.name] = str(error)
    return found


def _comparable(
    sr: Tensor, hr: Tensor, border: int = 0, colour: Colour = "rgb", smallest: int = 1
) -> tuple[Tensor, Tensor]:
    """The parts of `sr` and `hr` to compare, without gradients. Raises InputError for what `psnr` says."""
    if sr.shape != hr.shape or sr.dim() != 4 or sr.shape[1] != 3 or not len(sr):
        raise InputError(f"metrics compare two (N, 3, H, W), N > 0; got SR {tuple(sr.shape)} and HR {tuple(hr.shape)}")
    if border < 0:
        raise InputError(f"a border of {border} pixels; use 0 or more")
    if colour not in _TO_COLOUR:
        raise InputError(f"unknown colour {colour!r}; use {' or '.join(_TO_COLOUR)}")
    for name, image in (("SR", sr), ("HR", hr)):
        if not image.is_floating_point():
            raise InputError(f"metrics need float images in [0, 1]; {name} is {image.dtype}: divide by 255")
        if not (float(image.min()) >= 0 and float(image.max()) <= 1):
            raise InputError(f"metrics need images in [0, 1] without NaN; {name} is not: clamp or scale it")
    if min(sr.shape[2:]) - 2 * border < smallest:
        raise NotApplicableError(
            f"a border of {border} must leave {smallest} pixels a side; the images are {tuple(sr.shape)}"
        )
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


GIVEN = ("sr", "hr", "lr", "border", "colour")
"""What a metric may ask for."""


@dataclass(frozen=True)
class Metric:
    """A metric, what its figures mean and how they are shown.

    `function` is given what its parameters name: `sr` and `hr` (N, 3, H, W), the clean `lr` (N, 3, h, w), all in
    [0, 1], and the settings `border` and `colour`; it returns (N,). One that asks for a border sees SR as it would be
    saved, others see it unrounded. `value_range` is that of its figures in `unit`, `decimals` are shown, `details` in a
    protocol's description. `version` names the library that computes it, and is part of every key.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    function: Callable[..., Tensor]
    value_range: tuple[float, float] = (-math.inf, math.inf)
    decimals: int = 3
    details: str = "whole image, not rounded"
    version: str = ""

    def __post_init__(self) -> None:
        if strange := [name for name in self.asks if name not in GIVEN]:
            raise InputError(f"metric {self.name!r} asks for {', '.join(strange)}; it can be given: {', '.join(GIVEN)}")
        if "sr" not in self.asks:
            raise InputError(f"metric {self.name!r} does not ask for sr: it would score nothing")

    @property
    def asks(self) -> tuple[str, ...]:
        """What its function is given: all parameters without a default, and others by their names."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.name in GIVEN or p.default is p.empty)

    @property
    def inside(self) -> bool:
        """Whether it can leave a border out."""
        return "border" in self.asks

    @property
    def reference(self) -> bool:
        """Whether it compares SR with anything."""
        return "hr" in self.asks or "lr" in self.asks

    @property
    def heading(self) -> str:
        """Title and direction, as tables have it: "PSNR ↑"."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"

    @property
    def label(self) -> str:
        """Title and unit, as axes have it: "PSNR (dB)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def direction(self) -> str:
        """In words."""
        return f"{'higher' if self.higher_is_better else 'lower'} is better"

    def shown(self, value: float, sign: str = "") -> str:
        """A figure at its digits; `sign` "+" shows that of positive ones too."""
        return f"{value:{sign}.{self.decimals}f}"

    def __call__(self, given: Mapping[str, Any]) -> Tensor:
        """The figures of the images `given`, (N,)."""
        return self.function(**{name: given[name] for name in self.asks})


class _Metrics(Registry[Metric]):
    """Those of the table, and any of pyiqa."""

    def __getitem__(self, name: str) -> Metric:
        return _of_pyiqa(name) if name.startswith(iqa.PREFIX) else super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return str(name).startswith(iqa.PREFIX) or super().__contains__(name)


def _of_pyiqa(name: str) -> Metric:
    plain = name.removeprefix(iqa.PREFIX)
    higher, alone, made_by = iqa.about(plain)
    details = f"by {made_by}, whole image, not rounded" + ", without a reference" * alone
    return Metric(name, name, "", higher, iqa.scorer(plain), details=details, version=made_by)


METRICS: Registry[Metric] = _Metrics(
    "metric",
    {
        metric.name: metric
        for metric in (
            Metric("psnr", "PSNR", "dB", True, psnr, (0.0, math.inf), 2),
            Metric("ssim", "SSIM", "", True, ssim, (-1.0, 1.0)),
            Metric(
                "lpips", "LPIPS", "", False, lpips, (0.0, math.inf), details="AlexNet v0.1, whole image, not rounded"
            ),
            Metric(
                "psnr-y", "PSNR-Y", "dB", True, psnr_y, (0.0, math.inf), 2, "BT.601 luma, border and rounding as PSNR's"
            ),
            Metric("ssim-y", "SSIM-Y", "", True, ssim_y, (-1.0, 1.0), 3, "BT.601 luma, border and rounding as SSIM's"),
            Metric(
                *("ms-ssim", "MS-SSIM", "", True, ms_ssim, (0.0, 1.0)),
                version=f"pytorch-msssim {version('pytorch-msssim')}",
            ),
            Metric(
                "dists",
                "DISTS",
                "",
                False,
                dists,
                (-1.0, 2.0),
                3,
                "VGG-16, whole image, not rounded, not resized",
                "DISTS-pytorch 0.1",
            ),
            Metric(
                "lr-psnr",
                "LR-PSNR",
                "dB",
                True,
                lr_psnr,
                (0.0, math.inf),
                2,
                "SR shrunk by MATLAB's bicubic against the clean LR",
            ),
        )
    },
    group="benchsr.metrics",
    of=Metric,
)
"""A metric is added by its entry here."""


class MetricSettings(Table):
    """How SR is scored: by the metrics `names` of the table METRICS.

    Those that can leave a border out, PSNR and SSIM in all their forms, have `border` HR pixels cropped and SR rounded
    to 8 bit if `quantise_sr`; PSNR, SSIM and MS-SSIM compare in `colour`. Others, such as LPIPS, always see the whole,
    unrounded RGB output, clamped to [0, 1].
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

    @property
    def versions(self) -> dict[str, str]:
        """Metric -> the library or package that computes it, where that is not ours: of every key and fingerprint."""
        versions = {name: METRICS[name].version for name in self.names}
        for name, origin in METRICS.origins(self.names).items():
            versions[name] = "; ".join(filter(None, (origin, versions[name])))
        return {name: version for name, version in versions.items() if version}

    @property
    def description(self) -> str:
        """The settings in words."""
        metrics = [METRICS[name] for name in self.names]
        coloured = [m.title for m in metrics if "colour" in m.asks]
        rounding = "rounded to 8 bit" if self.quantise_sr else "not rounded"
        named = " and ".join(filter(None, (", ".join(coloured[:-1]), *coloured[-1:])))
        first = f"{named}: {self.colour.upper()}, border of {self.border} HR pixels cropped, SR {rounding}."
        rest = [f"{m.title}: {m.details}." for m in metrics if "colour" not in m.asks]
        return " ".join([first] * bool(coloured) + rest)
