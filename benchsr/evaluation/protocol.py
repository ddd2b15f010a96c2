"""What one leaderboard means: data, threats and their numbers, metrics, precision and seed; and its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from benchsr.base.errors import BenchsrError, InputError
from benchsr.base.files import digest
from benchsr.base.pairs import SCALES, USUAL, Scale
from benchsr.base.registry import Registry
from benchsr.base.schema import Id, Table, Text, parse, read_toml
from benchsr.metrics.objective import PerceptualNet
from benchsr.metrics.quality import MetricSettings
from benchsr.threats.table import FIXED, THREATS, Setting, Threat, load_threat, select_ids

CODE_VERSION = 2
"""Raised whenever a change of code changes a figure; part of every key and fingerprint."""


class ObjectiveSettings(Table):
    """The loss that attacks raise: see `benchsr.metrics.objective.Objective`."""

    l1_weight: float = Field(1.0, ge=0)
    perceptual_weight: float = Field(1.0, ge=0)
    perceptual_net: PerceptualNet = "vgg16"


class Protocol(Table):
    """A protocol file. `scale` is the super-resolution factor; networks of others take no part. `crop` is the side of a
    centred LR crop in pixels (None: whole images), `images` how many of the data set's first images are used;
    `settings` overrides numbers of single threats; `precision` is that of the network inside attacks (scores are always
    float32). A model that draws noise is scored `evaluations` times on each image, with noise that no attack has seen,
    and its figures are means.
    """

    id: Id
    title: Text
    notes: tuple[Text, ...] = ()
    scale: Scale = USUAL
    dataset: str = Field(max_length=1000)
    crop: int | None = Field(None, ge=12, le=4096)
    images: int | None = Field(None, ge=1)
    evaluations: int = Field(1, ge=1, le=1000)
    threats: tuple[str, ...] = tuple(FIXED)
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Literal["fp32", "bf16"] = "fp32"
    quantise_lr: bool = False
    objective: ObjectiveSettings = ObjectiveSettings()
    metrics: MetricSettings = MetricSettings()
    settings: dict[str, dict[str, Setting]] = Field(default_factory=dict)

    @field_validator("threats")
    @classmethod
    def _known(cls, threats: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(select_ids(",".join(threats)))
        except BenchsrError as error:
            raise ValueError(str(error)) from None

    @field_validator("settings")
    @classmethod
    def _loadable(cls, settings: dict[str, dict[str, Setting]]) -> dict[str, dict[str, Setting]]:
        for threat, values in settings.items():
            try:
                load_threat(threat, **values)
            except BenchsrError as error:
                raise ValueError(str(error)) from None
        return settings

    def threat(self, threat_id: str) -> Threat:
        """The threat as this protocol sets it, its objective included."""
        return _resolved(
            threat_id, tuple(self.objective.model_dump().items()), _items(self.settings.get(threat_id, {}))
        )

    @property
    def board(self) -> str:
        """The name of its leaderboard, which is of one scale: the id, and a scale that is not the usual one."""
        return self.id if self.scale == USUAL else f"{self.id}-x{self.scale}"

    @property
    def heading(self) -> str:
        """The title, with a scale that is not the usual one: "Quick x2: embedded photographs"."""
        name, *rest = self.title.split(":", 1)
        return self.title if self.scale == USUAL else ":".join([f"{name} x{self.scale}", *rest])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that can change a figure, apart from the data and the weights, which each row's key adds."""
        figures = self.figures()
        if self.scale == USUAL:
            del figures["scale"]  # so that fingerprints from before it was a choice hold
        return digest({"code": CODE_VERSION, **figures})

    def override(
        self,
        *,
        scale: int | None = None,
        dataset: str | None = None,
        seed: int | None = None,
        precision: str | None = None,
        perceptual_net: str | None = None,
    ) -> Protocol:
        """This protocol with some settings replaced (None: as it is), and so with another fingerprint."""
        fields = self.model_dump()
        given = {"scale": scale, "dataset": dataset, "seed": seed, "precision": precision}
        fields |= {name: value for name, value in given.items() if value is not None}
        if perceptual_net is not None:
            fields["objective"]["perceptual_net"] = perceptual_net
        return parse(Protocol, fields, "option")

    def figures(self) -> dict[str, Any]:
        """Everything that can change a figure, every threat's settings spelled out."""
        fields = self.model_dump(exclude={"title", "notes", "settings", "objective", "threats"})
        versions = {"versions": self.metrics.versions} if self.metrics.versions else {}
        threats = {"threats": {t: dict(self.threat(t).settings) for t in self.threats}}
        origins = {"origins": found} if (found := THREATS.origins(self.threats)) else {}
        return {**fields, **threats, **versions, **origins}

    @property
    def description(self) -> list[str]:
        """The settings in words, a line each, for reports."""
        size = f"centred LR crops of {self.crop} x {self.crop} pixels" if self.crop else "whole images"
        first = f", first {self.images} images" if self.images else ""
        lines = [f"Super-resolution x{self.scale}."] * (self.scale != USUAL) + [
            f"Data: {self.dataset}{first}, {size}; seed {self.seed}; attacked LR {'' if self.quantise_lr else 'not '}"
            "rounded to 8 bit.",
            self.metrics.description,
            f"Models that draw noise: means over {self.evaluations} independent evaluations of each image.",
            f"Attacks raise {self.objective.l1_weight:g} L1 + {self.objective.perceptual_weight:g} perceptual "
            f"({self.objective.perceptual_net}), network in {self.precision}; scores in fp32.",
        ]
        grouped = [t for t in self.threats if THREATS[t].group]
        for threat_id in (t for t in self.threats if t not in grouped):
            threat = self.threat(threat_id)
            numbers = {k: v for k, v in threat.settings.items() if k not in self.objective.model_dump()}
            if numbers:
                lines.append(
                    f"{threat.spec.title}: " + ", ".join(_number(k, v, numbers) for k, v in numbers.items()) + "."
                )
        for group in dict.fromkeys(THREATS[t].group for t in grouped):
            several = [self.threat(t) for t in grouped if THREATS[t].group == group]
            settings = {k: [_number("", t.settings[k], {}).strip() for t in several] for k in several[0].settings}
            numbers_of = "; ".join(f"{name} {', '.join(dict.fromkeys(values))}" for name, values in settings.items())
            lines.append(f"{', '.join(t.id for t in several)}: {numbers_of}.")
        return lines + list(self.notes)


