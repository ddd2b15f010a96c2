"""Sigma: chosen by LPIPS, on images that no leaderboard uses, and written into the card with its provenance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.base.files import sha256_file
from benchsr.base.inference import to_8bit
from benchsr.commands.tuning import best_sigmas, held_out, plot, try_sigmas, write_choice
from benchsr.data.cards import DATASETS, DataCard
from benchsr.data.datasets import load_dataset
from benchsr.data.images import write_image
from benchsr.defences.smoothing import smooth
from benchsr.evaluation.protocol import Protocol
from benchsr.metrics.quality import METRICS, psnr
from benchsr.models.zoo import load_card

CARD = """# kept
id = "{id}"
title = "Toy"
family = "compact"
architecture = "bicubic"
licence = "MIT"
paper = "none"
training_data = "none"
fine_tuning_data = "none"
"""


def folder_of_images(folder: Path, n: int = 2) -> Path:
    folder.mkdir()
    for i in range(n):
        gen = torch.Generator().manual_seed(i)
        write_image(folder / f"{i}.png", torch.rand(3, 64, 64, generator=gen))
    return folder


@pytest.fixture
def protocol() -> Protocol:
    objective = {"perceptual_weight": 0.0}
    return Protocol.model_validate({"id": "p", "title": "P", "dataset": "photos", "objective": objective})


def fake_lpips(sr: Tensor, hr: Tensor) -> Tensor:
    return (sr - hr).square().flatten(1).mean(1)


def test_every_sigma_is_scored_on_the_attacked_image(
    tmp_path: Path, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS._entries, "lpips", replace(METRICS["lpips"], function=fake_lpips))
    data = held_out(str(folder_of_images(tmp_path / "images")), None, None)
    network = nn.Upsample(scale_factor=4)
    found = try_sigmas(network, data, protocol, ["clean", "fgsm"], sigmas=(0.0, 0.1), n=3)
    assert found[["threat", "sigma"]].to_numpy().tolist() == [["clean", 0], ["clean", 0.1], ["fgsm", 0], ["fgsm", 0.1]]
    by_hand = [
        fake_lpips(smooth(network, 0.1, 3)(s.lr[None], [s.id]).clamp(0, 1), s.hr[None])
        for s in map(data.sample, data.ids)
    ]
    assert found["lpips"][1] == pytest.approx(float(torch.cat(by_hand).mean()), rel=1e-5)
    assert found["psnr"][2] < found["psnr"][0]
    with pytest.raises(InputError, match="knows the smoothing"):
        try_sigmas(network, data, protocol, ["pgd-eot"])


class Watched(nn.Module):
    """Nearest neighbours, and what was asked: each input, and whether bfloat16 was allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append((x.detach(), torch.is_autocast_enabled("cpu")))
        return nn.functional.interpolate(0.9 * x, scale_factor=4)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rounding_and_precision_are_the_protocols(
    tmp_path: Path, protocol: Protocol, monkeypatch: pytest.MonkeyPatch, rounded: bool, precision: str
) -> None:
    monkeypatch.setitem(METRICS._entries, "lpips", replace(METRICS["lpips"], function=fake_lpips))
    fields = {"quantise_lr": rounded, "precision": precision, "metrics": {"quantise_sr": rounded}}
    fields |= {"settings": {"fgsm": {"eps": 0.0123}}}
    chosen = Protocol.model_validate(protocol.model_dump() | fields)
    data, network = held_out(str(folder_of_images(tmp_path / "images", 1)), None, None), Watched()
    found = try_sigmas(network, data, chosen, ["fgsm"], sigmas=(0.0,))
    *attack, (scored, in_bf16) = network.asked
    assert {allowed for _, allowed in attack} == {precision == "bf16"}
    assert not in_bf16
    assert torch.equal(scored, to_8bit(scored)) == rounded
    sr, hr = nn.functional.interpolate(0.9 * scored, scale_factor=4), data[0].hr[None]
    seen = to_8bit(sr) if rounded else sr
    assert found["psnr"][0] == float(psnr(seen, hr, chosen.metrics.border))
    assert found["lpips"][0] == pytest.approx(float(fake_lpips(sr, hr)), abs=1e-9)


def test_evaluation_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evaluated on"):
        held_out("photos", None, None)
    folder = folder_of_images(tmp_path / "images")
    source = next(iter(load_dataset("photos").sources.values())).hr
    (folder / source.name).write_bytes(source.read_bytes())
    with pytest.raises(InputError, match=source.name):
        held_out(str(folder), None, None)


def test_images_of_a_manifest_are_refused_whether_its_set_is_here_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of_images(tmp_path / "images")
    image = sorted(folder.iterdir())[0]
    (tmp_path / "mine.csv").write_text(f"path,bytes,sha256\nx_HR.png,9,{sha256_file(image)}\n")
    source = {"kind": "manifest", "manifest": "mine.csv", "url": "https://example.org/{path}"}
    card = DataCard.model_validate(DATASETS["set5"].model_dump() | {"source": source})
    card._folder = tmp_path
    monkeypatch.setitem(DATASETS._entries, "mine", card)
    with pytest.raises(InputError, match=f"{image.name} is an image that leaderboards are evaluated on"):
        held_out(str(folder), None, None)


FIGURES = pd.DataFrame(
    [
        ("pgd", 0.0, 20.0, 0.5, 0.4),
        ("pgd", 0.05, 21.0, 0.5, 0.2),
        ("noise", 0.0, 25.0, 0.7, 0.1),
        ("noise", 0.05, 24.0, 0.6, 0.2),
        ("pgd", 0.1, 20.0, 0.5, 0.1),
        ("noise", 0.1, 20.0, 0.5, 0.7),
    ],
    columns=["threat", "sigma", "psnr", "ssim", "lpips"],
)


def test_the_lowest_lpips_wins() -> None:
    assert best_sigmas(FIGURES) == {"pgd": 0.1, "noise": 0.0, "": 0.05}


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", 0.05),
        ("[smoothing]\nn = 7\nsigma = 0.2\n", 0.05),
        ("[smoothing]\nsigma = { pgd = 0.3, cw = 0.03 }\n", {"pgd": 0.1, "cw": 0.03, "noise": 0.0}),
    ],
)
def test_the_card_gets_sigma_and_how_it_was_chosen(
    tmp_path: Path, protocol: Protocol, before: str, expected: float | dict[str, float]
) -> None:
    path = tmp_path / "toy.toml"
    path.write_text(CARD.format(id="toy") + before)
    data = held_out(str(folder_of_images(tmp_path / "images")), None, None)
    write_choice(path, load_card(path), FIGURES, data, protocol)
    smoothing = load_card(path).smoothing
    assert smoothing is not None
    assert smoothing.sigma == expected
    assert smoothing.n == (7 if "n = 7" in before else 21)
    assert smoothing.chosen is not None
    assert "lowest LPIPS under pgd, noise" in smoothing.chosen
    assert "2 held-out images" in smoothing.chosen
    assert path.read_text().startswith("# kept\n")


def test_plot_has_a_panel_for_each_metric() -> None:
    assert [axes.get_xlabel() for axes in plot(FIGURES, "toy").axes] == ["sigma"] * 3
