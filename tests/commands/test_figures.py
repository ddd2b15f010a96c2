"""Visual comparisons: pictures that show what was computed, with the figures of the leaderboard beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from toys import FakeLpips, photos, protocol, toy_card

from benchsr.base.errors import InputError, UnknownIdError
from benchsr.base.pairs import Sample
from benchsr.commands.figures import PANEL, Scene, View, draw, figures_of, make_figures, panels
from benchsr.commands.run import evaluate
from benchsr.data.images import read_image
from benchsr.evaluation.options import RunOptions
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
    assert any(f"× {factor}" in title for _, title, *_ in panels(made))


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
    entries = json.loads((folder / "figures.json").read_text())["comparisons"]
    assert [entry["title"].split(", ")[1] for entry in entries] == ["Sensor noise", "PGD"]
    for entry in entries:
        threat = "pgd" if "PGD" in entry["title"] else "noise"
        assert (folder / entry["png"]).stat().st_size > 5000
        assert (folder / entry["pdf"]).read_bytes().startswith(b"%PDF")
        files = {Path(panel["file"]).stem: panel for panel in entry["panels"]}
        for model in ("bicubic", "toy-a"):
            if f"{model}-sr" in files:
                psnr, ssim = (results[metric].to_dict()[model, threat, "photo1"] for metric in ("psnr", "ssim"))
                assert files[f"{model}-sr"]["caption"].startswith(f"PSNR {psnr:.2f} dB · SSIM {ssim:.3f}")
                assert Image.open(folder / files[f"{model}-sr"]["file"]).size == (48, 48)
    noisy = next(entry for entry in entries if "noise" in entry["title"])
    pictures = {Path(panel["file"]).stem: read_image(folder / panel["file"]) for panel in noisy["panels"]}
    change = (pictures["all-lr"] - pictures["input"]) * noisy["factor"] + 0.5
    assert float((change.clamp(0, 1) - pictures["all-change"]).abs().median()) < noisy["factor"] / 255


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
