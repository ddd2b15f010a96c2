"""`benchsr sensitivity` on a toy board: what it writes, what it does not measure again, where it is shown."""

from __future__ import annotations

from dataclasses import replace
from math import isnan, sqrt
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from toys import FakeLpips, call, photos, protocol, toy_card

from benchsr.base.errors import InputError
from benchsr.commands import sensitivity as module
from benchsr.commands.export import export
from benchsr.commands.report import rewrite
from benchsr.commands.run import evaluate
from benchsr.commands.sensitivity import measure, plan
from benchsr.data.datasets import load_dataset
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.protocol import load_protocol
from benchsr.leaderboard import read_leaderboard
from benchsr.leaderboard.sensitivity import LARGEST, read_sensitivity, smallest_changes
from benchsr.metrics.sensitivity import Singular, fourier_gains, frequencies, largest_singular_value
from benchsr.models.network import load_network
from benchsr.models.zoo import load_card, zoo
from benchsr.site import build_site
from benchsr.threats.adaptive import APGD


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return protocol(tmp_path, photos(tmp_path / "photos", 2))


def measured(cards: list[str], toy: Path, folder: Path, limit: int | None = None) -> list[str]:
    work = plan([load_card(c) for c in cards], load_protocol(toy), torch.device("cpu"), limit=limit)
    return [why for _, why in measure(work, folder)]


def search(cards: list[str], toy: Path, folder: Path, limit: int | None = None) -> list[str]:
    """The smallest changes alone."""
    chosen = [load_card(c) for c in cards]
    work = plan(chosen, load_protocol(toy), torch.device("cpu"), limit=limit, smallest=True)
    jobs = [job for job in work.jobs if job.measure == "smallest"]
    return [why for _, why in measure(replace(work, jobs=jobs), folder)]


def test_lines_are_the_measures_of_the_network_at_each_image(tmp_path: Path, toy: Path) -> None:
    assert measured(["bicubic"], toy, tmp_path) == ["", ""]
    data, chosen = read_sensitivity(tmp_path), load_protocol(toy)
    network, samples = load_network("bicubic"), load_dataset(chosen.dataset, crop=chosen.crop)
    assert list(data["image"].unique()) == samples.ids
    assert len(data) == 2 * (1 + len(frequencies(12, 12)))
    for image, lines in data.groupby("image"):
        lr = samples.sample(str(image)).lr[None]
        found = largest_singular_value(network, lr, str(image), chosen.seed)
        (line,) = lines[lines["figure"] == "singular"].itertuples()
        assert line.value == pytest.approx(found.value)
        assert line.products == found.products
        gains = lines[lines["figure"] == "gain"].set_index(["ky", "kx"])["value"]
        norm = 8 / 255 * lr.numel() ** 0.5
        for ky, kx, gain in fourier_gains(network, lr, str(image), norm, chosen.seed):
            assert gains.loc[(ky, kx)] == pytest.approx(gain)
    even = data[(data["ky"] == 0) & (data["kx"] == 0)]["value"]
    assert even.to_numpy() == pytest.approx(4, rel=1e-4), "interpolation repeats even light 16 times"


