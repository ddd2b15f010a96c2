"""The table of threat models: what is done to the LR image before a model sees it (paper, sections 3.1 and 5.2).

Every number of a setting is named and can be overridden: `load_threat("pgd", eps=4 / 255, steps=20)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from math import sqrt
from typing import Any, Literal, get_args

from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.base.pairs import check_pair
from benchsr.base.registry import Registry
from benchsr.base.rng import generators
from benchsr.metrics.objective import LOSSES, BoundObjective, Objective, PerceptualNet
from benchsr.threats.adaptive import APGD, Square, StrongPGD
from benchsr.threats.attacks import BIM, CW, FGSM, PGD, AttackResult, GradientAttack
from benchsr.threats.balls import Ball, make_ball
from benchsr.threats.corruptions import (
    KERNELS,
    gaussian_blur,
    gaussian_noise,
    identity,
    phone_noise,
    processed_noise,
    random_signs,
    sensor_noise,
)
from benchsr.threats.severities import KINDS, SEVERITIES
from benchsr.threats.variants import DIMIFGSM, MIFGSM, EightBitPGD, Part, PartialPGD, Universal, beside

Setting = float | int | bool | str

APART = ("l1_weight", "perceptual_weight", "perceptual_net", "loss", "median_of", "singles")
"""Settings that `make` does not take: what the attack raises, and how a smoothed model is asked."""

Kind = Literal["corruption", "attack", "dataset"]

CHOICES: Mapping[str, Sequence[str]] = {"perceptual_net": get_args(PerceptualNet), "kernel": tuple(KERNELS)}
"""Settings that are names, with those that there are."""


@dataclass(frozen=True)
class ThreatSpec:
    """One entry of the table: `make` is a corruption function, an attack class, or None for a paired data set.

    `preset` replaces defaults of `make`. Its `median_of` says what an adaptive attack sees of a smoothed model: 0 the
    base network, 1 single noisy draws, k the median of k new draws. Its `norm` says in which norm eps is a radius, over
    the whole LR image, where that is not L-infinity; its `loss` names an entry of `LOSSES` that stands in place of the
    protocol's objective. Its `singles`, where it has them, say that so many noisy answers of a smoothed model are
    scored one by one, in place of their median. `like`: the threat whose sigma a model takes that has one for each
    threat. `group`: the kind of corruption of which this is one severity; all of a group draw the same noise.
    `of_truth`: `make` is given HR too. `line` says what it does where `make` alone does not tell. `limited`: it is
    weaker than others of its size by design, and no sign of failure. `others`: (ids of the data set, id of an image)
    -> ids of the images that the attack on this one is given beside it, none of which is that one.
    """

    title: str
    kind: Kind
    make: Callable[..., Any] | None = None
    dataset: str = ""
    preset: Mapping[str, Setting] = field(default_factory=dict)
    like: str = ""
    group: str = ""
    of_truth: bool = False
    line: str = ""
    limited: bool = False
    others: Callable[[Sequence[str], str], Sequence[str]] | None = None

    @property
    def in_part(self) -> bool:
        """Whether only a part of each image is scored."""
        return "margin" in self.defaults

    @property
    def unattacked(self) -> str:
        """The threat that scores the same statistic of the same part without an attack."""
        if "singles" in self.preset:
            return "single"
        return "partial-clean" if self.in_part else "clean"

    @property
    def about(self) -> str:
        """What it does, in a line."""
        return self.line or (inspect.getdoc(self.make) or self.title).splitlines()[0]

    @cached_property
    def defaults(self) -> dict[str, Setting]:
        """The overridable settings with their default values."""
        if self.make is None:
            return {}
        parameters = inspect.signature(self.make).parameters.values()
        apart = ("objective", "norm")
        settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in apart}
        if self.kind == "attack":
            objective, fixed = Objective(), "loss" in self.preset
            if not fixed:
                settings |= {"l1_weight": objective.l1_weight, "perceptual_weight": objective.perceptual_weight}
            if not fixed or LOSSES[str(self.preset["loss"])].perceptual_weight:
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
            f"{name.upper()} {how}", "attack", make, preset={"eps": 10 / 255, **preset}, like="pgd"
        )
        for name, make in {"pgd": StrongPGD, "apgd": APGD}.items()
        for view, (how, preset) in VIEWS.items()
    },
    "square": ThreatSpec(
        "Square through the median", "attack", Square, preset={"eps": 10 / 255, "median_of": 5}, like="pgd"
    ),
    **{
        name: ThreatSpec(
            f"PGD through the median, eps {eps * 255:g}/255",
            "attack",
            StrongPGD,
            preset={"eps": eps, "steps": 20, "restarts": 1, "median_of": 5},
            like="pgd",
        )
        for name, eps in SWEEP.items()
    },
}
"""Threats that know the model they face, and the random noise that they must beat."""

CROP_24 = sqrt(3 * 24 * 24) * 8 / 255
"""The l2 norm of a change of every element of a 24 x 24 LR image by 8/255: 1.304."""

L2_SWEEP = {f"l2-{eps:g}": eps for eps in (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 0.87)}
"""l2 radii over the whole LR image, from inside the certificates of sigma 0.03 to a change of every element of a 16 x
16 image by 8/255, which is 0.869."""

EUCLIDEAN: dict[str, ThreatSpec] = {
    **{
        f"{name}-l2": ThreatSpec(
            f"{name.upper()} in l2 through the median",
            "attack",
            make,
            preset={"eps": CROP_24, "norm": "l2", "median_of": 5},
            like="pgd",
        )
        for name, make in {"pgd": StrongPGD, "apgd": APGD}.items()
    },
    **{
        f"{before}{name}": ThreatSpec(
            f"{title} through the median, l2 norm {eps:g}",
            "attack",
            make,
            preset={"eps": eps, "norm": "l2", "steps": 20, "restarts": 1, "median_of": 5},
            like="pgd",
        )
        for title, before, make in (("APGD", "", APGD), ("PGD", "pgd-", StrongPGD))
        for name, eps in L2_SWEEP.items()
    },
}
"""Attacks of the kind that smoothing certificates speak of: eps bounds the l2 norm over the whole LR image."""

UNATTACKED: dict[str, ThreatSpec] = {
    "l2-0": ThreatSpec("Clean LR, smoothed as under attack", "corruption", identity, like="pgd"),
    "single": ThreatSpec("Single noisy answers", "corruption", identity, preset={"singles": 1001}, like="pgd"),
}
"""The radius 0 of the sweeps: the clean image under the sigma of the attacks, as deployed and answer by answer. What a
certificate of the median score rests on are the latter."""

SINGLE: dict[str, ThreatSpec] = {
    **{
        f"single-{name}": ThreatSpec(
            f"APGD on single noisy answers, l2 norm {eps:g}",
            "attack",
            APGD,
            preset={
                "eps": eps,
                "norm": "l2",
                "steps": 20,
                "restarts": 1,
                "median_of": 1,
                "draws": 5,
                "singles": 101,
            },
            like="pgd",
        )
        for name, eps in L2_SWEEP.items()
    },
}
"""Attacks on the median score of single noisy answers."""

ENSEMBLE: dict[str, ThreatSpec] = {
    f"aa-{name}": ThreatSpec(
        f"AutoAttack-SR: {what}",
        "attack",
        make,
        preset={"eps": 10 / 255, "loss": loss, "median_of": 5},
        like="pgd",
    )
    for name, make, loss, what in (
        ("l1", APGD, "l1", "APGD on L1"),
        ("mse", APGD, "mse", "APGD on MSE"),
        ("perceptual", APGD, "perceptual", "APGD on features"),
        ("answer", APGD, "answer", "APGD away from the model's clean answer"),
        ("turned", APGD, "turned", "APGD towards the truth turned upside down"),
        ("square", Square, "l1", "Square on L1"),
    )
}
"""`autoattack-sr`: these together, with nothing to tune; of each image the worst by each metric counts."""

ALIKE: dict[str, Setting] = {"eps": 10 / 255, "steps": 10, "restarts": 1, "pace": 2.0, "median_of": 5}
"""Numbers of `pgd`, and the model as it is deployed."""

TRANSFER: dict[str, Setting] = {"eps": 10 / 255, "median_of": 5}


def next_image(ids: Sequence[str], image: str) -> list[str]:
    """The image that follows in the data set, after the last the first; none where there is no other."""
    following = ids[(ids.index(image) + 1) % len(ids)]
    return [following] if following != image else []


def other_half(ids: Sequence[str], image: str) -> list[str]:
    """The images of odd place for one of even place, and the other way round: each is another one's held-out image."""
    return list(ids[1 - ids.index(image) % 2 :: 2])


