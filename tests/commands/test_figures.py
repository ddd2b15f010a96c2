"""Visual comparisons: pictures that show what was computed, with the figures of the leaderboard beside them."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from toys import FakeLpips, call, photos, protocol, toy_card

from benchsr.base.errors import InputError, UnknownIdError
from benchsr.base.pairs import Sample
from benchsr.commands.figures import PANEL, Scene, View, draw, figures_of, make_figures, views
from benchsr.commands.run import evaluate
from benchsr.data.images import read_image
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.plan import Cell
from benchsr.evaluation.worker import Worker
from benchsr.models.zoo import load_card
from benchsr.results.records import Record, Status

SCORES = {"psnr": 20.0, "ssim": 0.5, "lpips": 0.25}


def scene(hr: Tensor, changes: list[Tensor], errors: list[Tensor]) -> Scene:
    """Views of one image whose LR and SR are off by known amounts."""
    sample = Sample("photo", hr[:, ::4, ::4].contiguous(), hr)
    record = Record("toy", "photos", "bicubic", "pgd", "photo", Status.OK, "", SCORES, 10 / 255, 1.0)
    views = [
        View(load_card("bicubic"), sample.lr + change, hr + error, record)
        for change, error in zip(changes, errors, strict=True)
    ]
    return Scene("pgd", "paper", sample, views)


def test_the_zoom_crop_is_where_outputs_are_furthest_from_the_truth() -> None:
    hr = torch.full((3, 64, 96), 0.5)
    error = torch.zeros_like(hr)
    error[:, 32:48, 60:76] = 0.3  # the crop's side is 64 / 4 = 16
    made = scene(hr, [torch.zeros(3, 16, 24)], [error])
    assert made.zoom == (32, 60, 16)
    assert torch.equal(made.cut(hr + error), (hr + error)[:, 32:48, 60:76])


@pytest.mark.parametrize(("size", "factor"), [(10 / 255, 12), (0.03, 16), (0.9, 1), (0.0, 1)])
def test_perturbations_are_amplified_as_far_as_they_fit(size: float, factor: int) -> None:
    change = torch.zeros(3, 16, 16)
    change[0, 0, 0], change[1, 1, 1] = size, -size
    made = scene(torch.full((3, 64, 64), 0.5), [change], [torch.zeros(3, 64, 64)])
    assert made.factor == factor
    expected = (0.5 + factor * change).clamp(0, 1)
    torch.testing.assert_close(made.perturbation(made.views[0]), expected)


@pytest.mark.parametrize(("size", "factor"), [(0.11, 9), (0.3, 3), (0.9, 1), (0.0, 1)])
def test_errors_are_amplified_as_far_as_they_fit(size: float, factor: int) -> None:
    error = torch.zeros(3, 64, 64)
    error[0], error[1], error[2, :8] = size, -size, size
    expected = error.abs().mean(0, keepdim=True)
    made = scene(torch.full((3, 64, 64), 0.5), [torch.zeros(3, 16, 16)], [error])
    assert made.error_factor == factor
    torch.testing.assert_close(made.error(made.views[0]), (made.error_factor * expected).clamp(0, 1).expand(3, -1, -1))


def test_large_images_are_cut_to_a_window_that_holds_the_zoom_crop() -> None:
    hr = torch.zeros(3, 800, 1200)
    error = torch.zeros_like(hr)
    error[:, 700:, 1100:] = 0.5
    made = scene(hr, [torch.zeros(3, 200, 300)], [error])
    assert made.window(hr).shape == (3, PANEL, PANEL)
    assert made.window(made.sample.lr).shape == (3, PANEL // 4, PANEL // 4)
    assert made.window(hr + error).max() == 0.5


def test_a_drawing_has_a_column_for_the_truth_and_for_each_model() -> None:
    zero = torch.zeros(3, 16, 16)
    figure = draw(scene(torch.full((3, 64, 64), 0.5), [zero, zero], [torch.zeros(3, 64, 64)] * 2))
    axes = np.array(figure.axes).reshape(4, 3)
    assert [len(ax.images) for ax in axes[1]] == [0, 1, 1]
    assert "PSNR 20.00 dB" in axes[2][1].texts[0].get_text()


def test_pictures_and_captions_are_those_of_the_leaderboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    models = ",".join(["bicubic", toy_card(tmp_path, "toy-a", seed=1)])
    toy, cache = protocol(tmp_path, photos(tmp_path / "photos")), tmp_path / "cache"
    evaluate(models, "noise,pgd", toy, RunOptions(out=tmp_path / "out", cache=str(cache), device="cpu"))
    attacks = sorted(cache.rglob("*.safetensors"))
    folder = make_figures(models, "noise,pgd", "photo1", toy, out=tmp_path / "out", cache=cache, device="cpu")
    assert sorted(cache.rglob("*.safetensors")) == attacks  # nothing was attacked anew

    results = pd.read_csv(tmp_path / "out" / "toy" / "results.csv").set_index(["model", "threat", "image"])
    told = json.loads((folder / "figures.json").read_text())
    entries = {entry["threat"]: entry for entry in told["scenes"]}
    assert "lossy" in told["note"]
    assert list(entries) == ["noise", "pgd"]
    for threat, entry in entries.items():
        assert (entry["image"], entry["family"], list(entry["views"])) == ("photo1", "compact", ["bicubic", "toy-a"])
        assert (folder / entry["png"]).stat().st_size > 5000
        assert (folder / entry["pdf"]).read_bytes().startswith(b"%PDF")
        truth = read_image(folder / entry["truth"])
        for model, view in entry["views"].items():
            psnr = float(results["psnr"].to_dict()[model, threat, "photo1"])
            sr = read_image(folder / view["sr"])
            assert sr.shape == truth.shape == (3, 48, 48)
            # Lossy, yet of the same picture; the stored error is that of the exact one.
            assert -10 * float(torch.log10((sr - truth).square().mean())) == pytest.approx(psnr, abs=4)
            error = read_image(folder / view["error"]).mean(0)
            assert float((error - (entry["error_factor"] * (sr - truth).abs().mean(0)).clamp(0, 1)).abs().mean()) < 0.1
    noisy = entries["noise"]
    view = noisy["views"]["toy-a"]
    assert view["lr"] == noisy["views"]["bicubic"]["lr"]  # both saw the same
    change = (read_image(folder / view["lr"]) - read_image(folder / noisy["input"])) * noisy["factor"] + 0.5
    assert float((change.clamp(0, 1) - read_image(folder / view["change"])).abs().median()) < noisy["factor"] / 255


@pytest.fixture
def toy_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A protocol whose metrics need no weights, so that other processes can compute it too."""
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.base.drawing.cache_dir", lambda: tmp_path / "user-cache")
    toy = protocol(tmp_path, photos(tmp_path / "photos"))
    toy.write_text(toy.read_text() + '[metrics]\nnames = ["psnr"]\n')
    return toy


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_what_changed_is_computed_and_drawn_again(toy_board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = toy_board.parent, []

    def watched(worker: Worker, cell: Cell, image: str) -> Iterator[View]:
        seen.append((cell.threat, image, *cell.models))
        return views(worker, cell, image)

    def make(models: str, threats: str, drawings: bool = False) -> dict[str, bytes]:
        seen.clear()
        return contents(make_figures(models, threats, "photo1", toy_board, out=folder, device="cpu", drawings=drawings))

    monkeypatch.setattr("benchsr.commands.figures.views", watched)
    toys = [toy_card(folder, name, seed=1) for name in ("toy-a", "toy-b")]
    first = make(f"bicubic,{toys[0]}", "clean,noise")
    assert len(seen) == 4
    (folder / "toy" / "figures" / "photo1-noise-compact" / "input.webp").unlink()
    assert make(f"bicubic,{toys[0]}", "clean,noise") == first
    assert seen == []
    make(f"bicubic,{toys[0]}", "clean,noise,pgd")  # a threat more
    assert {threat for threat, *_ in seen} == {"pgd"}
    make(f"bicubic,{','.join(toys)}", "clean")  # a model more, which stands beside the others
    assert {model for _, _, *models in seen for model in models} == {"bicubic", "toy-a", "toy-b"}
    assert set(make("bicubic", "clean", drawings=True)) > {"photo1-clean.png", "photo1-clean.pdf"}
    monkeypatch.setattr("benchsr.base.drawing._made_with", lambda: "other code")
    assert make(f"bicubic,{toys[0]}", "clean,noise").keys() >= first.keys()
    assert len(seen) == 4


@pytest.mark.slow
def test_processes_draw_what_this_one_draws(toy_board: Path) -> None:
    folder, made = toy_board.parent, []
    models = f"bicubic,{toy_card(folder, 'toy-a', seed=1)}"
    for workers in (1, 2):
        shutil.rmtree(folder / "user-cache", ignore_errors=True)
        how = {"out": folder / f"out{workers}", "device": "cpu", "drawings": False, "workers": workers}
        made.append(contents(make_figures(models, "clean,noise", "photo1,photo2", toy_board, **how)))  # type: ignore[arg-type]
    assert len(made[0]) > 30
    assert made[0] == made[1]
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_who_stops_it_need_not_wait_for_its_processes(toy_board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = []

    def stop_when_they_draw() -> None:
        while len(children := multiprocessing.active_children()) < 2:
            time.sleep(0.05)
        drawing.extend(children)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_they_draw).start()
    command = f"figures --protocol {toy_board} --models bicubic --threats clean,noise --device cpu --workers 2"
    assert call(monkeypatch, f"{command} --out {toy_board.parent / 'out'}") == 143
    assert [process.exitcode for process in drawing] == [-signal.SIGTERM] * 2
    assert multiprocessing.active_children() == []


def test_pictures_for_the_page_alone_are_small_and_without_drawings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    toy = protocol(tmp_path, photos(tmp_path / "photos"))
    folder = make_figures("bicubic", "noise", "all", toy, out=tmp_path / "out", device="cpu", drawings=False)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".webp", ".json"}
    assert max(path.stat().st_size for path in files) < 10_000
    scenes = json.loads((folder / "figures.json").read_text())["scenes"]
    assert {scene["image"] for scene in scenes} == {path.stem for path in (tmp_path / "photos").iterdir()}
    assert not {"png", "pdf"} & set().union(*scenes)


def test_what_cannot_be_shown_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    toy = protocol(tmp_path, photos(tmp_path / "photos"))
    with pytest.raises(UnknownIdError, match="photo1"):
        make_figures("bicubic", "noise", "photo11", toy, out=tmp_path)
    with pytest.raises(InputError, match="ad-l-cw"):
        make_figures("ad-l-cw", "noise", "photo1", toy, out=tmp_path)


def test_figures_are_shown_with_their_units() -> None:
    scores = {"psnr": 23.456, "ssim": 0.71234, "lpips": 0.2}
    record = Record("p", "d", "m", "t", "i", Status.OK, scores=scores)
    assert figures_of(record) == "PSNR 23.46 dB · SSIM 0.712 · LPIPS 0.200"
