"""The page against results.csv, with hostile text, and in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchsr.base.errors import InputError
from benchsr.base.registry import Registry
from benchsr.commands.costs import Costs
from benchsr.commands.export import write_costs
from benchsr.leaderboard import LeaderboardInfo
from benchsr.leaderboard.scores import make_cell
from benchsr.leaderboard.tables import LAYOUTS
from benchsr.metrics.quality import METRICS
from benchsr.models.cards import Card
from benchsr.models.zoo import zoo
from benchsr.results.records import Record, Status, write_results
from benchsr.site import build_site
from benchsr.site.curves import CURVE, panels
from benchsr.threats.table import CORRUPTIONS, FIXED, THREATS

IMAGES = ("astronaut", "chelsea", "coffee", "rocket")
HOSTILE = """<script>alert("1")</script>'"&{{ 7 * 7 }}</style><img src=x onerror=alert(2)>"""
TEXTS = dict.fromkeys(("licence", "paper", "training_data", "fine_tuning_data"), HOSTILE)
MEAN = {"psnr": 24.0, "ssim": 0.7, "lpips": 0.25}


MODELS = ("bicubic", "esrgan", "ad-l-fgsm", "ad-l-cw", "certsr", "esrgan-fs-aim", "compact-esrgan", "compact-certsr")


def zoo_with_stranger() -> Registry[Card]:
    stranger: dict[str, Any] = {
        "id": "hostile",
        "title": HOSTILE,
        "family": "paper",
        "base": "bicubic",
        "caveats": [HOSTILE],
        **TEXTS,
    }
    stranger |= {"training": {"note": [HOSTILE]}}
    return Registry("model", {**{m: zoo()[m] for m in MODELS}, "hostile": Card.model_validate(stranger)})


def synthetic(folder: Path, protocol: str, threats: tuple[str, ...]) -> None:
    """A leaderboard of made-up figures with all that can go wrong: missing, failed, incomplete, infinite, flagged."""
    rng, records = np.random.default_rng(len(protocol)), []
    for model in zoo_with_stranger():
        for threat in threats:
            for image in IMAGES:
                made = Record(protocol, "photos", model, threat, image, Status.OK, key="0" * 64)
                if model.startswith("esrgan-fs") or threat in ("ntire", "aim"):
                    records.append(replace(made, status=Status.UNAVAILABLE, reason=f"no weights: {HOSTILE}"))
                    continue
                if (model, threat, image) == ("ad-l-cw", "pgd", "rocket"):
                    records.append(replace(made, status=Status.FAILED, reason="the model returned NaN"))
                    continue
                figures: dict[str, Any] = {m: float(v * (1 + 0.2 * rng.standard_normal())) for m, v in MEAN.items()}
                if (model, threat) == ("bicubic", "clean"):
                    figures["psnr"] = float("inf")
                attack: dict[str, Any] = (
                    {"attack_linf": 10 / 255, "attack_l2": 2.0} if THREATS[threat].kind == "attack" else {}
                )
                flag = "still-rising" if (model, threat) == ("certsr", "cw") else ""
                records.append(replace(made, scores=figures, **attack, health=flag))
    write_results(folder / protocol / "results.csv", records)
    info = LeaderboardInfo(protocol, f"{protocol.title()}: made up", "ab" * 32, ("Data: none.",), threats, IMAGES)
    (folder / protocol / "leaderboard.json").write_text(json.dumps(asdict(info)))
    told = {"fingerprint": info.fingerprint, "protocol": {"id": protocol, "title": "made up", "dataset": "photos"}}
    (folder / protocol / "protocol.json").write_text(json.dumps(told))


SCENES = [("pgd", image) for image in ("astronaut", "chelsea")] + [("noise", "chelsea")]
SHOWN = ("esrgan", "certsr", "hostile")


