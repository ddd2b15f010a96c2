"""What a recipe says: the `[recipe]` table of a model's card, as data."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from benchsr.base.errors import BenchsrError, CardError
from benchsr.base.schema import Table, parse
from benchsr.metrics.objective import PerceptualNet
from benchsr.threats.table import Threat, load_threat
from benchsr.train.domains import check_source


class NetworkShape(Table):
    """An RRDB generator as spandrel builds it: `filters` channels, `blocks` RRDBs, growth 32, scale 4."""

    filters: int = Field(ge=3, le=256)
    blocks: int = Field(ge=1, le=64)


class PatchShape(Table):
    """A patch discriminator: a convolution of `kernel` taps for each of `strides`, then one to a logit for each patch.

    The first has `gan_features` channels; each further one doubles them, up to eight times as many. The default is the
    70x70 PatchGAN (Isola et al. 2017) that Ji et al. 2020 take.
    """

    kernel: int = Field(4, ge=3, le=9)
    strides: tuple[Literal[1, 2], ...] = Field((2, 2, 2, 1), min_length=1, max_length=6)


class DSGANShape(Table):
    """DSGAN's generator (Fritsche et al. 2019): `blocks` residual blocks of `features` channels, LR -> LR.

    `noise` channels of N(0, 1) join the image: 0 in the paper, whose network must make noise out of the image itself.
    """

    kind: Literal["dsgan"]
    features: PositiveInt = 64
    blocks: PositiveInt = 8
    noise: int = Field(0, ge=0, le=16)


class KernelsShape(Table):
    """A pool of `members` blur kernels, each a linear network `features` wide, and of noise patches (Ji et al. 2020).

    Member i judges itself by every `members`-th source image from the i-th on; the batch is shared out evenly. Noise
    comes from the share `smooth` of the source images' patches whose structure varies least.
    """

    kind: Literal["kernels"]
    members: PositiveInt = 8
    features: PositiveInt = 16
    smooth: float = Field(0.1, gt=0, le=1)


DegraderShape = Annotated[DSGANShape | KernelsShape, Field(discriminator="kind")]


class Stage(Table):
    """One run of the loop with fixed losses.

    `batch` images over all processes, LR crops of `crop` pixels. The learning rate warms up over `warmup` steps and
    follows half a cosine from `lr` to `lr * final_lr`. `l1`, `perceptual` and `adversarial` weigh the three terms of
    the generator's loss (spec: paper, section 5.3; RSR's public weights are 0.01, 1, 0.005). `threat` names the attack
    or corruption that the generator trains under, computed against the current weights at every step, with `settings`
    overriding the threat's own. `sigmas` are the copies of the batch in MRS fine-tuning: one copy for each entry, the
    median taken over the copies of equal sigma; `[0]` is ordinary training. `gan_features` is the discriminator's
    width, `clip` the largest gradient norm, `validate_every` in steps (0: only at the end).

    `degrader`: the stage trains no super-resolution but a network that makes LR of the source domain; later stages
    take their LR from it. Its content terms compare with bicubic LR, and its judge with images of the source domain.
    `low_pass`: side of the box filter of frequency separation (Fritsche et al. 2019): L1 compares what it lets pass,
    and the judge sees only the rest. `patch`: a patch discriminator takes the place of VGG-128.
    """

    name: str = Field(pattern=r"[a-z0-9-]+")
    steps: PositiveInt
    batch: PositiveInt
    crop: int = Field(ge=8, le=1024)
    lr: PositiveFloat
    final_lr: float = Field(1.0, ge=0, le=1)
    warmup: PositiveInt = 1
    clip: PositiveFloat = math.inf
    ema: float = Field(0.999, ge=0, lt=1)
    l1: float = Field(1.0, ge=0)
    perceptual: float = Field(0.0, ge=0)
    perceptual_net: PerceptualNet = "vgg16"
    adversarial: float = Field(0.0, ge=0)
    gan_features: PositiveInt = 64
    threat: str = "clean"
    settings: dict[str, float | int | bool | str] = Field(default_factory=dict)
    sigmas: tuple[float, ...] = Field((0.0,), min_length=1)
    validate_every: int = Field(0, ge=0)
    degrader: DegraderShape | None = None
    low_pass: int | None = Field(None, ge=3, le=33)
    patch: PatchShape | None = None

    @model_validator(mode="after")
    def _usable(self) -> Stage:
        if self.l1 + self.perceptual == 0:
            raise ValueError("l1 and perceptual cannot both be 0")
        if self.adversarial and self.crop % 8 and self.patch is None:
            raise ValueError("the VGG-128 discriminator needs HR crops that 32 divides: crop must be a multiple of 8")
        if min(self.sigmas) < 0:
            raise ValueError("sigmas must be >= 0")
        if self.low_pass is not None and self.low_pass % 2 == 0:
            raise ValueError("low_pass must be odd, so that the filter has a centre")
        if self.degrader and not (self.adversarial and self.patch):
            raise ValueError("a degrader learns from a patch discriminator: set adversarial and patch")
        if isinstance(self.degrader, KernelsShape) and self.batch % self.degrader.members:
            raise ValueError("batch must be a multiple of the degrader's members")
        try:
            threat = self.load_threat()
        except BenchsrError as error:
            raise ValueError(str(error)) from error
        if threat.part or (threat.objective and threat.objective.against != "truth"):
            raise ValueError(f"threat {self.threat!r} does not lead all of SR away from the truth; train under another")
        return self

    def load_threat(self) -> Threat:
        """The threat model that this stage trains under."""
        return load_threat(self.threat, **self.settings)

    def learning_rate(self, step: int) -> float:
        """The learning rate of 0-based `step`."""
        cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.lr * min(1.0, (step + 1) / self.warmup) * (self.final_lr + (1 - self.final_lr) * cosine)


class Recipe(Table):
    """How a model is trained: the first card of `start` whose weights can be had, or a new `network`; then `stages`.

    `held_out` images of the data, LR crops of `held_out_crop` pixels from their centres, are kept for validation.
    `sources`: where images of the source domain come from, the first that can be had: "ntire", "aim" or "dped" for real
    ones, or a corruption of the table of threats for a stand-in (see `benchsr.train.domains`).
    """

    start: tuple[str, ...] = ()
    network: NetworkShape = NetworkShape(filters=32, blocks=3)
    stages: tuple[Stage, ...] = Field(min_length=1)
    held_out: int = Field(8, ge=0)
    held_out_crop: int = Field(32, ge=8)
    sources: tuple[str, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.sources is not None) != any(stage.degrader for stage in self.stages):
            raise ValueError("sources, and a stage with a degrader that learns from them, go together")
        if self.stages[-1].degrader:
            raise ValueError("the last stage must train the generator, not a degrader")
        try:
            for name in self.sources or ():
                check_source(name)
        except BenchsrError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def crop(self) -> int:
        """The largest LR crop of the stages."""
        return max(stage.crop for stage in self.stages)

    @property
    def sha256(self) -> str:
        """Hash of every value, to tell whether weights come from this recipe.

        What is left out (None) does not count, so that a new option does not disown the weights trained before it.
        """
        return hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()

    def with_steps(self, steps: int | None) -> Recipe:
        """The same recipe with `steps` steps in every stage."""
        if steps is None:
            return self
        stages = tuple(stage.model_copy(update={"steps": steps}) for stage in self.stages)
        return self.model_copy(update={"stages": stages})


def parse_recipe(table: dict[str, Any] | None, card_id: str) -> Recipe:
    """The `[recipe]` table of card `card_id`. Raises CardError, naming card and field, where it breaks the schema."""
    if table is None:
        raise CardError(f"model {card_id!r} has no [recipe] in its card, so it cannot be trained here")
    return parse(Recipe, table, f"card {card_id!r}", within="recipe")
