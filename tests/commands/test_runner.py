"""The runner end to end on toy networks: what it writes, what it reuses, what it does when things go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from toys import SCORES, FakeLpips, photos, protocol, toy_card

import benchsr
from benchsr.base.errors import CardError, InputError, UnknownIdError
from benchsr.commands.compare import compare_named
from benchsr.commands.report import rewrite
from benchsr.commands.run import Outcome, evaluate
from benchsr.data.datasets import load_dataset
from benchsr.evaluation import worker
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.plan import Cell
from benchsr.leaderboard import read_leaderboard
from benchsr.leaderboard.paper import Verdict
from benchsr.models.network import load_network
from benchsr.models.zoo import zoo
from benchsr.results.records import columns
from benchsr.threats.table import Threat

FIGURES = ["psnr", "ssim", "lpips", "attack_linf", "attack_l2", "loss_clean", "loss_attacked"]


@dataclass
class Bench:
    """A toy benchmark in a temporary folder."""

    folder: Path
    models: list[str]
    protocol: Path

    def run(self, **options: Any) -> Outcome:
        models = options.pop("models", ",".join(self.models))
        threats = options.pop("threats", "all")
        places: dict[str, Any] = {"out": self.folder / "out", "cache": self.folder / "cache", "device": "cpu"}
        return evaluate(models, threats, self.protocol, RunOptions(**places | options))

    def table(self, out: str = "out") -> pd.DataFrame:
        frame = pd.read_csv(self.folder / out / "toy" / "results.csv", keep_default_na=False)
        return frame.set_index(["model", "threat", "image"]).sort_index()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    (tmp_path / "toy-s.toml").write_text(
        'id = "toy-s"\ntitle = "Smoothed"\nfamily = "compact"\nlicence = "MIT"\npaper = "none"\n'
        'training_data = "none"\nfine_tuning_data = "none"\nbase = "toy-a"\n'
        "[smoothing]\nn = 3\nsigma = { pgd = 0.05 }\n"
    )
    models = ["bicubic", toy_card(tmp_path, "toy-a", seed=1), toy_card(tmp_path, "toy-b", seed=2)]
    return Bench(tmp_path, models, protocol(tmp_path, photos(tmp_path / "photos")))


def count_attacks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the threat's id whenever the worker attacks."""
    calls: list[str] = []
    real = worker.Worker._attack_batch

    def counted(self: worker.Worker, cell: Cell, samples: Any) -> Any:
        calls.append(cell.threat)
        return real(self, cell, samples)

    monkeypatch.setattr(worker.Worker, "_attack_batch", counted)
    return calls


def test_results_hold_one_line_per_model_threat_and_image(bench: Bench) -> None:
    outcome = bench.run()
    table = bench.table()
    assert sorted([*table.index.names, *table.columns]) == sorted(columns(SCORES))
    assert len(table) == 3 * (4 * 3 + 1)
    ok = table[table.status == "ok"]
    assert len(ok) == 3 * 4 * 3
    assert not outcome.failures
    assert (table.loc[table.status == "unavailable", "reason"].str.contains("fetch")).all()
    assert set(table.loc[table.status == "unavailable"].index.get_level_values("threat")) == {"ntire"}


def test_attacks_hurt_and_stay_in_their_ball(bench: Bench) -> None:
    bench.run()
    table = bench.table().query("status == 'ok'")
    numbers = table[FIGURES].apply(pd.to_numeric)
    for model in ("toy-a", "toy-b"):
        attacked = numbers.loc[(model, ["fgsm", "pgd"]), :]
        assert (attacked.loss_attacked > 1.02 * attacked.loss_clean).all()
        assert (attacked.attack_linf <= 10 / 255 + 1e-6).all()
        assert (attacked.attack_linf > 5 / 255).all()
        assert (numbers.loc[(model, "pgd"), "psnr"] < numbers.loc[(model, "clean"), "psnr"]).all()


def test_a_second_run_computes_nothing_and_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    before = (bench.folder / "out" / "toy" / "results.csv").read_bytes()
    calls = count_attacks(monkeypatch)
    monkeypatch.setattr(worker.Worker, "_score", lambda *_: pytest.fail("inference was run again"))
    outcome = bench.run()
    assert (outcome.computed, calls) == (0, [])
    assert (bench.folder / "out" / "toy" / "results.csv").read_bytes() == before


def test_attacked_images_are_reused_by_another_leaderboard(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    calls = count_attacks(monkeypatch)
    bench.run(out=bench.folder / "other")
    assert calls == []
    pd.testing.assert_frame_equal(bench.table()[FIGURES], bench.table("other")[FIGURES])


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 2}, {"memory_budget": 1e-9}, {"limit": 2}, {"models": "toy-b"}]
)
def test_no_figure_depends_on_batch_size_subset_or_order(bench: Bench, options: dict[str, Any]) -> None:
    bench.run()
    if "models" in options:
        options = {"models": f"{bench.models[2]},{bench.models[1]}"}
    bench.run(out=bench.folder / "other", cache=bench.folder / "other-cache", **options)
    other = bench.table("other").query("status == 'ok'")
    assert len(other) > 0
    pd.testing.assert_frame_equal(bench.table().loc[other.index, FIGURES], other[FIGURES])


