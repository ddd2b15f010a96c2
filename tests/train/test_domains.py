"""Source domains: networks that make LR of a domain, and super-resolution trained on what they make."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import pytest
import spandrel
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import make_images, tiny_rrdb
from PIL import Image
from test_train import TINY, log_rows
from torch import nn

from benchsr.base.errors import CardError, InputError, UnavailableError
from benchsr.base.rng import generators
from benchsr.base.shrinking import bicubic_downscale
from benchsr.models.network import load_network
from benchsr.models.zoo import zoo
from benchsr.threats.table import load_threat
from benchsr.train.crops import Crops, load_images
from benchsr.train.degraders import DSGAN, KernelPool, bicubic_kernel, degrade, noise_patches, shrink
from benchsr.train.domains import with_source
from benchsr.train.loop import Job, Trainer
from benchsr.train.losses import low_pass
from benchsr.train.networks import PatchDiscriminator, new_generator
from benchsr.train.noise import noise_statistics, plot_noise
from benchsr.train.provenance import provenance
from benchsr.train.recipe import Recipe, parse_recipe
from benchsr.train.validate import validate

DOMAIN_CARDS = {card_id: card for card_id, card in zoo().items() if card.recipe and "sources" in card.recipe}
PATCH = {"kernel": 3, "strides": [1, 1]}
DEGRADER = TINY | {"name": "make", "adversarial": 0.01, "gan_features": 2, "patch": PATCH, "low_pass": 3}


def test_each_domain_has_both_methods_at_both_scales() -> None:
    rows = {f"{m}-{d}" for m in ("esrgan-fs", "impressionism") for d in ("ntire", "aim", "dped")}
    wanted = {f"compact-{row}" for row in rows} | {f"re-{row}" for row in rows - {"impressionism-ntire"}}
    assert set(DOMAIN_CARDS) == wanted | {"esrgan-fs-ntire", "impressionism-aim"}
    assert all("stand-in" in zoo()[card_id].title for card_id in wanted)


def tiny_job(card_id: str, images: Path, out: Path, held_out: int = 0) -> Job:
    """The recipe of a card at toy size, its source domain the stand-in."""
    recipe = parse_recipe(DOMAIN_CARDS[card_id].recipe, card_id)
    stages = []
    for stage in recipe.stages:
        table = stage.model_dump()
        members = table["degrader"].get("members", 1) if table["degrader"] else 1
        shape = {"features": 4, "blocks": 1, "members": min(members, 2)}
        if table["degrader"]:
            table["degrader"] |= {name: value for name, value in shape.items() if name in table["degrader"]}
        if table["patch"]:
            table["patch"] = {"kernel": 3, "strides": (2, 1)}
        small = {"steps": 10, "batch": 2, "crop": 8, "gan_features": 2, "warmup": 1, "validate_every": 0}
        stages.append(table | small)
    domain = card_id.rpartition("-")[2]
    tiny = Recipe.model_validate({"stages": stages, "held_out": held_out, "sources": (f"standin-{domain}",)})
    data = with_source(load_images(images, 8, held_out, 8, progress=False), tiny.sources or (), 8, seed=0)
    return Job("tiny", tiny, new_generator(8, 1), data, out)


@pytest.mark.parametrize("card_id", DOMAIN_CARDS)
def test_ten_steps_of_each_stage(
    card_id: str,
    folder: Path,
    tmp_path: Path,
    trunk: nn.Module,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchsr.train.loop.NOISE_CROPS", 16)
    job = tiny_job(card_id, folder, tmp_path / "out")
    before = copy.deepcopy(job.network.state_dict())
    progress = Trainer(job, accelerator).run()
    make, tune = job.recipe.stages
    rows = log_rows(job.out)
    assert [row["stage"] for row in rows] == [make.name] * 10 + [tune.name] * 10
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    assert {"bicubic_spectrum", "generated_spectrum"} <= progress.validation[0].keys()
    assert Image.open(job.out / f"noise-{make.name}.png").width > 500
    after = spandrel.ModelLoader(device="cpu").load_from_file(job.weights(tune)).model.state_dict()
    assert max(float((after[key] - before[key]).abs().max()) for key in before) > 1e-5


def test_provenance_tells_what_the_start_reached_in_the_domain(
    folder: Path,
    tmp_path: Path,
    trunk: nn.Module,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchsr.train.loop.NOISE_CROPS", 16)
    job = tiny_job("compact-esrgan-fs-aim", folder, tmp_path / "out", held_out=1)
    [untrained] = validate(copy.deepcopy(job.network).eval(), job.data.held_out, [load_threat("standin-aim")])
    table = provenance(job, Trainer(job, accelerator).run(), start="scratch", command="", processes=1)
    assert table["start_validation"] == {name: round(value, 4) for name, value in untrained.items()}
    assert set(table["stages"][-1]["validation"]) > set(untrained)


def test_resuming_in_the_second_stage_takes_the_same_steps(
    folder: Path,
    tmp_path: Path,
    trunk: nn.Module,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchsr.train.loop.NOISE_CROPS", 16)
    whole = tiny_job("compact-impressionism-aim", folder, tmp_path / "whole")
    Trainer(whole, accelerator).run()

    cut = tiny_job("compact-impressionism-aim", folder, tmp_path / "cut")
    trainer = Trainer(cut, accelerator)
    real, steps = Crops.__getitem__, 0

    def failing(self: Crops, step: int) -> object:
        nonlocal steps
        steps += self.stage == "fine-tuning"
        if steps == 5:
            raise KeyboardInterrupt
        return real(self, step)

    object.__setattr__(cut, "checkpoint_seconds", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Crops, "__getitem__", failing)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    again = tiny_job("compact-impressionism-aim", folder, tmp_path / "cut")
    Trainer(again, accelerator, resume=True).run()
    for a, b in zip(log_rows(whole.out), log_rows(again.out), strict=True):
        assert (a["stage"], a["step"]) == (b["stage"], b["step"])
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)


def test_a_stand_in_source_shares_no_photograph_with_hr(folder: Path) -> None:
    images = load_images(folder, 8, 0, 8, progress=False)
    data = with_source(images, ("standin-aim",), 8, seed=0)
    assert data.source is not None
    assert (len(data.images), len(data.source.images)) == (2, 2)
    assert all(torch.equal(a, b) for a, b in zip(data.images, images.images[::2], strict=True))
    again = with_source(images, ("aim", "standin-aim"), 8, seed=0)  # no real images here: the next is taken
    assert again.source is not None
    assert all(torch.equal(a, b) for a, b in zip(data.source.images, again.source.images, strict=True))
    other = with_source(images, ("standin-aim",), 8, seed=1)
    assert other.source is not None
    assert not torch.equal(data.source.images[0], other.source.images[0])


def test_a_domain_that_cannot_be_had_says_what_to_get(folder: Path) -> None:
    images = load_images(folder, 8, 0, 8, progress=False)
    with pytest.raises(UnavailableError, match=r"NTIRE 2020 .*ntire-track1-train"):
        with_source(images, ("ntire",), 8, seed=0)


def test_real_images_of_a_domain_are_used(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "cache"))
    make_images(tmp_path / "cache" / "datasets" / "aim-train", count=3)
    images = load_images(folder, 8, 0, 8, progress=False)
    data = with_source(images, ("aim", "standin-aim"), 8, seed=0)
    assert data.source is not None
    assert (data.source.name, len(data.source.images), len(data.images)) == ("aim", 3, 4)
    assert data.fingerprint != images.fingerprint


def test_shrinking_with_the_bicubic_kernel_is_bicubic() -> None:
    hr = torch.rand((2, 3, 64, 48), generator=torch.Generator().manual_seed(0))
    ours = shrink(hr, bicubic_kernel(24).expand(2, 24, 24))
    theirs = F.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True)
    torch.testing.assert_close(ours[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4], atol=1e-5, rtol=0)


def test_untrained_degraders_start_at_bicubic() -> None:
    hr = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    lr = bicubic_downscale(hr)
    gens = generators(0, ["a", "b"], "x")
    torch.testing.assert_close(DSGAN(4, 1, 0)(hr, lr, gens), lr)
    noise = (DSGAN(4, 1, 3)(hr, lr, gens) - lr)[..., 2:-2, 2:-2]
    assert float(noise.detach().std()) == pytest.approx(DSGAN.START, rel=0.2)
    pool = KernelPool(2, 3, torch.zeros(1, 3, 16, 16)).eval()
    torch.testing.assert_close(pool(hr, lr, gens)[..., 4:-4, 4:-4], lr[..., 4:-4, 4:-4], atol=0.01, rtol=0)
    assert pool.kernels().sum((1, 2)).tolist() == pytest.approx([1, 1])


def test_degrading_depends_on_the_row_alone() -> None:
    hr = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    lr = bicubic_downscale(hr)
    patches = 0.05 * torch.randn((5, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    pool = KernelPool(2, 3, patches).eval()
    both = degrade(pool, hr, lr, ["a", "b"], 0)
    torch.testing.assert_close(both[1:], degrade(pool, hr[1:], lr[1:], ["b"], 0))
    assert float((both - lr).std()) > 0.02  # the noise is there
    assert torch.equal(both, (both * 255).round() / 255)


def test_noise_patches_come_from_smooth_regions() -> None:
    gen = torch.Generator().manual_seed(0)
    image = torch.full((3, 64, 64), 128.0)
    image[:, :, 32:] += 60 * F.interpolate(torch.rand((1, 1, 4, 2), generator=gen), size=(64, 32))[0] - 30  # structure
    image += 5 * torch.randn(image.shape, generator=gen)
    patches = noise_patches([image.byte()], side=16, smooth=0.5)
    assert patches.shape == (8, 3, 16, 16)
    assert float(patches.std()) * 255 == pytest.approx(5, rel=0.1)
    torch.testing.assert_close(patches.mean((2, 3)), torch.zeros(8, 3), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="too dark or too bright"):
        noise_patches([torch.zeros((3, 32, 32), dtype=torch.uint8)], side=16, smooth=0.5)


def test_noise_statistics_of_known_noise() -> None:
    gen = torch.Generator().manual_seed(0)
    white = 0.5 + 0.05 * torch.randn((400, 3, 16, 16), generator=gen)
    found = noise_statistics(white)
    assert found.variance == pytest.approx(0.05**2, rel=0.15)  # the smoothest are a little weaker
    assert float(found.autocorrelation.abs().max()) < 0.05
    assert float(found.spectrum.max() / found.spectrum.min()) < 2
    soft = low_pass(white, 3)
    assert float(noise_statistics(soft).autocorrelation[0]) > 0.5  # 2/3 for a box of 3
    assert all(value == pytest.approx(0) for value in found.distance(found).values())


def test_plot_of_noise(tmp_path: Path) -> None:
    crops = torch.rand((8, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    found = plot_noise({"a": crops, "b": crops}, tmp_path / "noise.png")
    assert set(found) == {"a", "b"}
    assert Image.open(tmp_path / "noise.png").width > 500


def test_groups_of_a_patch_discriminator_judge_apart() -> None:
    judge = PatchDiscriminator(4, 3, (2, 1), groups=2).eval()
    images = torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    (logits,) = judge(images)
    assert logits.shape[:2] == (2, 2)
    changed = images.clone()
    changed[:2] += 1  # the first group's rows
    (other,) = judge(changed)
    assert torch.equal(logits[:, 1], other[:, 1])
    assert not torch.equal(logits[:, 0], other[:, 0])


def test_a_patch_discriminator_sees_how_strong_noise_is() -> None:
    """Batch norm over each of the two batches alone would hide it."""
    judge = PatchDiscriminator(4, 3, (1, 1))
    noise = torch.randn((4, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    weak, strong = judge(0.01 * noise, noise)
    assert float(weak.std()) < 0.2 * float(strong.std())


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"stages": [TINY], "sources": ["aim"]}, "go together"),
        ({"stages": [DEGRADER | {"degrader": {"kind": "dsgan"}}], "sources": ["aim"]}, "last stage"),
        ({"stages": [DEGRADER | {"degrader": {"kind": "dsgan"}}, TINY], "sources": ["mars"]}, "mars"),
        ({"stages": [DEGRADER | {"degrader": {"kind": "dsgan"}}, TINY], "sources": ["pgd"]}, "corruption"),
        ({"stages": [TINY | {"degrader": {"kind": "dsgan"}}, TINY], "sources": ["aim"]}, "patch discriminator"),
        (
            {"stages": [DEGRADER | {"degrader": {"kind": "kernels", "members": 3}}, TINY], "sources": ["aim"]},
            "multiple",
        ),
        ({"stages": [TINY | {"low_pass": 4}]}, "odd"),
        ({"stages": [TINY | {"threat": "pgd-targeted", "settings": {}}]}, "does not lead all of SR away"),
    ],
)
def test_broken_recipes_are_named(table: dict[str, object], field: str) -> None:
    with pytest.raises(CardError, match=field):
        parse_recipe(table, "some-card")


@pytest.mark.parametrize("wrapped", [False, True])
def test_old_key_checkpoints_load(tmp_path: Path, wrapped: bool) -> None:
    """The names of ESRGAN's first release, which ESRGAN-FS and Impressionism publish, bare or in a dict."""
    network = tiny_rrdb(3)
    state = network.state_dict()
    assert {"model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight", "model.10.bias"} <= state.keys()
    torch.save({"params_ema": state} if wrapped else state, tmp_path / "old.pth")
    sha256 = hashlib.sha256((tmp_path / "old.pth").read_bytes()).hexdigest()
    (tmp_path / "old.toml").write_text(
        'id = "old"\ntitle = "Old"\nfamily = "paper"\nlicence = "MIT"\npaper = "none"\ntraining_data = "none"\n'
        'fine_tuning_data = "none"\n[[weights]]\nkind = "file"\nformat = "pth"\npath = "old.pth"\n'
        f'sha256 = "{sha256}"\n'
    )
    loaded = load_network(str(tmp_path / "old.toml"))
    x = torch.rand((1, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(x), network(x), atol=1e-5, rtol=1e-4)