def pictures(folder: Path) -> None:
    """A figures.json with plain pictures, as `benchsr figures` writes it."""
    scenes = []
    for threat, image in SCENES:
        name = f"{image}-{threat}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        views: dict[str, Any] = {}
        for model in SHOWN:
            views[model] = {"title": zoo_with_stranger()[model].title, "change of LR": f"{HOSTILE} L∞ 10.0/255"}
            views[model] |= {kind: f"{name}/{model}-{kind}.webp" for kind in ("lr", "change", "sr", "error")}
        files = [f"{name}/{kind}.webp" for kind in ("input", "truth")]
        for k, file in enumerate(
            [*files, *(v for view in views.values() for v in view.values() if v.endswith(".webp"))]
        ):
            Image.new("RGB", (32, 32), (9 * k, 60, 60)).save(folder / file)
        scene = {"title": name, "image": image, "threat": threat, "family": "paper", "factor": 12, "error_factor": 3}
        scenes.append({**scene, "input": files[0], "truth": files[1], "views": views, "pdf": f"{name}.pdf"})
        (folder / f"{name}.pdf").write_bytes(b"%PDF")
    told = {"fingerprint": "ab" * 32, "note": "Pictures are lossy.", "scenes": scenes}
    (folder / "figures.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two made-up leaderboards; beside it, in boards/, what it was made from."""
    folder = tmp_path_factory.mktemp("site")
    synthetic(folder / "boards", "quick", tuple(FIXED))
    synthetic(folder / "boards", "adaptive", CURVE)
    pictures(folder / "boards" / "quick" / "figures")
    measured = [Costs("certsr", 64, 16_697_987, 10, 21, 73_600_000_000, 5_000_000, 1.5, "a machine")]
    write_costs(folder / "boards" / "quick", [*measured, Costs("esrgan", 64, reason=f"no weights: {HOSTILE}")])
    Image.new("RGB", (8, 8)).save(folder / "boards" / "quick" / "pareto.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchsr.site.build.zoo", zoo_with_stranger)
        build_site(folder / "boards", folder / "out")
    return folder / "out"


class Cells(HTMLParser):
    """Every table cell with a figure: (heading of its section, row, column, metric) -> (exact value, text)."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: dict[tuple[str, str, str, str], tuple[str, str]] = {}
        self.section = self.row = ""
        self.cell: dict[str, str | None] | None = None
        self.text = ""
        self.scripts = 0
        self.images: list[dict[str, str | None]] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.scripts += tag == "script"
        if tag == "img":
            self.images.append(values)
        if tag == "section" and "data-protocol" in values:
            self.section = f"{values['data-protocol']}/{values['data-family']}"
        if tag == "tr":
            self.row = values.get("data-c") or values.get("data-name") or ""
        if tag == "td" and "data-v" in values:
            self.cell, self.text = values, ""
        if tag in ("small", "abbr", "span") and self.cell is not None:
            self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "td" and self.cell is not None:
            column = self.cell.get("data-c") or self.row
            key = (self.section, self.row.rsplit(" ", 1)[-1], str(column), str(self.cell["data-m"]))
            assert key not in self.found
            self.found[key] = (str(self.cell["data-v"]), self.text)
            self.cell = None


def means(site: Path, protocol: str) -> pd.DataFrame:
    """Means over images recomputed from results.csv by pandas alone; NaN where an image is missing."""
    lines = pd.read_csv(site.parent / "boards" / protocol / "results.csv")
    lines[list(MEAN)] = lines[list(MEAN)].where(lines.status == "ok", axis=0)
    return lines.groupby(["model", "threat"])[list(MEAN)].mean()


HEADLINE = {"quick": ("fgsm", "bim", "pgd"), "adaptive": ("eps-32",)}
"""Protocol -> the attacks of one size that its first screen is about; the second has none but those of its curves."""


def worst(site: Path, protocol: str) -> pd.DataFrame:
    """Means over images of each image's worst figure over the headline's attacks, by pandas alone."""
    lines = pd.read_csv(site.parent / "boards" / protocol / "results.csv")
    hit = lines[lines.threat.isin(HEADLINE[protocol])].groupby(["model", "image"])
    whole = hit["status"].agg(lambda found: bool((found == "ok").all())).groupby("model").all()
    ends = pd.concat([hit[["psnr", "ssim"]].min(), hit[["lpips"]].max()], axis=1).groupby("model").mean()
    return ends[whole]


@pytest.mark.parametrize("protocol", ["quick", "adaptive"])
def test_the_first_screen_ranks_models_by_their_worst_figures(site: Path, protocol: str) -> None:
    cells = Cells(site / "index.html").found
    expected, clean = worst(site, protocol), means(site, protocol).xs("clean", level="threat")
    for family in ("paper", "compact"):
        rows = {
            m: float(v)
            for (s, m, c, x), (v, _) in cells.items()
            if (s, c, x) == (f"{protocol}/{family}", "headline", "psnr")
        }
        members = {c.id for c in zoo_with_stranger().values() if c.family in (family, "both")} & set(expected.index)
        assert list(rows) == sorted(members, key=lambda m: -expected["psnr"][m])
        for model in rows:
            section = f"{protocol}/{family}"
            for column, metric, frame in (
                ("headline", "psnr", expected),
                ("headline", "lpips", expected),
                ("headline-clean", "psnr", clean),
            ):
                want = float(frame[metric][model])
                value, text = cells[section, model, column, metric]
                assert float(value) == pytest.approx(want, rel=1e-8)
                assert text.split()[0] == ("∞" if np.isinf(want) else METRICS[metric].shown(want))
    best = next(
        zoo_with_stranger()[m]
        for m in expected["psnr"].sort_values(ascending=False).index
        if m in ("compact-esrgan", "compact-certsr")
    )
    assert (
        f"{best.title} keeps most of 2 networks: {expected['psnr'][best.id]:.2f} [" in (site / "index.html").read_text()
    )


@pytest.mark.parametrize("protocol", ["quick", "adaptive"])
def test_every_figure_of_the_table_is_the_mean_of_results_csv(site: Path, protocol: str) -> None:
    expected, seen = means(site, protocol), 0
    want: Any
    for (section, model, column, metric), (value, text) in Cells(site / "index.html").found.items():
        if not section.startswith(protocol) or column.startswith("headline"):
            continue
        if column.endswith("-avg"):
            threats = LAYOUTS[column.removesuffix("-avg")].threats
            want = np.mean(
                [expected.loc[(model, t), metric] if (model, t) in expected.index else np.nan for t in threats]
            )
        elif column.endswith("-worst"):
            want = np.float64(worst(site, protocol)[metric].to_dict().get(model, np.nan))
        else:
            want = np.float64(expected[metric].to_dict()[model, column])
        if np.isnan(want):
            assert value == ""
            assert "–" in text
            continue
        assert float(value) == pytest.approx(want, rel=1e-8), (section, model, column, metric)
        shown = "∞" if np.isinf(want) else METRICS[metric].shown(float(want))
        assert text.split()[0] == shown
        seen += 1
    complete = expected.dropna()
    families = {c.id: 2 if c.family == "both" else 1 for c in zoo_with_stranger().values()}
    assert seen >= sum(families[m] for m, _ in complete.index) * 3


def test_costs_stand_in_the_page_of_their_board(site: Path) -> None:
    html = (site / "index.html").read_text()
    section = html[html.index('<section id="costs"') : html.index('<section id="plots"')]
    assert section.count("<div data-protocol=") == 1
    assert '<div data-protocol="quick">' in section
    assert "<td>16.70</td><td>73.60</td><td>21</td><td>5</td><td>1.5</td>" in section
    assert "for one LR image of 64 x 64 pixels" in section
    assert "<td>–</td>" in section
    assert (site / "data" / "quick-costs.csv").is_file()
    assert (site / "plots" / "quick" / "pareto.png").is_file()
    assert 'src="plots/quick/pareto.png"' in html


def test_model_pages_repeat_the_same_figures(site: Path) -> None:
    table, found = Cells(site / "index.html").found, Cells(site / "models" / "certsr.html").found
    assert len(found) == 3 * (len(FIXED) + 3 + len(CURVE))  # two averages and the worst
    for (section, _, column, metric), (value, text) in found.items():
        assert value == table[section, "certsr", column, metric][0]
        assert text.split()[0] == table[section, "certsr", column, metric][1].split()[0]


def test_best_and_second_are_the_two_best_complete_figures(site: Path) -> None:
    cells = Cells(site / "index.html").found
    column = {
        m: (float(v), t)
        for (s, m, c, x), (v, t) in cells.items()
        if (s, c, x) == ("quick/paper", "fgsm", "lpips") and v
    }
    ranks = pd.Series({m: round(v, 3) for m, (v, _) in column.items()}).rank(method="min")
    marks = {m: {1: "(best)", 2: "(second)"}.get(int(rank), "") for m, rank in ranks.items()}
    assert len(ranks) > 4
    for model, (_, text) in column.items():
        assert [mark for mark in ("(best)", "(second)") if mark in text] == [mark for mark in [marks[model]] if mark]


def test_incomplete_and_flagged_cells_say_so(site: Path) -> None:
    cells = Cells(site / "index.html").found
    assert "n = 3" in cells["quick/paper", "ad-l-cw", "pgd", "psnr"][1]
    assert "still-rising" in cells["quick/paper", "certsr", "cw", "lpips"][1]
    text = (site / "index.html").read_text()
    assert "no figures: " in text
    assert "Models without figures: esrgan-fs-aim: no weights" in text
    assert re.search(r'data-c="ntire"[^>]* class="absent"', text)
    assert not re.search(r'data-c="pgd"[^>]* class="absent"', text)


def test_html_in_cards_and_reasons_is_escaped(site: Path) -> None:
    for name in ("index.html", "models/hostile.html", "models/esrgan-fs-aim.html"):
        page = site / name
        parsed, text = Cells(page), page.read_text()
        assert HOSTILE not in text
        assert parsed.scripts == 1 + ('id="pictures"' in text)
        assert all(image.get("onerror") is None and image.get("src") != "x" for image in parsed.images)
        assert "&lt;script&gt;alert" in text
        assert "{{ 7 * 7 }}" in text


def test_the_page_asks_nothing_of_the_network_and_links_lead_somewhere(site: Path) -> None:
    for page in [site / "index.html", *(site / "models").glob("*.html")]:
        text = page.read_text()
        for address in re.findall(r'(?:src|href)="([^"#]+)', text):
            if not address.startswith("data:"):
                assert address.startswith("https://") or (page.parent / address).is_file(), (page, address)
        assert not re.findall(r'<(?:link|script|img|source)[^>]+(?:src|href)="https?:', text)
        assert "@import" not in text


@pytest.mark.parametrize("metrics", [["psnr"], ["psnr", "dists", "lpips", "ssim", "psnr-y"]])
def test_a_curve_has_a_panel_for_each_metric_with_figures(metrics: list[str]) -> None:
    scored = [
        Record("p", "d", "m", t, "i", Status.OK, scores=dict.fromkeys(metrics, 0.5 + i)) for i, t in enumerate(CURVE)
    ]
    cells = {"m": [make_cell([record], 1) for record in scored]}
    drawn = list(panels("m", cells, [*metrics, "ms-ssim"]))
    assert [panel.title for panel in drawn] == [METRICS[metric].label for metric in metrics]
    assert len(drawn[0].own.split()) == len(CURVE)
    assert {panel.own for panel in drawn} == {drawn[0].own}


def test_a_model_with_results_at_growing_eps_gets_its_curve(site: Path) -> None:
    text = (site / "models" / "certsr.html").read_text()
    drawn = re.search(r"<text[^>]*>PSNR \(dB\)</text>.*?</svg>", text, re.DOTALL)
    assert drawn is not None
    height, levels = 170, [float(y) for y in re.findall(r'text-anchor="end">([\d.]+)</text>', drawn[0])]
    own = re.search(r'class="own" points="([^"]+)"', drawn[0])
    assert own is not None
    psnr = [max(levels) - float(point.split(",")[1]) / height * (max(levels) - min(levels)) for point in own[1].split()]
    assert psnr == pytest.approx(means(site, "adaptive").loc["certsr"].loc[list(CURVE)]["psnr"].tolist(), abs=0.02)
    assert "<polyline" not in (site / "models" / "esrgan-fs-aim.html").read_text()


def test_corruption_profiles_are_those_of_results_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = {model: zoo()[model] for model in ("bicubic", "certsr")}
    monkeypatch.setattr("benchsr.site.build.zoo", lambda: two)
    monkeypatch.setattr(f"{__name__}.zoo_with_stranger", lambda: two)
    synthetic(tmp_path / "boards", "corruptions", ("clean", *CORRUPTIONS))
    build_site(tmp_path / "boards", tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert "On average over 75 corruptions, " in text
    cells = re.findall(r'<td data-profile="(.+?)" data-kind="(.*?)" data-error="(.+?)">(.+?)</td>', text)
    assert len(cells) == len(two) * 2 * 16  # two metrics, 15 kinds and their mean
    lines = pd.read_csv(tmp_path / "boards" / "corruptions" / "results.csv")
    lines["kind"] = lines.threat.str.rpartition("-")[0]
    lines["psnr"] = 10 ** (-lines.psnr / 10)
    errors = lines[lines.kind != ""].groupby(["model", "kind"])[["psnr", "lpips"]].mean()
    ratio = errors / errors.xs("bicubic").reindex(errors.index, level="kind")
    for model, kind, metric, shown in cells:
        of_model = ratio.xs(model)[metric]
        assert shown == f"{of_model[kind] if kind else of_model.mean():.2f}", (model, kind, metric)


def test_defences_show_what_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = {model: zoo()[model] for model in ("impressionism-ntire", "mrs-impressionism-ntire")}
    monkeypatch.setattr("benchsr.site.build.zoo", lambda: pair)
    monkeypatch.setattr(f"{__name__}.zoo_with_stranger", lambda: pair)
    synthetic(tmp_path / "boards", "defences", ("clean", "pgd", "apgd-median"))
    build_site(tmp_path / "boards", tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    section = text[text.index("What defences cost") :]
    found = tmp_path / "out"
    mean = means(found, "defences")["psnr"].unstack("threat")
    change = mean.loc["mrs-impressionism-ntire"] - mean.loc["impressionism-ntire"]
    row = re.search(r'<th scope="row">mrs</th><td>1</td><td>PSNR</td>(.*?)</tr>', section)
    assert row is not None
    shown = [text.split()[0] for text in re.findall(r"<td>(.*?)</td>", row[1])]
    assert shown == [f"{change[threat]:.2f}" for threat in ("clean", "pgd", "apgd-median")]


def test_the_explorer_says_of_each_image_what_results_csv_says(site: Path) -> None:
    text = (site / "index.html").read_text()
    found = re.search(r'id="pictures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    told = json.loads(found[1])
    assert list(told["boards"]) == ["quick"]  # the other has no pictures
    board = told["boards"]["quick"]
    assert board["note"] == "Pictures are lossy."
    read = pd.read_csv(site.parent / "boards" / "quick" / "results.csv")
    lines: Any = read.set_index(["model", "threat", "image"])
    assert [(scene["threat"], scene["image"]) for scene in board["scenes"]] == SCENES
    for scene in board["scenes"]:
        for model, view in scene["views"].items():
            here, clean = (lines.loc[(model, threat, scene["image"])] for threat in (scene["threat"], "clean"))
            assert view["drop"] == pytest.approx(float(clean["psnr"]) - float(here["psnr"]), abs=0.006)
            assert view["captions"]["sr"].startswith(f"PSNR {here['psnr']:.2f} dB · SSIM {here['ssim']:.3f} · LPIPS ")
            assert set(view["files"]) == set(told["kinds"])
            assert all((site / board["folder"] / file).is_file() for file in view["files"].values())


def test_without_pictures_there_is_no_explorer_and_old_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchsr.site.build.zoo", zoo_with_stranger)
    synthetic(tmp_path / "boards", "quick", ("clean", "noise"))
    build_site(tmp_path / "boards", tmp_path / "out")
    assert 'id="explorer"' not in (tmp_path / "out" / "index.html").read_text()
    (tmp_path / "boards" / "quick" / "figures").mkdir()
    old = tmp_path / "boards" / "quick" / "figures" / "figures.json"
    old.write_text(json.dumps({"fingerprint": "ab" * 32, "comparisons": []}))
    with pytest.raises(InputError, match="benchsr figures --protocol quick"):
        build_site(tmp_path / "boards", tmp_path / "out")


def test_no_leaderboard_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="benchsr run"):
        build_site(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium with a profile of its own and no network."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        quiet = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync")
        for flag in ("headless=new", "no-sandbox", "disable-gpu", *quiet, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            found.set_script_timeout(120)  # of axe, on a busy machine
            found.execute_cdp_cmd("Network.enable", {})
            offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            found.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
            yield found
        finally:
            found.quit()


def shown(browser: Any, column: int = -1) -> list[str]:
    """The visible rows of the visible sheet: ids, or the sort keys of their `column`th visible cell."""
    script = """
        const rows = [...document.querySelectorAll(".sheet:not([hidden]) tbody tr:not([hidden])")];
        const cells = (row) => [...row.querySelectorAll("td:not([hidden])")];
        return rows.map((row) => arguments[0] < 0 ? row.dataset.name : cells(row)[arguments[0]].dataset.v);
    """
    return list(browser.execute_script(script, column))


def choose(browser: Any, name: str, value: str) -> None:
    """Set a control of the form as a user would, with its event."""
    script = """
        const field = document.getElementById("controls").elements[arguments[0]];
        if (field.type === "checkbox") field.checked = arguments[1] === "on"; else field.value = arguments[1];
        const one = field instanceof RadioNodeList ? [...field].find((radio) => radio.checked) : field;
        one.dispatchEvent(new Event("input", {bubbles: true}));
    """
    browser.execute_script(script, name, value)


@pytest.mark.slow
def test_in_a_browser_everything_works_from_a_file_without_network(site: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get((site / "index.html").as_uri())
    count = "return document.querySelectorAll('.sheet:not([hidden]) tbody tr:first-child td:not([hidden])').length"
    assert browser.execute_script(count) == 5 * 3  # Table 2 and its worst, all metrics
    rows = shown(browser)
    assert len(rows) == 6

    # Sorting, by keyboard: the best first, then the worst first; rows without a figure stay last.
    button = browser.find_elements(By.CSS_SELECTOR, ".sheet:not([hidden]) thead th:not([hidden])[data-m=lpips] button")[
        0
    ]
    for reverse, state in ((False, "ascending"), (True, "descending")):
        button.send_keys(Keys.ENTER)
        keys = shown(browser, 2)
        numbers = [float(key) for key in keys if key]
        assert keys[len(numbers) :] == [""] * (len(keys) - len(numbers))
        assert numbers == sorted(numbers, reverse=reverse)
        assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == state
    assert "sorted by LPIPS" in browser.find_element(By.ID, "status").text

    # Filters.
    browser.find_element(By.NAME, "find").send_keys("certsr")
    assert [row for row in shown(browser) if "certsr" not in row] == []
    assert len(shown(browser)) == 1
    choose(browser, "find", "")
    choose(browser, "missing", "on")
    assert len(shown(browser)) == 7
    choose(browser, "missing", "off")
    assert len(shown(browser)) == 6
    choose(browser, "metric", "lpips")
    assert browser.execute_script(count) == 5
    choose(browser, "threats", "pgd")
    assert browser.execute_script(count) == 1
    choose(browser, "family", "compact")
    assert any("compact-certsr" in row for row in shown(browser))
    choose(browser, "protocol", "adaptive")
    assert browser.execute_script(count) == len(CURVE)  # no PGD here: all threats instead

    # What was chosen is kept in the address.
    address = browser.current_url
    assert "protocol=adaptive" in address
    browser.get("about:blank")
    browser.get(address)
    assert browser.execute_script(count) == len(CURVE)
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_in_a_browser_the_slider_moves_and_pictures_change(site: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    browser.get((site / "index.html").as_uri())
    cut = "return document.querySelector('.compare').style.getPropertyValue('--cut')"
    loaded = """
        const done = arguments[0];
        Promise.all([...document.querySelectorAll('#explorer img')].map((image) => image.decode())).then(
            () => done(true), (error) => done(String(error)));
    """
    assert browser.execute_script(cut) == "50%"
    slider = browser.find_element(By.CSS_SELECTOR, ".compare input")
    for _ in range(4):
        slider.send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script(cut) == "52%"
    assert browser.execute_async_script(loaded) is True
    select = {name: Select(browser.find_element(By.NAME, name)) for name in ("threat", "first", "second", "image")}
    assert select["threat"].first_selected_option.text == "PGD"
    left, right = browser.find_elements(By.CSS_SELECTOR, ".compare img")
    assert left.get_attribute("src").endswith("esrgan-sr.webp")
    assert right.get_attribute("src").endswith("certsr-sr.webp")

    # The images stand by what the first model lost.
    lines = pd.read_csv(site.parent / "boards" / "quick" / "results.csv").set_index(["model", "threat", "image"]).psnr
    for model in ("esrgan", "certsr"):
        select["first"].select_by_value(model)
        drops = {i: float(lines[model, "clean", i] - lines[model, "pgd", i]) for t, i in SCENES if t == "pgd"}
        texts = [option.text for option in select["image"].options]
        assert [text.split()[0] for text in texts] == sorted(drops, key=lambda image: -drops[image])
        assert all(f"{abs(drops[text.split()[0]]):.2f} dB" in text for text in texts)

    # Any picture of either model can be laid under the line, by keyboard too.
    select["second"].select_by_value("hostile")
    button = browser.find_element(By.XPATH, "(//*[@class='strip'])[2]//button[span='Input under the threat']")
    button.send_keys(Keys.ENTER)
    assert right.get_attribute("src").endswith("hostile-lr.webp")
    assert HOSTILE in browser.find_element(By.CSS_SELECTOR, ".captions").text  # as text, not as HTML
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "true"
    select["threat"].select_by_value("noise")
    assert [option.get_attribute("value") for option in select["image"].options] == ["chelsea"]
    assert browser.execute_async_script(loaded) is True
    choose(browser, "protocol", "adaptive")
    assert not browser.find_element(By.ID, "explorer").is_displayed()
    assert browser.get_log("browser") == []


def at_size(browser: Any, width: int, scheme: str) -> None:
    """The window of a desktop or phone, light or dark."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


SIZES = pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in (390, 1400) for s in ("light", "dark")])


