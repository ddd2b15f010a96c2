"""The table of threat models: what is done to the LR image before a model sees it (paper, sections 3.1 and 5.2).

Every number of a setting is named and can be overridden: `load_threat("pgd", eps=4 / 255, steps=20)`.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchsr.adaptive import APGD, Square, StrongPGD
from benchsr.attacks import BIM, CW, FGSM, PGD, AttackResult, GradientAttack, check_pair
from benchsr.objectives import BoundObjective, Objective
from benchsr.registry import Registry
from benchsr.rng import generators, normal_like, uniform_like
from benchsr.types import InputError

Setting = float | int | bool | str
Kind = Literal["corruption", "attack", "dataset"]
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
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
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


@dataclass(frozen=True)
class ThreatSpec:
    """One entry of the table: `make` is a corruption function, an attack class, or None for a paired data set.

    `preset` replaces defaults of `make`. Its `median_of` says what an adaptive attack sees of a smoothed model: 0 the
    base network, 1 single noisy draws, k the median of k new draws. `like`: the threat whose sigma a model takes that
    has one for each threat.
    """

    title: str
    kind: Kind
    make: Callable[..., Any] | None = None
    dataset: str = ""
    preset: Mapping[str, Setting] = field(default_factory=dict)
    like: str = ""

    @property
    def defaults(self) -> dict[str, Setting]:
        """The overridable settings with their default values."""
        if self.make is None:
            return {}
        parameters = inspect.signature(self.make).parameters.values()
        settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "objective"}
        if self.kind == "attack":
            objective = Objective()
            settings |= {"l1_weight": objective.l1_weight, "perceptual_weight": objective.perceptual_weight}
            settings |= {"perceptual_net": objective.net}
        return {**settings, **self.preset}


FIXED: dict[str, ThreatSpec] = {
    "clean": ThreatSpec("Clean LR", "corruption", identity),
    "noise": ThreatSpec("Sensor noise", "corruption", gaussian_noise),
    "blur": ThreatSpec("Gaussian blur", "corruption", gaussian_blur),
    "fgsm": ThreatSpec("FGSM", "attack", FGSM),
    "bim": ThreatSpec("BIM", "attack", BIM),
    "pgd": ThreatSpec("PGD", "attack", PGD),
    "cw": ThreatSpec("CW", "attack", CW),
    "ntire": ThreatSpec("NTIRE 2020 RWSR track 1", "dataset", dataset="ntire-track1-valid"),
    "aim": ThreatSpec("AIM 2019 RWSR track 2", "dataset", dataset="aim-valid"),
    "standin-ntire": ThreatSpec("Synthetic stand-in for NTIRE", "corruption", processed_noise),
    "standin-aim": ThreatSpec("Synthetic stand-in for AIM", "corruption", sensor_noise),
    "standin-dped": ThreatSpec("Synthetic stand-in for DPED", "corruption", phone_noise),
}
"""The paper's threats, which ask the base network alone, and stand-ins for its data sets."""

VIEWS: dict[str, tuple[str, dict[str, Setting]]] = {
    "transfer": ("on the base network", {"median_of": 0}),
    "eot": ("on the expected loss", {"median_of": 1, "draws": 5}),
    "median": ("through the median", {"median_of": 5}),
}
"""What the attacker knows of the smoothing. For a deterministic model the three are one."""

SWEEP = {f"eps-{k}": k / 255 for k in (1, 2, 4, 8, 16, 32)}
"""The radii of robustness curves, whose eps 0 is `clean`."""

ADAPTIVE: dict[str, ThreatSpec] = {
    "random": ThreatSpec("Random signs", "corruption", random_signs, like="pgd"),
    **{
        f"{name}-{view}": ThreatSpec(
            f"{make.__name__} {how}", "attack", make, preset={"eps": 10 / 255, **preset}, like="pgd"
        )
        for name, make in {"pgd": StrongPGD, "apgd": APGD}.items()
        for view, (how, preset) in VIEWS.items()
    },
    "square": ThreatSpec(
        "Square through the median", "attack", Square, preset={"eps": 10 / 255, "median_of": 5}, like="pgd"
    ),
    **{
        name: ThreatSpec(
            f"StrongPGD through the median, {name}/255",
            "attack",
            StrongPGD,
            preset={"eps": eps, "steps": 20, "restarts": 1, "median_of": 5},
            like="pgd",
        )
        for name, eps in SWEEP.items()
    },
}
"""Threats that know the model they face, and the random noise that they must beat."""

