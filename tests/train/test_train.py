"""Training: losses against references, recipes that run, resuming that is exact, files that spandrel loads."""

from __future__ import annotations

import copy
import csv
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spandrel
import torch
import torch.nn.functional as F
import typer
from accelerate import Accelerator
from PIL import Image
from torch import nn
from toys import call, toy_card
from typer.testing import CliRunner
from workshop import RECIPE

from benchsr.base.errors import CardError, InputError, IntegrityError
from benchsr.models.adapters import adapter_about
from benchsr.models.zoo import zoo, zoo_dir
from benchsr.train import train
from benchsr.train.crops import Crops, load_images
from benchsr.train.curves import plot_curves
from benchsr.train.loop import Job, Progress, StepLog, Trainer, export
from benchsr.train.losses import median, relativistic_loss
from benchsr.train.networks import VGGDiscriminator, new_generator
from benchsr.train.provenance import hardware, provenance, write_provenance
from benchsr.train.publish import publish
from benchsr.train.recipe import Recipe, Stage, parse_recipe
from benchsr.train.stage import StageRun, mrs_copies, mrs_medians

TINY = {"name": "tiny", "steps": 10, "batch": 2, "crop": 8, "lr": 1e-3}


def job(folder: Path, out: Path, *stages: Mapping[str, object], held_out: int = 0) -> Job:
    recipe = Recipe.model_validate({"stages": [TINY | dict(stage) for stage in stages], "held_out": held_out})
    data = load_images(folder, recipe.crop, held_out, 8, progress=False)
    return Job("tiny", recipe, new_generator(8, 1), data, out)


def log_rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


TRAINABLE = {card_id: card for card_id, card in zoo().items() if card.recipe and "sources" not in card.recipe}
"""Models whose LR is bicubic; tests/test_domains.py has the others."""


@pytest.mark.parametrize("card_id", TRAINABLE)
def test_ten_steps_of_every_recipe(
    card_id: str, folder: Path, tmp_path: Path, trunk: nn.Module, accelerator: Accelerator
) -> None:
    recipe = parse_recipe(TRAINABLE[card_id].recipe, card_id)
    small = {"steps": 10, "batch": 2, "crop": 8, "gan_features": 2, "warmup": 1, "validate_every": 0}
    stages = [stage.model_dump() | small for stage in recipe.stages]
    task = job(folder, tmp_path / "out", *stages)
    before = copy.deepcopy(task.network.state_dict())
    progress = Trainer(task, accelerator).run()
    rows = log_rows(task.out)
    assert len(rows) == 10 * len(stages)
    assert progress.stage == len(stages)
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    after = spandrel.ModelLoader(device="cpu").load_from_file(task.weights(task.recipe.stages[-1])).model.state_dict()
    moved = max(float((after[key] - before[key]).abs().max()) for key in before)
    assert moved > 1e-5
    assert Image.open(plot_curves(task.out)).width > 500


def test_every_model_without_public_weights_can_be_trained() -> None:
    wanted = {"esrgan", "ad-l-fgsm", "ad-l-bim", "ad-l-pgd", "ad-l-cw", "certsr"}
    assert TRAINABLE.keys() >= wanted | {f"compact-{name}" for name in wanted}


def test_fine_tunings_of_one_scale_share_data_budget_and_start() -> None:
    for prefix, but in (("compact-", "compact-esrgan"), ("re-", "re-esrgan"), ("", "certsr")):
        rest = [card for card in TRAINABLE.values() if not card.id.startswith(("compact-", "re-")) or prefix]
        cards = [card for card in rest if card.id.startswith(prefix) and card.id != but]
        recipes = [parse_recipe(card.recipe, card.id) for card in cards]
        blank = {"threat": "clean", "settings": {}, "sigmas": (0.0,)}
        shared = {
            repr((recipe.start, recipe.held_out, stage.model_copy(update=blank)))
            for recipe in recipes
            for stage in recipe.stages
        }
        assert len(shared) == 1