def test_a_smoothed_row_faces_the_attack_on_its_base(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_attacks(monkeypatch)
    bench.run(models=f"{bench.models[1]},{bench.folder / 'toy-s.toml'}", threats="clean,pgd")
    assert sorted(calls) == ["clean"] * 3 + ["pgd"] * 3
    table = bench.table()

    def column(model: str, threat: str, name: str) -> list[float]:
        return [float(value) for value in table.xs((model, threat))[name]]

    assert column("toy-s", "pgd", "attack_l2") == column("toy-a", "pgd", "attack_l2")
    assert column("toy-s", "pgd", "psnr") != column("toy-a", "pgd", "psnr")
    assert column("toy-s", "clean", "psnr") == column("toy-a", "clean", "psnr")


def test_rows_of_earlier_runs_stay(bench: Bench) -> None:
    bench.run(models=bench.models[1], threats="clean")
    bench.run(models=bench.models[2], threats="clean,noise")
    assert {key[:2] for key in bench.table().index} == {("toy-a", "clean"), ("toy-b", "clean"), ("toy-b", "noise")}


def test_an_interrupted_run_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(out=bench.folder / "whole", cache=bench.folder / "whole-cache")
    real = worker.Worker._score
    done: list[int] = []

    def interrupted(self: worker.Worker, *args: Any) -> worker.Answer:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(1)
        return real(self, *args)

    monkeypatch.setattr(worker.Worker, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    monkeypatch.setattr(worker.Worker, "_score", real)
    outcome = bench.run()
    assert outcome.computed == 3 * 4 * 3 - 7
    pd.testing.assert_frame_equal(bench.table()[FIGURES], bench.table("whole")[FIGURES])


def test_results_cut_in_half_are_computed_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.run()
    whole = bench.table()
    file = bench.folder / "out" / "toy" / "results.csv"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    outcome = bench.run()
    assert outcome.computed > 0
    assert "results.csv" in caplog.text
    pd.testing.assert_frame_equal(bench.table()[FIGURES], whole[FIGURES])


def test_damaged_cache_entries_are_computed_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.run(threats="pgd")
    for entry in (bench.folder / "cache").rglob("*.safetensors"):
        data = bytearray(entry.read_bytes())
        data[-5] ^= 0xFF
        entry.write_bytes(data)
    bench.run(threats="pgd", out=bench.folder / "other")
    assert "damaged" in caplog.text
    pd.testing.assert_frame_equal(bench.table()[FIGURES], bench.table("other")[FIGURES])


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("boom")


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=4) * torch.nan


BROKEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "raises": (Raises, "RuntimeError: boom"),
    "nan": (Nan, "NaN"),
    "wrong shape": (lambda: nn.Upsample(scale_factor=2), "not \\(1, 3, 48, 48\\)"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_fails_alone_with_its_reason(bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, reason = BROKEN[kind]
    monkeypatch.setattr(
        worker, "load_network", lambda card, **kw: make() if card.id == "toy-b" else load_network(card, **kw)
    )
    outcome = bench.run(threats="clean,pgd")
    table = bench.table()
    assert {r.model for r in outcome.failures} == {"toy-b"}
    assert table.loc["toy-b"].reason.str.contains(reason).all()
    assert (table.loc["toy-b"].status == "failed").all()
    assert (table.loc[["bicubic", "toy-a"]].status == "ok").all()


def test_one_bad_image_fails_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = worker.Worker._attack_batch

    def picky(self: worker.Worker, cell: Cell, samples: Any) -> Any:
        if any(s.id == "photo1" for s in samples):
            raise RuntimeError("out of memory")
        return real(self, cell, samples)

    monkeypatch.setattr(worker.Worker, "_attack_batch", picky)
    outcome = bench.run(threats="pgd")
    assert {r.image for r in outcome.failures} == {"photo1"}
    assert (bench.table().drop("photo1", level="image").status == "ok").all()


def test_an_attack_that_leaves_its_ball_is_not_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Threat.run

    def cheat(self: Threat, *args: Any, **kw: Any) -> Any:
        result = real(self, *args, **kw)
        return result if isinstance(result, Tensor) else replace(result, lr=(result.lr + 0.05).clamp(0, 1))

    monkeypatch.setattr(Threat, "run", cheat)
    outcome = bench.run(models=bench.models[1], threats="fgsm")
    assert len(outcome.failures) == 3
    assert all("beyond its eps" in r.reason for r in outcome.failures)


def test_python_run_returns_a_frame(bench: Bench) -> None:
    frame = benchsr.run(
        "bicubic", "clean", bench.protocol, out=bench.folder / "out", cache=bench.folder / "cache", limit=1
    )
    assert set(columns(SCORES)) | {"seconds_sr"} <= set(frame.columns)
    assert frame.status.tolist() == ["ok"]
    assert frame.psnr.item() > 10


def at_twice(bench: Bench) -> Bench:
    """The bench at x2: metrics need LR of 16 pixels a side there."""
    file = bench.folder / "twice.toml"
    file.write_text(bench.protocol.read_text().replace("crop = 12", "crop = 16"))
    return replace(bench, models=["bicubic", toy_card(bench.folder, "toy-2", scale=2)], protocol=file)


def test_a_run_at_another_scale_has_a_board_of_its_own(bench: Bench) -> None:
    bench.run(threats="clean", models="bicubic")
    before = (bench.folder / "out" / "toy" / "results.csv").read_bytes()
    twice = at_twice(bench)
    outcome = twice.run(scale=2)
    assert outcome.folder == bench.folder / "out" / "toy-x2"
    assert not outcome.failures
    done = [r for r in outcome.records if r.scores]
    assert {(r.model, r.threat) for r in done} == {
        (m, t) for m in ("bicubic", "toy-2") for t in ("clean", "noise", "fgsm", "pgd")
    }
    assert {r.protocol for r in outcome.records} == {"toy-x2"}
    assert {r.reason for r in outcome.records if not r.scores} == {
        "data set 'ntire-track1-valid' is for x4, not for x2"
    }
    clean = {r.image: r.scores["psnr"] for r in done if (r.model, r.threat) == ("bicubic", "clean")}
    sample = load_dataset(bench.folder / "photos", crop=16, scale=2)[0]
    x = torch.nn.functional.interpolate(sample.lr[None], scale_factor=2, mode="bicubic", antialias=True).clamp(0, 1)
    x, hr = (image[..., 8:-8, 8:-8] for image in ((x * 255).round() / 255, sample.hr[None]))  # away from the border
    assert clean[sample.id] == pytest.approx(float(-10 * (x - hr).square().mean().log10()), abs=1.5)
    about = json.loads((outcome.folder / "protocol.json").read_text())
    assert about["protocol"]["scale"] == 2
    report = (outcome.folder / "report.md").read_text()
    assert "How well x2 super-resolution networks" in report
    assert "# Toy x2" in report
    assert (bench.folder / "out" / "toy" / "results.csv").read_bytes() == before


def test_boards_of_unlike_scales_are_neither_mixed_nor_compared(bench: Bench) -> None:
    twice, out = at_twice(bench), bench.folder / "out"
    bench.run(threats="clean", models="bicubic")
    twice.run(threats="clean", models="bicubic", scale=2)
    with pytest.raises(InputError, match=r"is of x2 and .* of x4: boards of unlike scales"):
        compare_named(str(out / "toy-x2"), str(out / "toy"), "quick", out)
    (out / "toy" / "results.csv").write_bytes((out / "toy-x2" / "results.csv").read_bytes())
    with pytest.raises(InputError, match=r"a line of protocol toy-x2, seed 0, was not made with"):
        rewrite(bench.protocol, out=out)


def test_models_of_one_scale_alone(bench: Bench) -> None:
    twice = at_twice(bench)
    with pytest.raises(InputError, match="toy-2 is a x2 network, and this run is of x4: give --scale 2"):
        twice.run()
    with pytest.raises(InputError, match="toy-a is a x4 network, and this run is of x2: give --scale 4"):
        bench.run(scale=2)
    with pytest.raises(CardError, match="scale: Input should be 2, 3, 4 or 8"):
        bench.run(scale=5)


def test_a_board_of_another_scale_is_not_compared_with_the_paper(bench: Bench) -> None:
    outcome = at_twice(bench).run(scale=2, threats="clean,noise,fgsm,pgd")
    board = read_leaderboard(outcome.folder, {**zoo(), **outcome.cards})
    assert len(board.beside_paper) > 0
    assert board.beside_paper["ours"].isna().all()
    assert not any(j.count(v) for js in board.judgements.values() for j in js for v in (Verdict.HOLDS, Verdict.FAILS))
    assert {row.card.id for table in board.tables.values() for row in table.rows} == {"bicubic", "toy-2"}


def test_wrong_usage(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UnknownIdError, match="bicubic"):
        bench.run(models="bicubik")
    with pytest.raises(InputError, match="has no threat 'blur'"):
        bench.run(threats="blur")
    with pytest.raises(InputError, match="limit"):
        bench.run(limit=0)
    with pytest.raises(InputError, match="device"):
        bench.run(device="tpu")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a folder")
    with pytest.raises(InputError, match="blocked"):
        bench.run(out=blocked)