THREATS: Registry[ThreatSpec] = Registry("threat", {**FIXED, **ADAPTIVE})


@dataclass(frozen=True)
class Threat:
    """A threat model with its settings fixed: `threat(model, lr, hr, ids=None, seed=0) -> attacked lr`."""

    id: str
    spec: ThreatSpec
    settings: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def objective(self) -> Objective | None:
        """The loss that an attack raises; None for a corruption."""
        if self.spec.kind != "attack":
            return None
        s = self.settings
        return Objective(float(s["l1_weight"]), float(s["perceptual_weight"]), s["perceptual_net"])  # type: ignore[arg-type]

    @property
    def median_of(self) -> int:
        """Draws in the median that the attack is shown of a smoothed model; 0: it sees the base network."""
        return int(self.settings.get("median_of", 0))

    @property
    def like(self) -> str:
        """The threat whose sigma applies to a model that has one for each threat."""
        return self.spec.like or self.id

    def attack(self, model: nn.Module) -> GradientAttack:
        """The torchattacks-style attack on `model`. Raises InputError where this threat is not an attack."""
        if self.spec.kind != "attack" or self.spec.make is None:
            raise InputError(f"threat {self.id!r} is a {self.spec.kind}, not an attack")
        others = ("l1_weight", "perceptual_weight", "perceptual_net", "median_of")
        own = {k: v for k, v in self.settings.items() if k not in others}
        attack: GradientAttack = self.spec.make(model, objective=self.objective, **own)
        return attack

    def run(
        self,
        model: nn.Module,
        lr: Tensor,
        hr: Tensor,
        ids: Sequence[str] | None = None,
        seed: int = 0,
        *,
        bound: BoundObjective | None = None,
        batch_size: int | None = None,
    ) -> AttackResult | Tensor:
        """The attacked LR with the attack's report, or just the corrupted LR; arguments as for `GradientAttack.run`."""
        if self.spec.kind == "attack":
            return self.attack(model).run(lr, hr, ids, seed, bound=bound, batch_size=batch_size)
        if self.spec.make is None:
            raise InputError(f"threat {self.id!r} is the data set {self.spec.dataset!r}: it brings its own LR images")
        check_pair(lr, hr)
        ids = [str(i) for i in range(len(lr))] if ids is None else ids
        corrupted: Tensor = self.spec.make(lr, generators(seed, ids, self.id), **self.settings)
        return corrupted.clamp(0, 1)

    def __call__(
        self, model: nn.Module, lr: Tensor, hr: Tensor, ids: Sequence[str] | None = None, seed: int = 0
    ) -> Tensor:
        """Attack or corrupt `lr` (N, 3, h, w) in [0, 1], truth `hr` (N, 3, 4h, 4w): the new LR, in [0, 1].

        `ids` (default "0", "1", ...) and `seed` fix the random draws image by image. Raises InputError for unusable
        tensors and for paired data sets, ModelError for a model whose output cannot be used.
        """
        result = self.run(model, lr, hr, ids, seed)
        return result.lr if isinstance(result, AttackResult) else result


def load_threat(threat_id: str, **settings: Setting) -> Threat:
    """The threat of the table under `threat_id`, with `settings` overriding its defaults.

    Attacks take `eps`, `alpha`, `steps`, `random_start`, `c`, `lr` where they apply, and `l1_weight`,
    `perceptual_weight`, `perceptual_net`. Raises UnknownIdError for an unknown id and InputError for an unknown setting
    or one of the wrong type.
    """
    spec = THREATS[threat_id]
    defaults = spec.defaults
    for name, value in settings.items():
        if name not in defaults:
            near = get_close_matches(name, defaults, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(defaults) or 'none'}"
            raise InputError(f"threat {threat_id!r} has no setting {name!r}; {hint}")
        kind = type(defaults[name])
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"threat {threat_id!r}: {name} must be {kind.__name__}, got {value!r}")
    return Threat(threat_id, spec, {**defaults, **settings})