def test_l1_training_learns(folder: Path, tmp_path: Path, accelerator: Accelerator) -> None:
    task = job(folder, tmp_path / "out", {"steps": 60, "batch": 4, "warmup": 10, "clip": 1.0, "final_lr": 0.0})
    Trainer(task, accelerator).run()
    losses = [float(row["l1"]) for row in log_rows(task.out)]
    assert np.mean(losses[-15:]) < 0.8 * np.mean(losses[:15])


def test_validation_rows(folder: Path, tmp_path: Path, trunk: nn.Module, accelerator: Accelerator) -> None:
    stage = {"steps": 4, "validate_every": 2}
    progress = Trainer(job(folder, tmp_path / "out", stage, held_out=2), accelerator).run()
    assert [row["step"] for row in progress.validation] == [2, 4]
    assert progress.validation[0]["pgd_psnr"] < progress.validation[0]["clean_psnr"]


KILLED = """
    import sys
    from pathlib import Path
    from accelerate import Accelerator
    sys.path[:0] = {paths!r}
    from test_train import job, STAGES
    from benchsr.train.loop import Trainer
    from dataclasses import replace
    task = replace(job(Path({folder!r}), Path({out!r}), *STAGES), checkpoint_seconds=0.0)
    Trainer(task, Accelerator(cpu=True, mixed_precision="no")).run()
"""
STAGES: tuple[dict[str, object], ...] = (
    {"name": "first", "steps": 3},
    {"name": "second", "steps": 25, "adversarial": 0.01, "gan_features": 4, "sigmas": [0.1, 0.1, 0.0]},
)


