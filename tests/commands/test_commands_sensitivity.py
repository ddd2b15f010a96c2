"""`benchsr sensitivity` on a toy board: what it writes, what it does not measure again, where it is shown."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from toys import FakeLpips, call, photos, protocol, toy_card

from benchsr.base.errors import InputError
from benchsr.commands import sensitivity as module
from benchsr.commands.report import rewrite
from benchsr.commands.run import evaluate
from benchsr.commands.sensitivity import measure, plan
from benchsr.data.datasets import load_dataset
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.protocol import load_protocol
from benchsr.leaderboard import read_leaderboard
from benchsr.leaderboard.sensitivity import read_sensitivity
from benchsr.metrics.sensitivity import Singular, fourier_gains, frequencies, largest_singular_value
from benchsr.models.network import load_network
from benchsr.models.zoo import load_card, zoo
from benchsr.site import build_site


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return protocol(tmp_path, photos(tmp_path / "photos", 2))


def measured(cards: list[str], toy: Path, folder: Path) -> list[str]:
    chosen = load_protocol(toy)
    return [why for _, why in measure(plan([load_card(c) for c in cards], chosen, torch.device("cpu")), folder)]


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
    assert work.lacking["jpeg+bicubic"] == "deployed with a defence; its network is measured as bicubic"
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
    assert call(monkeypatch, f"sensitivity --models {models} --protocol {toy} --out {out} --device cpu --limit 1") == 0
    text = (out / "toy" / "report.md").read_text()
    data = read_sensitivity(out / "toy")
    value = data[(data["figure"] == "singular") & (data["model"] == "bicubic")]["value"].mean()
    assert f"| Bicubic interpolation | {value:.3g} [" in text
    assert {"sensitivity-compact.png", "fourier-compact.png"} <= {p.name for p in (out / "toy").glob("*.png")}
    assert "](fourier-compact.png)" in text
    assert "The worst small change of LR moves SR by" in text
    build_site(out, tmp_path / "site")
    page = (tmp_path / "site" / "index.html").read_text()
    assert f"<td>{value:.3g} [" in page
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