@pytest.mark.slow
@SIZES
def test_in_a_browser_the_first_screen_answers_without_scrolling(
    site: Path, browser: Any, width: int, scheme: str
) -> None:
    at_size(browser, width, scheme)
    browser.get((site / "index.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    inside = """
        const seen = (element) => { const { top, bottom, width } = element.getBoundingClientRect();
                                    return width > 0 && top >= 0 && bottom <= innerHeight; };
        return [...document.querySelectorAll(arguments[0])].filter(seen).map((element) => element.textContent);
    """
    answers = browser.execute_script(inside, ".headline .answer, .headline .power")
    assert len(answers) == 2
    assert "keeps most of 4 networks" in answers[0]
    assert "images can show no difference" in answers[1]  # of four
    rows = browser.execute_script(inside, ".ranking tbody tr")
    assert len(rows) >= (3 if width < 500 else 5)
    assert not browser.execute_script(inside, ".absent, .none")
    paper = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 384) == (scheme == "light")
    assert browser.get_log("browser") == []


@pytest.mark.slow
@SIZES
@pytest.mark.parametrize("page", ["index.html", "models/certsr.html", "models/hostile.html"])
def test_in_a_browser_nothing_keeps_anybody_out(site: Path, browser: Any, page: str, width: int, scheme: str) -> None:
    axe = Path(pytest.importorskip("axe_core_python").__file__).parent / "axe.min.js"
    at_size(browser, width, scheme)
    browser.get((site / page).as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script(axe.read_text())
    found = browser.execute_async_script("""
        const done = arguments[0];
        axe.run({preload: false}).then(({ violations }) => done(violations.map(({ id, nodes }) =>
            [id, nodes.slice(0, 3).map(({ target, failureSummary }) => [target, failureSummary])])));
    """)
    assert found == []