def test_it_goes_on_where_it_stopped_and_measures_new_weights_anew(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, asked = toy_card(tmp_path, "net"), list[str]()

    def counted(network: object, lr: object, image: str, seed: int) -> Singular:
        asked.append(image)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Singular(2.0, 20, 1e-4)

    monkeypatch.setattr(module, "largest_singular_value", counted)
    monkeypatch.setattr(module, "fourier_gains", lambda *_: iter([(0, 0, 1.0)]))
    with pytest.raises(KeyboardInterrupt):
        measured([card], toy, tmp_path)
    before = read_sensitivity(tmp_path)
    assert len(before["image"].unique()) == 1
    measured([card], toy, tmp_path)
    assert asked == ["photo0", "photo1", "photo1"]
    whole = (tmp_path / "sensitivity.csv").read_bytes()
    measured([card], toy, tmp_path)
    assert (len(asked), (tmp_path / "sensitivity.csv").read_bytes()) == (3, whole)
    toy_card(tmp_path, "net", seed=5)
    measured([card], toy, tmp_path)
    after = read_sensitivity(tmp_path)
    assert len(asked) == 5
    assert len(after) == 2 * len(before), "no line of the old weights is left"
    assert set(after["key"]).isdisjoint(before["key"])


def test_what_cannot_be_measured_says_why(tmp_path: Path, toy: Path) -> None:
    cards = [load_card("jpeg+bicubic"), load_card(toy_card(tmp_path, "lost")), load_card("bicubic")]
    (tmp_path / "lost.safetensors").unlink()
    work = plan(cards, load_protocol(toy), torch.device("cpu"), limit=1)
    assert [job.card.id for job in work.jobs] == ["bicubic"]
    assert work.lacking["jpeg+bicubic"] == "deployed with a defence; its network moves as that of bicubic"
    assert "lost.safetensors" in work.lacking["lost"]
    with pytest.raises(InputError, match="--limit"):
        plan(cards, load_protocol(toy), torch.device("cpu"), limit=0)
    (tmp_path / "sensitivity.csv").write_text("model,value\n")
    with pytest.raises(InputError, match="no column"):
        read_sensitivity(tmp_path)


def test_it_and_transferred_attacks_stand_in_report_plots_and_page(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    out, models = tmp_path / "out", "bicubic,compact-esrgan"
    options = RunOptions(out=out, device="cpu", cache=tmp_path / "cache", transfer=True)
    evaluate(models, "clean,pgd", toy, options)
    monkeypatch.setattr(module, "STEPS", 1)
    monkeypatch.setattr(module, "ROUNDS", 0)
    command = f"sensitivity --models {models} --protocol {toy} --out {out} --device cpu --limit 1 --smallest-eps"
    assert call(monkeypatch, command) == 0
    text = (out / "toy" / "report.md").read_text()
    data = read_sensitivity(out / "toy")
    value = data[(data["figure"] == "singular") & (data["model"] == "bicubic")]["value"].mean()
    assert f"| Bicubic interpolation | {value:.3g} [" in text
    assert {"sensitivity-compact.png", "fourier-compact.png"} <= {p.name for p in (out / "toy").glob("*.png")}
    assert "](fourier-compact.png)" in text
    (least,) = (s for s in read_leaderboard(out / "toy", zoo()).smallest["compact"] if s.card.id == "bicubic")
    row = f"| {' | '.join(least.cells)} | 12 x 12 | 1"
    assert row in text.replace("\\", "")
    assert least.cells[0] in export("smallest-eps-compact", "markdown", out / "toy").decode().replace("\\", "")
    assert "The worst small change of LR moves SR by" in text
    build_site(out, tmp_path / "site")
    page = (tmp_path / "site" / "index.html").read_text()
    assert f"<td>{value:.3g} [" in page
    assert f"<td>{least.cells[0]}</td><td>{least.cells[1]}</td>" in page
    assert (tmp_path / "site" / "data" / "toy-sensitivity.csv").read_bytes() == (
        out / "toy" / "sensitivity.csv"
    ).read_bytes()
    assert "Attacks made on another model" in page
    crossed = (tmp_path / "site" / "data" / "toy-transfer.csv").read_bytes()
    assert crossed == (out / "toy" / "transfer" / "results.csv").read_bytes()
    for name in ("transfer", "fourier", "sensitivity"):
        assert f"plots/toy/{name}-compact.png" in page
        assert (tmp_path / "site" / "plots" / "toy" / f"{name}-compact.png").is_file()
    stale = data.assign(network="0" * 12)
    stale.to_csv(out / "toy" / "sensitivity.csv", index=False)
    rewrite(toy, out=out)
    assert "## Sensitivity" not in (out / "toy" / "report.md").read_text(), "of other weights than the board's"
    assert not (out / "toy" / "fourier-compact.png").exists()
    assert isinstance(pd.read_csv(out / "toy" / "sensitivity.csv"), pd.DataFrame), "the measures stay"
    assert not any(read_leaderboard(out / "toy", zoo()).sensitivities.values())


class Times(nn.Module):
    """x4 of c x, each pixel repeated."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.c * x, scale_factor=4)


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of every card is a linear map."""
    monkeypatch.setattr(module, "load_network", lambda *_: Times(0.5))


def flat_photos(folder: Path, *levels: int) -> Path:
    folder.mkdir()
    for i, level in enumerate(levels):
        Image.new("RGB", (64, 64), (level, level, level)).save(folder / f"flat{i}.png")
    return folder


def sought(folder: Path) -> dict[tuple[str, str], tuple[float, str]]:
    data: Any = read_sensitivity(folder)
    return {(line.image, line.figure): (line.value, line.reason) for line in data.itertuples()}


@pytest.mark.usefixtures("linear")
def test_the_smallest_changes_of_a_linear_map_have_closed_forms(tmp_path: Path) -> None:
    """c x = y / 2 is off by y / 2 everywhere. Twice the squared error is sqrt(2) times the error, or all but: 3 dB."""
    toy = protocol(tmp_path, flat_photos(tmp_path / "flat", 50, 60))
    assert search(["bicubic"], toy, tmp_path) == [""] * 2
    found = sought(tmp_path)
    for i, level in enumerate((50, 60)):
        change = level / 255 * (10 ** (3 / 20) - 1)  # c eps = 0.414 y / 2, and c is 1 / 2
        for figure, exact, unit in (("linf", change, 1.0), ("l2", change, sqrt(3 * 12 * 12))):
            value, reason = found[f"flat{i}", f"smallest-{figure}"]
            assert reason == ""
            assert exact * unit * (1 - 1e-3) <= value <= unit * (exact * 1.02 + LARGEST / 2**8)


@pytest.mark.usefixtures("linear")
def test_order_subset_and_resume_change_no_smallest_change(tmp_path: Path, toy: Path) -> None:
    cards = ["bicubic", str(toy_card(tmp_path, "net"))]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    search(cards, toy, whole)
    search(cards[1:], toy, parts, limit=1)
    search(cards[::-1], toy, parts)
    assert (whole / "sensitivity.csv").read_bytes() == (parts / "sensitivity.csv").read_bytes()
    assert len(read_sensitivity(whole)) == 2 * 2 * 2


@pytest.mark.usefixtures("linear")
def test_attacks_that_do_nothing_reach_nothing(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(APGD):
        def __call__(self, lr: Tensor, *_: object) -> Tensor:
            return lr

    monkeypatch.setattr(module, "APGD", Idle)
    search(["bicubic"], toy, tmp_path)
    found = sought(tmp_path)
    assert len(found) == 4
    for value, reason in found.values():
        assert isnan(value)
        assert reason.startswith("not reached: attacks of size ")
    (one,) = smallest_changes(read_sensitivity(tmp_path), [load_card("bicubic")], {})
    assert one.cells == ["not reached [not reached, not reached]"] * 2


def test_a_smoothed_model_is_searched_as_it_is_deployed(tmp_path: Path, toy: Path) -> None:
    card = toy_card(tmp_path, "net", more="[smoothing]\nn = 3\nsigma = 0.1")
    work = plan([load_card(card)], load_protocol(toy), torch.device("cpu"), limit=1, smallest=True)
    assert [job.measure for job in work.jobs] == ["smallest"]
    assert work.lacking == {"net": "deployed with a defence; no card of the zoo has its network alone"}
    other = toy_card(tmp_path, "net", more="[smoothing]\nn = 3\nsigma = 0.2")
    again = plan([load_card(other)], load_protocol(toy), torch.device("cpu"), limit=1, smallest=True)
    assert again.jobs[0].network == work.jobs[0].network
    assert again.jobs[0].key != work.jobs[0].key