@pytest.mark.reliability
def test_resuming_after_kill_9_takes_the_same_steps(folder: Path, tmp_path: Path, accelerator: Accelerator) -> None:
    """Training killed with kill -9 once, and a line of its log cut short: resumed, it takes the same steps."""
    whole = job(folder, tmp_path / "whole", *STAGES)
    Trainer(whole, accelerator).run()
    out = tmp_path / "killed"
    here = Path(__file__).parent
    script = textwrap.dedent(KILLED).format(paths=[str(here), str(here.parent)], folder=str(folder), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    while not (out / "log.csv").exists() or len(log_rows(out)) < 8:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(log_rows(out)) < 28
    with (out / "log.csv").open("a") as file:
        file.write("second,2")  # the line that the kill cut short
    Trainer(job(folder, out, *STAGES), accelerator, resume=True).run()
    expected, resumed = log_rows(whole.out), log_rows(out)
    assert [(row["stage"], row["step"]) for row in resumed] == [(row["stage"], row["step"]) for row in expected]
    losses = [[float(row[key]) for row in rows for key in ("loss", "l1")] for rows in (expected, resumed)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    name = "tiny-second.safetensors"
    weights = [spandrel.ModelLoader("cpu").load_from_file(folder / name).model for folder in (whole.out, out)]
    for a, b in zip(weights[0].parameters(), weights[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = StepLog(tmp_path / "log.csv", ["tiny"], Progress())
    monkeypatch.setattr(log._writer, "writerow", full)
    with pytest.raises(InputError, match=r"log\.csv: cannot be written: No space left.*--resume"):
        log.add("tiny", 0, {"loss": 1.0})
    log.close()


@pytest.mark.parametrize(
    ("kept", "words"), [(True, "goes on from its last checkpoint, with --resume"), (False, "anew")]
)
def test_a_stopped_training_says_how_to_go_on(
    kept: bool, words: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def stopped(self: Trainer) -> None:
        if kept:
            self.job.out.mkdir()
            self.job.checkpoint.touch()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("benchsr.train.loop.Trainer.run", stopped)
    card = toy_card(tmp_path, "toy-t", more=RECIPE)
    assert (
        call(monkeypatch, f"train {card} --data {folder} --out {tmp_path / 'out'} --device cpu --precision fp32") == 143
    )
    assert words in capfd.readouterr().err


def test_what_a_stop_says_stands_on_a_line_of_its_own_below_the_bar(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("benchsr.train.loop.StepLog.add", lambda *_: signal.raise_signal(signal.SIGTERM))
    card = toy_card(tmp_path, "toy-t", more=RECIPE)
    command = f"train {card} --data {folder} --out {tmp_path / 'out'} --device cpu --precision fp32 --workers 0"
    assert call(monkeypatch, command) == 143
    *_, bar, empty, last = capfd.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert bar.startswith("toy-t ")
    assert not empty
    assert last.startswith("benchsr: stopped; ")


def test_resuming_refuses_another_run(folder: Path, tmp_path: Path, accelerator: Accelerator) -> None:
    task = job(folder, tmp_path / "out", {"steps": 1})
    with pytest.raises(InputError, match="nothing to resume"):
        Trainer(task, accelerator, resume=True)
    Trainer(task, accelerator).run()
    with pytest.raises(InputError, match="--resume"):
        Trainer(task, accelerator)
    with pytest.raises(InputError, match="with recipe"):
        Trainer(job(folder, tmp_path / "out", {"steps": 1, "lr": 2e-3}), accelerator, resume=True)
    Trainer(job(folder, tmp_path / "out", {"steps": 9}), accelerator, resume=True)
    (folder / "0.png").unlink()
    with pytest.raises(InputError, match=r"with data"):
        Trainer(job(folder, tmp_path / "out", {"steps": 1}), accelerator, resume=True)


def test_relativistic_loss_against_its_formula() -> None:
    gen = torch.Generator().manual_seed(0)
    real, fake = torch.randn((5, 1), generator=gen), torch.randn((7, 1), generator=gen)
    # Wang et al. 2018, equations 1 and 2, written out with sigmoids and logarithms.
    d_real, d_fake = torch.sigmoid(real - fake.mean()), torch.sigmoid(fake - real.mean())
    judge = -d_real.log().mean() - (1 - d_fake).log().mean()
    maker = -(1 - d_real).log().mean() - d_fake.log().mean()
    torch.testing.assert_close(relativistic_loss(real, fake), judge / 2)
    torch.testing.assert_close(relativistic_loss(fake, real), maker / 2)
    assert relativistic_loss(real + 5, fake) < relativistic_loss(real, fake)


def test_median_of_even_draws_is_the_mean_of_the_middle() -> None:
    draws = torch.randn((6, 1000), generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(median(draws), np.median(draws.numpy(), axis=0), atol=1e-6)
    torch.testing.assert_close(median(draws[:5]), draws[:5].median(dim=0).values)
    torch.testing.assert_close(median(draws[:2]), draws[:2].mean(dim=0))
    assert draws[:2].median(dim=0).values.mean() < -0.4  # what taking the lower one would do to zero-mean noise


def test_mrs_copies_and_medians() -> None:
    sigmas = (0.03, 0.03, 0.2, 0.2, 0.0)
    lr = torch.full((2, 3, 40, 40), 0.5)
    copies = mrs_copies(lr, sigmas, ["a", "b"], seed=0)
    parts = copies.chunk(5)
    np.testing.assert_allclose([float((part - lr).std()) for part in parts], sigmas, rtol=0.05)
    assert not torch.equal(parts[0], parts[1])
    medians = mrs_medians(copies, sigmas)
    torch.testing.assert_close(medians, torch.cat([(parts[0] + parts[1]) / 2, (parts[2] + parts[3]) / 2, parts[4]]))
    torch.testing.assert_close(mrs_copies(lr[1:], sigmas, ["b"], seed=0).chunk(5)[0], parts[0][1:])


def test_perturbation_follows_the_current_weights(trunk: nn.Module, accelerator: Accelerator) -> None:
    eps = 0.035
    stage = Stage.model_validate(TINY | {"threat": "fgsm", "settings": {"eps": eps}})
    run = StageRun(stage, new_generator(8, 1), accelerator, seed=0)
    gen = torch.Generator().manual_seed(1)
    lr, hr = torch.rand((2, 3, 8, 8), generator=gen), torch.rand((2, 3, 32, 32), generator=gen)
    truth = run.content.bind(hr)
    first = run.perturb(lr, truth, ["a", "b"])
    torch.testing.assert_close(first, run.perturb(lr, truth, ["a", "b"]))
    assert 0.9 * eps < float((first - lr).abs().max()) <= eps + 1e-6
    assert run.generator.training
    assert all(p.grad is None for p in run.generator.parameters())
    with torch.no_grad():
        for p in run.generator.parameters():
            p.mul_(-1)
    assert not torch.equal(first, run.perturb(lr, truth, ["a", "b"]))


def test_new_generator_starts_as_bilinear_upsampling() -> None:
    x = torch.rand((1, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sr = new_generator(8, 2)(x)
    # Two doublings are not one bilinear x4, but two bilinear x2.
    twice = F.interpolate(F.interpolate(x, scale_factor=2, mode="bilinear"), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(sr[..., 6:-6, 6:-6], twice[..., 6:-6, 6:-6])
    with pytest.raises(InputError, match="filters"):
        new_generator(2, 1)


def test_exported_compact_weights_fit_and_load(tmp_path: Path) -> None:
    network = new_generator(32, 3)
    path = tmp_path / "weights.safetensors"
    export(network, path)
    assert path.stat().st_size <= 2.5 * 2**20
    loaded = spandrel.ModelLoader(device="cpu").load_from_file(path)
    assert loaded.architecture.id == "ESRGAN"
    assert loaded.scale == 4
    x = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model.float()(x), network(x), atol=2e-3, rtol=0)


@pytest.mark.parametrize("side", [32, 96, 128])
def test_discriminator_gives_a_logit_an_image(side: int) -> None:
    judge = VGGDiscriminator(side, 2)
    a, b = judge(torch.rand(2, 3, side, side), torch.rand(3, 3, side, side))
    assert (a.shape, b.shape) == ((2, 1), (3, 1))


def test_discriminator_of_the_paper_is_vgg_128() -> None:
    convolutions = [m for m in VGGDiscriminator().modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]
    with pytest.raises(InputError, match="32"):
        VGGDiscriminator(100)


def test_crops_depend_on_step_and_row_alone(folder: Path) -> None:
    data = load_images(folder, 8, 0, 8, progress=False)

    def crops(rank: int = 0, world: int = 1, seed: int = 0) -> Crops:
        return Crops(data.images, stage="s", batch=4, crop=8, seed=seed, rank=rank, world=world)

    whole = crops()[7]
    shares = [crops(rank, 2)[7] for rank in range(2)]
    torch.testing.assert_close(torch.stack([s.hr for s in shares], dim=1).flatten(0, 1), whole.hr)
    loaded = list(crops().loader(range(6, 8), workers=0))
    assert torch.equal(loaded[1].hr, whole.hr)
    assert not torch.equal(loaded[0].hr, whole.hr)
    assert not torch.equal(crops(seed=1)[7].hr, whole.hr)
    assert whole.lr.shape == (4, 3, 8, 8)
    with pytest.raises(InputError, match="evenly"):
        crops(0, 3)


def test_workers_make_the_same_batches(folder: Path) -> None:
    data = load_images(folder, 8, 0, 8, progress=False)
    crops = Crops(data.images, stage="s", batch=2, crop=8, seed=0)
    for here, there in zip(crops.loader(range(3), 0), crops.loader(range(3), 2), strict=True):
        assert torch.equal(here.hr, there.hr)


def test_what_makes_batches_has_no_words_for_training_that_was_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    data = load_images(folder, 8, 0, 8, progress=False)
    begin = Crops(data.images, stage="s", batch=2, crop=8, seed=0).loader(range(1), 0).worker_init_fn
    assert begin is not None
    begin(0)
    for error in (ConnectionResetError(), EOFError()):
        sys.excepthook(type(error), error, None)
    assert not capsys.readouterr().err
    sys.excepthook(ValueError, ValueError("bad"), None)
    assert "ValueError: bad" in capsys.readouterr().err


def test_held_out_images_are_not_trained_on(folder: Path) -> None:
    data = load_images(folder, 8, 2, 16, progress=False)
    assert len(data.images) == 2
    assert [sample.id for sample in data.held_out] == ["0.png", "sub/1.png"]
    assert data.held_out[0].hr.shape == (3, 64, 64)
    assert data.held_out[0].lr.shape == (3, 16, 16)


def test_unusable_data_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="--data"):
        load_images(tmp_path / "absent", 8, 0, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds 0 images"):
        load_images(tmp_path / "empty", 8, 0, 8)
    with pytest.raises(InputError, match=r"0\.png is 72x72; this recipe needs at least 96x96"):
        load_images(folder, 24, 0, 8)


def test_learning_rate_warms_up_and_decays() -> None:
    stage = Stage.model_validate(TINY | {"steps": 100, "warmup": 4, "final_lr": 0.1, "lr": 1.0})
    rates = [stage.learning_rate(k) for k in range(100)]
    assert rates[0] == pytest.approx(0.25, rel=1e-3)
    assert rates[50] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)
    assert Stage.model_validate(TINY).learning_rate(9) == TINY["lr"]


@pytest.mark.parametrize(
    ("table", "field"),
    [
        (None, "no \\[recipe\\]"),
        ({"stages": []}, "recipe.stages"),
        ({"stages": [TINY | {"stepz": 3}]}, "recipe.stages.0.stepz"),
        ({"stages": [TINY | {"l1": 0.0}]}, "l1 and perceptual"),
        ({"stages": [TINY | {"adversarial": 1.0, "crop": 12}]}, "multiple of 8"),
        ({"stages": [TINY | {"sigmas": [-0.1]}]}, "sigmas"),
        ({"stages": [TINY | {"threat": "nonsense"}]}, "nonsense"),
        ({"stages": [TINY | {"threat": "pgd", "settings": {"epz": 1}}]}, "epz"),
    ],
)
def test_broken_recipes_are_named(table: dict[str, object] | None, field: str) -> None:
    with pytest.raises(CardError, match=field):
        parse_recipe(table, "some-card")


CARD = """
id = "tiny"

[[weights]]
kind = "file"
path = "weights/tiny.safetensors"
sha256 = "{zeros}"  # kept comment

[recipe]
network = {{ filters = 8, blocks = 1 }}
held_out = 0

[[recipe.stages]]
name = "tiny"
steps = {steps}
batch = 2
crop = 8
lr = 1e-3
"""


def full_card() -> str:
    """CARD with all that a card must say."""
    texts = "\n".join(f'{name} = "x"' for name in ("title", "licence", "paper", "training_data", "fine_tuning_data"))
    about = f'{texts}\nfamily = "compact"\n[[weights]]\nformat = "safetensors"'
    return CARD.format(zeros="0" * 64, steps=2).replace("[[weights]]", about)


def test_published_weights_carry_their_provenance(folder: Path, tmp_path: Path, accelerator: Accelerator) -> None:
    cards = tmp_path / "zoo"
    (cards / "weights").mkdir(parents=True)
    (cards / "tiny.toml").write_text(full_card())
    recipe = parse_recipe(tomllib.loads((cards / "tiny.toml").read_text())["recipe"], "tiny")
    task = Job("tiny", recipe, new_generator(8, 1), load_images(folder, 8, 0, 8, progress=False), tmp_path / "run")
    progress = Trainer(task, accelerator).run()
    with pytest.raises(InputError, match="no finished run"):
        publish(task.out, cards)
    table = provenance(task, progress, start="scratch", command="benchsr train tiny", processes=1)
    write_provenance(task.out / "tiny.json", table)
    publish(task.out, cards)
    text = (cards / "tiny.toml").read_text()
    card = tomllib.loads(text)
    digest = hashlib.sha256((cards / "weights" / "tiny.safetensors").read_bytes()).hexdigest()
    assert card["weights"][0]["sha256"] == card["training"]["weights"]["sha256"] == digest
    assert card["training"]["command"] == "benchsr train tiny"
    assert card["training"]["data"]["images"] == 4
    assert "# kept comment" in text
    publish(task.out, cards)
    assert (cards / "tiny.toml").read_text() == text
    (cards / "tiny.toml").write_text(text.replace("steps = 2", "steps = 3", 1))
    with pytest.raises(IntegrityError, match="another recipe"):
        publish(task.out, cards)


def test_command_line_trains_resumes_and_plots(folder: Path, tmp_path: Path) -> None:
    card = tmp_path / "tiny.toml"
    card.write_text(full_card())
    app = typer.Typer()
    app.command()(train)
    args = [str(card), "--data", str(folder), "--out", str(tmp_path / "out"), "--device", "cpu", "--precision", "fp32"]
    runner = CliRunner()
    first = runner.invoke(app, args, catch_exceptions=False)
    assert first.exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("checkpoint.pt", "curves.png", "log.csv", "tiny-tiny.safetensors", "tiny.json")
    }
    command = json.loads((tmp_path / "out" / "tiny.json").read_text())["command"]
    assert command.startswith("benchsr train ")
    runner.invoke(app, [*args, "--resume", "--steps", "5"], catch_exceptions=False)
    assert [row["step"] for row in log_rows(tmp_path / "out")] == ["0", "1", "2", "3", "4"]
    for wrong, message in (["--device", "tpu"], "auto, cpu or cuda"), (["--data", "absent"], "--data DIR"):
        with pytest.raises(InputError, match=message):
            runner.invoke(app, [*args, *wrong], catch_exceptions=False)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(folder: Path, tmp_path: Path, accelerator: Accelerator) -> None:
    stage = {"steps": 4, "batch": 4}
    alone = job(folder, tmp_path / "alone", stage)
    Trainer(alone, accelerator).run()
    here = Path(__file__).parent
    paths, out = [str(here), str(here.parent)], tmp_path / "together"
    script = tmp_path / "script.py"
    text = textwrap.dedent(KILLED).replace("*STAGES", "{stage}")
    script.write_text(text.format(paths=paths, folder=str(folder), out=str(out), stage=stage))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    subprocess.run(torchrun, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert [row["step"] for row in log_rows(out)] == ["0", "1", "2", "3"]
    weights = [
        spandrel.ModelLoader("cpu").load_from_file(path / "tiny-tiny.safetensors").model for path in (alone.out, out)
    ]
    for a, b in zip(weights[0].parameters(), weights[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("card_id", [card_id for card_id, card in zoo().items() if card.training])
def test_shipped_weights_are_those_of_the_card_and_its_recipe(card_id: str) -> None:
    card = zoo()[card_id]
    training = card.training or {}
    path = zoo_dir() / training["weights"]["file"]
    adapted = card.weights[0].kind == "adapter"
    assert path.stat().st_size == training["weights"]["bytes"] <= (7e6 if adapted else 2.5 * 2**20)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == training["weights"]["sha256"]
    recipe = parse_recipe(card.recipe, card_id)
    assert recipe.sha256 == training["recipe_sha256"], "the recipe changed after training"
    assert [stage["steps"] for stage in training["stages"]] == [stage.steps for stage in recipe.stages]
    assert training["seed"] == 0
    if adapted:
        assert {"rank", "alpha"} <= (adapter_about(path) or {}).keys()
    else:
        assert spandrel.ModelLoader(device="cpu").load_from_file(path).architecture.id == "ESRGAN"


def test_documented_figures_are_those_of_the_cards() -> None:
    rows = []
    for card_id, card in zoo().items():
        training = card.training or {"stages": []}
        for stage in training["stages"]:
            v = stage["validation"]
            if "clean_psnr" in v:
                figures = f"{v['clean_psnr']:.2f} | {v['clean_lpips']:.3f} | {v['pgd_psnr']:.2f} | {v['pgd_lpips']:.3f}"
                rows.append(f"| {card_id} | {stage['name']} | {stage['steps']} | {stage['seconds']} | {figures} |")
            else:  # a network that makes LR of a source domain
                source = training["data"]["source"]
                sr = (training["start_validation"], training["stages"][-1]["validation"])
                lpips = " | ".join(f"{figures[f'{source}_lpips']:.3f}" for figures in sr)
                noise = " | ".join(
                    f"{v[f'bicubic_{name}']:.3f} / {v[f'generated_{name}']:.3f}"
                    for name in ("variance", "autocorrelation", "spectrum")
                )
                rows.append(f"| {card_id} | {source} | {lpips} | {noise} |")
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    documented = [line for line in text.splitlines() if line.startswith(("| compact-", "| re-"))]
    assert sorted(documented) == sorted(rows)


def test_hardware_is_named_where_the_system_names_no_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.train.provenance.CPUINFO", tmp_path / "cpuinfo")  # macOS has none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware().startswith(f"{torch.get_num_threads()} of {os.cpu_count()} cores of ")
    assert not hardware().endswith(" ")