def _items(settings: Mapping[str, Setting]) -> tuple[tuple[str, Setting], ...]:
    return tuple(sorted(settings.items()))


@lru_cache(maxsize=1024, typed=True)
def _resolved(
    threat_id: str, objective: tuple[tuple[str, Setting], ...], settings: tuple[tuple[str, Setting], ...]
) -> Threat:
    """A threat whose settings are the table's, then the protocol's objective, then what it says of this threat."""
    defaults = THREATS[threat_id].defaults
    shared = {name: value for name, value in objective if name in defaults}
    return load_threat(threat_id, **{**shared, **dict(settings)})


def _number(name: str, value: Setting, among: Mapping[str, Setting]) -> str:
    """A setting in words; `among` all of its threat, whose norm says what eps is in."""
    if name in ("eps", "alpha") and "norm" not in among:
        return f"{name} {float(value) * 255:g}/255"
    return f"{name} {str(value).lower() if isinstance(value, bool | str) else f'{value:g}'}"


def load_protocol(name_or_path: str | Path) -> Protocol:
    """A packaged protocol by id, at another scale by the name of its board ("quick-x2"), or one from a TOML file.

    Raises CardError naming file and field where the file does not follow the schema, UnknownIdError for an unknown id.
    """
    if str(name_or_path).endswith(".toml"):
        return _read(Path(name_or_path))
    return _boards().get(str(name_or_path)) or protocols()[str(name_or_path)]


def _boards() -> dict[str, Protocol]:
    """The packaged protocols at every scale, by the name of their board."""
    at_scale = (protocol.override(scale=scale) for protocol in protocols().values() for scale in SCALES)
    return {protocol.board: protocol for protocol in at_scale}


def protocols() -> Registry[Protocol]:
    """The protocols that come with benchsr."""
    folder = Path(__file__).parent / "protocols"
    return Registry("protocol", {path.stem: _read(path) for path in sorted(folder.glob("*.toml"), reverse=True)})


def _read(path: Path) -> Protocol:
    return parse(Protocol, read_toml(path), str(path))


def select_threats(threats: str, protocol: Protocol) -> list[str]:
    """Ids for "all" of the protocol's threats or a comma-separated list. Raises InputError for one outside of them."""
    if threats.strip() == "all":
        return list(protocol.threats)
    ids = select_ids(threats)
    for threat in ids:
        if threat not in protocol.threats:
            raise InputError(
                f"protocol {protocol.id!r} has no threat {threat!r}; it has: {', '.join(protocol.threats)}"
            )
    return ids