VARIANTS: dict[str, ThreatSpec] = {
    "pgd-targeted": ThreatSpec(
        "Targeted PGD",
        "attack",
        StrongPGD,
        preset={**ALIKE, "loss": "other"},
        like="pgd",
        line="PGD that lowers the L1 distance to another image: the next one of the data set.",
        limited=True,
        others=next_image,
    ),
    "pgd-answer": ThreatSpec(
        "PGD without the truth",
        "attack",
        StrongPGD,
        preset={**ALIKE, "loss": "answer"},
        like="pgd",
        line="PGD that raises the L1 distance to the model's own clean answer: it needs no truth.",
        limited=True,
    ),
    "cospgd": ThreatSpec(
        "CosPGD",
        "attack",
        StrongPGD,
        preset={**ALIKE, "loss": "aligned"},
        like="pgd",
        line="PGD whose L1 counts most where SR still has the truth's colours (Agnihotri et al. 2024).",
    ),
    "pgd-8bit": ThreatSpec("8-bit PGD", "attack", EightBitPGD, preset=ALIKE, like="pgd", limited=True),
    "mi-fgsm": ThreatSpec("MI-FGSM", "attack", MIFGSM, preset=TRANSFER, like="pgd", limited=True),
    "di-mi-fgsm": ThreatSpec("DI-MI-FGSM", "attack", DIMIFGSM, preset=TRANSFER, like="pgd", limited=True),
    "universal": ThreatSpec(
        "Universal perturbation",
        "attack",
        Universal,
        preset={"eps": 10 / 255, "steps": 20, "median_of": 5},
        like="pgd",
        line="One perturbation for half of the images, fitted on the other half (Choi et al. 2019).",
        limited=True,
        others=other_half,
    ),
    "partial-clean": ThreatSpec("Clean LR, right part", "corruption", beside, like="pgd"),
    "partial": ThreatSpec("PGD on the left, right part", "attack", PartialPGD, preset=ALIKE, like="pgd", limited=True),
}
"""Attacks with other aims or means than PGD's, of its size."""

