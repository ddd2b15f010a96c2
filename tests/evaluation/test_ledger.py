"""What the ledger promises: no figure beside settings, weights or data that did not make it, and none lost."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import pytest
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from toys import FakeLpips, photos, protocol, toy_card
from typer.testing import CliRunner

from benchsr.base.errors import InputError, UnavailableError
from benchsr.cli.main import app
from benchsr.commands.figures import make_figures
from benchsr.commands.report import rewrite
from benchsr.commands.run import Outcome, evaluate
from benchsr.data.datasets import load_dataset
from benchsr.evaluation.ledger import Ledger, environment, read_ledger, stored_protocol
from benchsr.evaluation.options import RunOptions
from benchsr.evaluation.plan import keys_today, plan, resolve
from benchsr.evaluation.protocol import load_protocol
from benchsr.metrics.perceptual import TRUNKS
from benchsr.models.zoo import find_weights, load_card, network_key
from benchsr.results.records import Record, Status, append_record
from benchsr.site import build_site
from benchsr.threats.table import Threat, load_threat


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    monkeypatch.setattr("benchsr.leaderboard.report.all_plots", lambda *_: iter(()))  # most of a board's time


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return protocol(tmp_path, photos(tmp_path / "photos"))


def run(toy: Path, models: str, threats: str = "clean,noise", **options: Any) -> Outcome:
    places: dict[str, Any] = {"out": toy.parent / "out", "cache": toy.parent / "cache", "device": "cpu"}
    return evaluate(models, threats, toy, RunOptions(**places | options))


def lines(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv", keep_default_na=False)


def test_a_run_that_goes_on_derives_what_a_report_of_its_file_does(toy: Path) -> None:
    run(toy, "bicubic", "noise")
    outcome = run(toy, "bicubic", "clean,noise,fgsm", defence="bit-depth")
    assert outcome.records == read_ledger(outcome.folder)
    made = {file.name: file.read_bytes() for file in outcome.folder.iterdir()}
    rewrite(toy, out=toy.parent / "out")
    assert {file.name: file.read_bytes() for file in outcome.folder.iterdir()} == made


def test_a_report_is_of_the_settings_that_made_the_figures(toy: Path) -> None:
    out = toy.parent / "out"
    run(toy, "bicubic", seed=7)
    with pytest.raises(InputError, match="made with other settings"):
        rewrite(toy, out=out)
    made, fingerprint = stored_protocol(out / "toy")
    assert made.seed == 7
    assert fingerprint == load_protocol(toy).override(seed=7).fingerprint
    (out / "quick").mkdir()
    for file in (out / "toy").iterdir():
        file.replace(out / "quick" / file.name)
    told = json.loads((out / "quick" / "protocol.json").read_text())
    told["protocol"]["id"] = "quick"
    (out / "quick" / "protocol.json").write_text(json.dumps(told))
    text = (out / "quick" / "results.csv").read_text()
    (out / "quick" / "results.csv").write_text(text.replace("toy,", "quick,"))
    folder = rewrite("quick", out=out)  # an id names the folder; the settings are those that lie there
    assert json.loads((folder / "leaderboard.json").read_text())["fingerprint"] == fingerprint
    assert "seed 7" in (folder / "report.md").read_text()
    with pytest.raises(InputError, match="made with other settings"):
        rewrite("quick", dataset="photos", out=out)
    (out / "quick" / "results.csv").write_text(text.replace("toy,", "quick,").replace(",7,", ",8,"))
    with pytest.raises(InputError, match="seed 8, was not made"):
        rewrite("quick", out=out)


def test_a_page_of_other_settings_is_refused(toy: Path) -> None:
    out = toy.parent / "out"
    run(toy, "bicubic", "clean")
    about = json.loads((out / "toy" / "leaderboard.json").read_text())
    (out / "toy" / "leaderboard.json").write_text(json.dumps(about | {"fingerprint": "0" * 64}))
    with pytest.raises(InputError, match=r"leaderboard.json is of other settings.*benchsr report"):
        build_site(out, toy.parent / "page")
    (out / "toy" / "leaderboard.json").write_text(json.dumps(about))
    (out / "toy" / "figures").mkdir()
    (out / "toy" / "figures" / "figures.json").write_text(json.dumps({"fingerprint": "0" * 64, "comparisons": []}))
    with pytest.raises(InputError, match=r"figures.json is of other settings.*benchsr figures"):
        build_site(out, toy.parent / "page")


def test_two_cards_of_one_id_are_refused_with_both_files(toy: Path, tmp_path: Path) -> None:
    one = toy_card(tmp_path, "toy-a", seed=1)
    (tmp_path / "z").mkdir()
    other = toy_card(tmp_path / "z", "toy-a", seed=2)
    with pytest.raises(InputError) as error:
        run(toy, f"{one},{other}")
    assert str(one) in str(error.value)
    assert str(other) in str(error.value)


def test_new_weights_leave_no_old_figure_in_the_board(toy: Path, tmp_path: Path) -> None:
    card = toy_card(tmp_path, "toy-a", seed=1)
    run(toy, card)
    old = lines(tmp_path / "out" / "toy")
    run(toy, "bicubic")
    toy_card(tmp_path, "toy-a", seed=2)
    find_weights.cache_clear()
    run(toy, card, "clean", limit=1)
    now = lines(tmp_path / "out" / "toy")
    mine = now[now.model == "toy-a"]
    assert list(zip(mine.threat, mine.image, strict=True)) == [("clean", "photo0")]
    assert len(now[now.model == "bicubic"]) == 6  # whose weights are today's
    (aside,) = (tmp_path / "out" / "toy").glob("results-outdated-*.csv")
    kept = pd.read_csv(aside, keep_default_na=False)
    assert set(kept.key) == set(old.key)
    (seconds,) = (tmp_path / "out" / "toy").glob("timings-outdated-*.csv")
    assert set(pd.read_csv(seconds).key) == set(old.key)
    assert set(pd.read_csv(tmp_path / "out" / "toy" / "timings.csv").key) == set(now.key)


def test_figures_of_a_card_that_is_not_at_hand_stay(toy: Path, tmp_path: Path) -> None:
    before = lines(run(toy, toy_card(tmp_path, "toy-a"), "clean").folder)
    (tmp_path / "toy-a.toml").unlink()
    after = lines(run(toy, "bicubic", "clean").folder)
    assert set(before.key) < set(after.key)
    assert {*after.model} == {"toy-a", "bicubic"}


def no_trunk(threat: Threat) -> str:
    """In the place of what looks for the weights of a loss."""
    if threat.objective:
        raise UnavailableError("no weights of the loss")
    return ""


def test_a_line_that_says_what_is_lacking_goes_when_it_is_there(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("benchsr.evaluation.plan._perceptual_key", no_trunk)
        assert set(lines(run(toy, "bicubic", "clean,pgd").folder).status) == {"ok", "unavailable"}
    assert set(lines(run(toy, "bicubic", "clean,pgd").folder).status) == {"ok"}


def test_figures_of_weights_that_are_gone_stay(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = toy_card(tmp_path, "toy-a")
    before = lines(run(toy, f"{card},bicubic", "clean,pgd").folder)
    (tmp_path / "toy-a.safetensors").unlink()
    find_weights.cache_clear()
    monkeypatch.setattr("benchsr.evaluation.plan._perceptual_key", no_trunk)
    outcome = run(toy, f"{card},bicubic", "clean,pgd,noise")
    after = lines(outcome.folder)
    assert set(before.key) < set(after.key)
    new = after[~after.key.isin(before.key)]
    assert {*zip(new.model, new.threat, new.status, strict=True)} == {
        ("toy-a", "noise", "unavailable"),
        ("bicubic", "noise", "ok"),
    }
    assert list(outcome.folder.glob("*-outdated-*")) == []


def test_what_failed_with_older_weights_is_no_figure_to_keep(toy: Path) -> None:
    ledger = Ledger(toy.parent / "ledger", load_protocol(toy), environment(torch.device("cpu")))
    ledger.open()
    ledger.append(Record("toy", "photos", "toy-a", "clean", "photo0", Status.FAILED, "out of memory", key="a" * 64))
    ledger.retire({("toy-a", "clean", "photo0"): {"b" * 64}})
    assert read_ledger(ledger.folder) == []
    assert list(ledger.folder.glob("results-outdated-*")) == []


def test_a_run_writes_its_lines_again_that_another_program_took_away(toy: Path) -> None:
    ledger = Ledger(toy.parent / "ledger", load_protocol(toy), environment(torch.device("cpu")))
    ledger.open()
    record = Record("toy", "photos", "bicubic", "clean", "photo0", Status.OK, scores={"psnr": 1.0}, key="a" * 64)
    done = {record.key: ledger.append(record)}
    ledger.results.unlink()
    with ledger.merged([record], done) as merged:
        assert merged == [done[record.key]]
    assert [r.scores for r in read_ledger(ledger.folder)] == [record.scores]


def test_figures_of_another_class_of_device_stay_unless_they_are_computed_again(toy: Path, tmp_path: Path) -> None:
    chosen, card = load_protocol(toy), load_card(toy_card(tmp_path, "toy-a"))
    data, rows = load_dataset(chosen.dataset, crop=chosen.crop), resolve([card, load_card("bicubic")])
    folder = tmp_path / "out" / "toy"
    ledger = Ledger(folder, chosen, environment(torch.device("cpu")))
    ledger.open()
    cells, _ = plan(chosen, rows, ["pgd"], data, "cuda")
    theirs = [replace(r, scores={"psnr": 20.0, "ssim": 0.5, "lpips": 0.1}) for cell in cells for r in cell.records]
    for record in theirs:
        ledger.append(record)
    planned = [r for cell in plan(chosen, rows[:1], ["pgd"], data, "cpu", 1)[0] for r in cell.records]
    ledger.retire(keys_today(chosen, rows, data, planned))
    left = {r.key for r in theirs if (r.model, r.image) != ("toy-a", "photo0")}
    assert {r.key for r in read_ledger(folder)} == left
    (aside,) = folder.glob("results-outdated-*.csv")
    assert set(pd.read_csv(aside).key) == {r.key for r in theirs} - left


def test_a_line_that_another_program_adds_meanwhile_is_kept(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Editors, git and rsync know nothing of the lock."""
    folder = run(toy, "bicubic", "clean").folder
    before, read = lines(folder), read_ledger
    added: list[str] = []

    def meanwhile(path: Path) -> list[Record]:
        found = read(path)
        if found and not added:
            text = (path / "results.csv").read_text()
            added.append(text.splitlines()[-1].replace("bicubic", "rival"))
            (path / "results.csv").write_text(f"{text}{added[0]}\n")
        return found

    monkeypatch.setattr("benchsr.evaluation.ledger.read_ledger", meanwhile)
    monkeypatch.setattr("benchsr.evaluation.ledger.Ledger.open", lambda self: read(self.folder))
    monkeypatch.setattr("benchsr.evaluation.ledger.Ledger.retire", lambda *_: None)
    run(toy, "bicubic", "clean")
    assert added
    assert sorted(lines(folder).model) == sorted([*before.model, "rival"])


