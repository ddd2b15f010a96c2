"""`benchsr attack` and `benchsr upscale`: one image, one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchsr.base.inference import full_float32, pick_device
from benchsr.base.pairs import Sample
from benchsr.base.rng import Randomised
from benchsr.data.images import read_image, write_image
from benchsr.defences.table import deploy, load_model
from benchsr.evaluation.plan import facing
from benchsr.metrics.quality import psnr
from benchsr.models.cards import Card
from benchsr.models.network import load_network
from benchsr.threats.table import Threat, load_threat


@dataclass(frozen=True, eq=False)
class AttackedImage:
    """One image before and after a threat: LR (1, 3, h, w) and SR (1, 3, sh, sw) in [0, 1].

    Before and after: `psnr` in dB, and `loss`, the attack's objective, which is empty for what is no attack.
    """

    lr: Tensor
    attacked: Tensor
    sr: Tensor
    psnr: Sequence[float]
    loss: Sequence[float]

    @property
    def largest_change(self) -> float:
        """The L-infinity norm of the perturbation, in [0, 1] units."""
        return float((self.attacked - self.lr).abs().max())

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """What changed, in words: name, before, after."""
        if self.loss:
            before, after = (f"{loss:.4f}" for loss in self.loss)
            yield "objective", before, after
        before, after = (f"{figure:.2f} dB" for figure in self.psnr)
        yield "PSNR", before, after

    def save(self, lr_file: Path, sr_file: Path) -> None:
        """Write the attacked LR and its SR as PNG, rounded to 8 bit. Raises InputError where that cannot be done."""
        write_image(lr_file, self.attacked[0].cpu())
        write_image(sr_file, self.sr[0].cpu())


def attack_image(card: Card, threat: Threat, sample: Sample, device: str = "auto", seed: int = 0) -> AttackedImage:
    """Attack one image as a run does: the attack sees what `threat` shows it of the model, and the model answers as its
    card deploys it against that threat. Raises BenchsrError for a model, device or threat that cannot be used.
    """
    target = pick_device(device)
    network = load_network(card, target)
    seen = deploy(card, threat.like, network, seed, threat.median_of) if threat.median_of else network
    threat = facing(threat, card)
    deployed = deploy(card, threat.like, network, seed)
    lr, hr = sample.lr[None].to(target), sample.hr[None].to(target)
    with full_float32():
        result = threat.run(seen, lr, hr, [sample.id], seed)
        before, after = (_answer(deployed, x, sample.id) for x in (lr, result.lr))
    figures = [float(psnr(*threat.scored(sr, hr, lr)[:2])) for sr in (before, after)]
    losses = [float(loss) for loss in (result.loss_clean, result.loss_attacked) if loss is not None]
    return AttackedImage(lr, result.lr, after, figures, losses)


@torch.no_grad()
def _answer(model: nn.Module, x: Tensor, sample_id: str) -> Tensor:
    """SR (1, 3, sh, sw) in [0, 1] of one image, whose id fixes the noise of a model that draws any."""
    ids = [[sample_id]] if isinstance(model, Randomised) else []
    sr: Tensor = model(x, *ids)
    return sr.clamp(0, 1)


def upscale_image(image: Path, model: str, out: Path, threat: str, device: str = "auto") -> tuple[int, int]:
    """Super-resolve an LR image file into the PNG `out`; returns its height and width.

    A smoothed model takes the sigma that it has against `threat`. Raises BenchsrError for what cannot be used.
    """
    target = pick_device(device)
    network = load_model(model, load_threat(threat).like, target)
    with torch.no_grad():
        sr = network(read_image(image)[None].to(target))[0].clamp(0, 1).cpu()
    write_image(out, sr)
    return sr.shape[1], sr.shape[2]