CORRUPTIONS: dict[str, ThreatSpec] = {
    f"{name}-{severity}": ThreatSpec(
        f"{kind.title}, severity {severity}",
        "corruption",
        kind.make,
        preset=kind.at(severity),
        group=name,
        of_truth="hr" in inspect.signature(kind.make).parameters,
    )
    for name, kind in KINDS.items()
    for severity in SEVERITIES
}
"""The corruption suite, kind by kind."""

THREATS: Registry[ThreatSpec] = Registry(
    "threat",
    {**FIXED, **ADAPTIVE, **UNATTACKED, **EUCLIDEAN, **SINGLE, **ENSEMBLE, **VARIANTS, **CORRUPTIONS},
    group="benchsr.threats",
    of=ThreatSpec,
)

GROUPS: Mapping[str, tuple[str, ...]] = {"autoattack-sr": tuple(ENSEMBLE)}
"""Names that stand for several threats together."""


def select_ids(names: str) -> list[str]:
    """Threat ids for "all" or a comma-separated list, in which a group of `GROUPS` stands for its members.

    Raises UnknownIdError for an unknown one.
    """
    parts = [name.strip() for name in names.split(",")]
    return THREATS.select(",".join(member for name in parts for member in GROUPS.get(name, (name,))))


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
        if "loss" in s:
            fixed = LOSSES[str(s["loss"])]
            return replace(fixed, net=s.get("perceptual_net", fixed.net))  # type: ignore[arg-type]
        return Objective(float(s["l1_weight"]), float(s["perceptual_weight"]), s["perceptual_net"])  # type: ignore[arg-type]

    @property
    def median_of(self) -> int:
        """Draws in the median that the attack is shown of a smoothed model; 0: it sees the base network."""
        return int(self.settings.get("median_of", 0))

    @property
    def singles(self) -> int:
        """Noisy answers of a smoothed model that are scored one by one; 0: it is scored as it is deployed."""
        return int(self.settings.get("singles", 0))

    @property
    def _own(self) -> dict[str, Setting]:
        """The settings that `make` takes."""
        return {name: value for name, value in self.settings.items() if name not in APART}

    @property
    def ball(self) -> Ball | None:
        """Where the changed LR image stays around the clean one; None where no eps bounds it."""
        if "eps" not in self.settings:
            return None
        return make_ball(self.settings.get("norm", "linf"), float(self.settings["eps"]))  # type: ignore[arg-type]

    @property
    def part(self) -> Part | None:
        """What of each image is scored; None: all of it."""
        if "margin" not in self.settings:
            return None
        return Part(float(self.settings["attacked"]), int(self.settings["margin"]))

    def scored(self, sr: Tensor, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What metrics are given of SR and HR (..., sh, sw) and LR (..., h, w)."""
        if self.part is None:
            return sr, hr, lr
        first, second, third = (self.part.scored(image, lr.shape[-1]) for image in (sr, hr, lr))
        return first, second, third

    @property
    def like(self) -> str:
        """The threat whose sigma applies to a model that has one for each threat."""
        return self.spec.like or self.id

    def attack(self, model: nn.Module) -> GradientAttack:
        """The torchattacks-style attack on `model`. Raises InputError where this threat is not an attack."""
        if self.spec.kind != "attack" or self.spec.make is None:
            raise InputError(f"threat {self.id!r} is a {self.spec.kind}, not an attack")
        attack: GradientAttack = self.spec.make(model, objective=self.objective, **self._own)
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
        shift: Tensor | None = None,
    ) -> AttackResult:
        """The attacked or corrupted LR, with what an attack reports of it; arguments as for `GradientAttack.run`.

        `shift`: what `Universal.fit` has found on other images, which a universal attack cannot do without.
        """
        if self.spec.kind == "attack":
            attack = self.attack(model)
            if isinstance(attack, Universal) and shift is not None:
                return attack.apply(shift, lr, hr, ids, seed, bound=bound, batch_size=batch_size)
            return attack.run(lr, hr, ids, seed, bound=bound, batch_size=batch_size)
        if self.spec.make is None:
            raise InputError(f"threat {self.id!r} is the data set {self.spec.dataset!r}: it brings its own LR images")
        check_pair(lr, hr)
        ids = [str(i) for i in range(len(lr))] if ids is None else ids
        gens, truth = generators(seed, ids, self.spec.group or self.id), (hr,) if self.spec.of_truth else ()
        corrupted: Tensor = self.spec.make(lr, gens, *truth, **self._own)
        return AttackResult(corrupted.clamp(0, 1), None, None)

    def __call__(
        self, model: nn.Module, lr: Tensor, hr: Tensor, ids: Sequence[str] | None = None, seed: int = 0
    ) -> Tensor:
        """Attack or corrupt `lr` (N, 3, h, w) in [0, 1], truth `hr` (N, 3, sh, sw): the new LR, in [0, 1].

        `ids` (default "0", "1", ...) and `seed` fix the random draws image by image. Raises InputError for unusable
        tensors and for paired data sets, ModelError for a model whose output cannot be used.
        """
        return self.run(model, lr, hr, ids, seed).lr


def load_threat(threat_id: str, **settings: Setting) -> Threat:
    """The threat of the table under `threat_id`, with `settings` overriding its defaults.

    Attacks take `eps`, `alpha`, `steps`, `random_start`, `c`, `lr` where they apply, and `l1_weight`,
    `perceptual_weight`, `perceptual_net`. Raises UnknownIdError for an unknown id and InputError for an unknown setting
    or one of the wrong type or name.

    Examples:
        >>> import benchsr, torch
        >>> model, lr, hr = benchsr.load_model("bicubic"), torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 3, 64, 64)
        >>> fgsm = benchsr.load_threat("fgsm", eps=8 / 255, perceptual_weight=0.0)
        >>> round(float((fgsm(model, lr, hr) - lr).abs().max()) * 255, 2)
        8.0
    """
    spec = THREATS[threat_id]
    defaults = spec.defaults
    for name, value in list(settings.items()):
        if name not in defaults:
            near = get_close_matches(name, defaults, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(defaults) or 'none'}"
            raise InputError(f"threat {threat_id!r} has no setting {name!r}; {hint}")
        kind = type(defaults[name])
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"threat {threat_id!r}: {name} must be {kind.__name__}, got {value!r}")
        if name in CHOICES and value not in CHOICES[name]:
            raise InputError(f"threat {threat_id!r}: {name} must be one of {', '.join(CHOICES[name])}; got {value!r}")
        settings[name] = kind(value)  # 1 and 1.0 are one setting of a float, and have one key
    return Threat(threat_id, spec, {**defaults, **settings})