def test_a_plan_reads_no_weights_of_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.metrics.perceptual._weights", lambda net: pytest.fail("weights were looked for"))
    quick, rows = load_protocol("quick"), resolve([load_card("bicubic")])
    data = load_dataset(quick.dataset, crop=quick.crop)
    cells, _ = plan(quick, rows, ["clean", "pgd"], data, "cpu", 1)
    assert [cell.threat for cell in cells] == ["clean", "pgd"]


def free_for_others(folder: Path) -> bool:
    """Whether another thread could take the lock of the results in `folder`."""
    found: list[bool] = []

    def other() -> None:
        lock = FileLock(folder / ".results.csv.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found.append(False)
        else:
            lock.release()
            found.append(True)

    rival = Thread(target=other)
    rival.start()
    rival.join()
    return found[0]


def test_no_run_adds_to_the_lines_while_another_adds_or_a_board_is_written_of_them(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: dict[str, bool] = {}
    add = append_record

    def appended(path: Path, *about: Any) -> None:
        free["adds"] = free_for_others(path.parent)
        add(path, *about)

    monkeypatch.setattr("benchsr.evaluation.ledger.append_record", appended)
    monkeypatch.setattr(
        "benchsr.commands.run.write_leaderboard", lambda folder, *_, **__: free.update(board=free_for_others(folder))
    )
    folder = run(toy, "bicubic", "clean").folder
    assert free == {"adds": False, "board": False}
    assert free_for_others(folder)


def test_a_title_is_no_markup(toy: Path) -> None:
    chosen = load_protocol(toy).model_copy(update={"title": "Toy [/bold] [red]"})
    said = io.StringIO()
    places: dict[str, Any] = {"out": toy.parent / "out", "cache": toy.parent / "cache", "device": "cpu"}
    evaluate("bicubic", "clean", chosen, RunOptions(**places, limit=1, console=Console(file=said, width=200)))
    assert "Toy [/bold] [red]: 1 models" in said.getvalue()


def test_pictures_of_results_that_other_code_made_are_refused(toy: Path) -> None:
    out = toy.parent / "out"
    run(toy, "bicubic", "clean", limit=1)
    file = out / "toy" / "protocol.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "0" * 64}))
    with pytest.raises(InputError, match="another version of benchsr"):
        make_figures("bicubic", "clean", None, toy, out=out, device="cpu")


def test_damaged_timings_cost_no_figure(toy: Path) -> None:
    folder = run(toy, "bicubic", "clean").folder
    file = folder / "timings.csv"
    file.write_bytes(file.read_bytes()[:-20] + b'\n"' + b"x" * 200_000 + b"\xff\n1,2\n")
    assert len([r for r in read_ledger(folder) if r.seconds_sr]) == 2


def test_settings_back_and_forth_lose_nothing(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.evaluation.ledger._stamp", lambda: "20260101T000000")  # all in one second
    seen: list[set[str]] = []
    for seed in (0, 7, 0, 7):
        run(toy, "bicubic", "noise", seed=seed, cache=tmp_path / f"cache{seed}")
        seen.append(set(lines(tmp_path / "out" / "toy").key))
    aside = [set(pd.read_csv(path).key) for path in sorted((tmp_path / "out" / "toy").glob("results-*.csv"))]
    assert len(aside) == 3
    assert sorted(map(sorted, aside)) == sorted(map(sorted, seen[:3]))
    assert len(list((tmp_path / "out" / "toy").glob("protocol-*.json"))) == 3


def test_each_line_names_what_made_it(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.parent / "out" / "toy"
    run(toy, "bicubic", "clean")
    before = (folder / "results.csv").read_bytes()
    run(toy, "bicubic", "clean")
    assert (folder / "results.csv").read_bytes() == before
    monkeypatch.setattr("benchsr.evaluation.ledger.version", lambda name: "99.0")
    run(toy, "bicubic", "clean,noise")
    table, told = lines(folder), json.loads((folder / "environments.json").read_text())
    by_threat = {t: told[e]["versions"]["torch"] for t, e in zip(table.threat, table.environment, strict=True) if e}
    assert by_threat["noise"] == "99.0"
    assert by_threat["clean"] != "99.0"
    assert len(told) == 2
    assert set(table.network[table.status == "ok"]) == {network_key(load_card("bicubic"))[:12]}


def test_seconds_stand_beside_the_results(toy: Path) -> None:
    folder = toy.parent / "out" / "toy"
    run(toy, "bicubic", "clean,noise")
    timings = pd.read_csv(folder / "timings.csv")
    assert set(timings.key) == set(lines(folder).key)
    assert (timings.seconds_sr > 0).all()
    assert all(record.seconds_sr for record in read_ledger(folder) if record.status is Status.OK)


def test_weights_that_are_not_what_they_should_be_fail_the_run(toy: Path, tmp_path: Path) -> None:
    card = Path(toy_card(tmp_path, "toy-a", seed=1))
    card.write_text(card.read_text().replace('sha256 = "', 'sha256 = "0000').replace('"0000', '"0000', 1))
    text = card.read_text()
    start = text.index('sha256 = "') + len('sha256 = "')
    card.write_text(text[:start] + "0" * 64 + text[text.index('"', start) :])
    outcome = run(toy, f"bicubic,{card}", "clean")
    assert {r.model for r in outcome.failures} == {"toy-a"}
    assert "sha256" in outcome.failures[0].reason
    arguments = ["run", "--models", str(card), "--threats", "clean", "--protocol", str(toy)]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "o"), "--device", "cpu"])
    assert result.exit_code == 1, result.output


def test_keys_know_the_device_and_the_loss(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load_protocol(toy)
    chosen = chosen.model_copy(update={"objective": chosen.objective.model_copy(update={"perceptual_weight": 1.0})})
    rows, data = resolve([load_card(toy_card(tmp_path, "toy-a"))]), load_dataset(chosen.dataset, crop=chosen.crop)

    def key(threat: str, device: str, trunk: str) -> str:
        monkeypatch.setitem(TRUNKS, "vgg16", replace(TRUNKS["vgg16"], sha256=trunk))
        cells, _ = plan(chosen, rows, [threat], data, device)
        return cells[0].attack_keys["photo0"]

    assert key("pgd", "cpu", "a") == key("pgd", "cpu", "a")
    assert len({key("pgd", "cpu", "a"), key("pgd", "cuda", "a"), key("pgd", "cpu", "b")}) == 3
    assert key("noise", "cpu", "a") == key("noise", "cuda", "b")


def test_equal_settings_have_equal_keys_and_others_have_not() -> None:
    quick = load_protocol("quick")
    assert quick.fingerprint != quick.model_copy(update={"seed": 7}).fingerprint
    assert load_threat("pgd", eps=1).settings == load_threat("pgd", eps=1.0).settings
    assert isinstance(load_threat("pgd", eps=1).settings["eps"], float)


def test_known_are_those_that_are_known(toy: Path, tmp_path: Path) -> None:
    soft = tmp_path / "soft.toml"
    soft.write_text(
        'id = "soft"\ntitle = "Smoothed"\nfamily = "compact"\nlicence = "MIT"\npaper = "none"\ntraining_data = "none"\n'
        'fine_tuning_data = "none"\nbase = "toy-a"\n[smoothing]\nn = 3\nsigma = { pgd = 0.05 }\n'
    )
    said = Console(record=True, width=200, quiet=False, file=(tmp_path / "log").open("w"))
    models = f"{toy_card(tmp_path, 'toy-a')},{soft}"
    run(toy, models, "clean", console=said)
    assert "3 evaluations to do, 3 equal to another row's" in said.export_text()
    run(toy, models, "clean", console=said)
    assert "0 evaluations to do, 6 known already" in said.export_text()


def test_a_ledger_without_its_settings_is_refused(toy: Path) -> None:
    run(toy, "bicubic", "clean")
    (toy.parent / "out" / "toy" / "protocol.json").unlink()
    with pytest.raises(InputError, match=r"protocol\.json: cannot be used"):
        stored_protocol(toy.parent / "out" / "toy")


def test_runs_of_other_settings_are_told_apart_while_they_go(toy: Path) -> None:
    chosen = load_protocol(toy)
    folder = toy.parent / "ledger"
    made_in = environment(torch.device("cpu"))
    first, second = (Ledger(folder, p, made_in) for p in (chosen, chosen.override(seed=7)))
    record = Record("toy", "photos", "bicubic", "clean", "photo0", Status.OK, scores={"psnr": 1.0}, key="a" * 64)
    first.open()
    first.append(record)
    second.open()
    with pytest.raises(InputError, match="taken over"):
        first.append(replace(record, image="photo1"))


def test_a_line_has_its_seconds_as_soon_as_it_is_written(toy: Path) -> None:
    ledger = Ledger(toy.parent / "ledger", load_protocol(toy), environment(torch.device("cpu")))
    ledger.open()
    ledger.append(
        Record(
            "toy", "photos", "bicubic", "clean", "photo0", Status.OK, scores={"psnr": 1.0}, key="a" * 64, seconds_sr=2.5
        )
    )
    (found,) = read_ledger(ledger.folder)
    assert found.seconds_sr == 2.5
