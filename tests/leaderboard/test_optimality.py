"""How far each attack is from the worst that is known, and the column of the worst."""

from __future__ import annotations

import numpy as np
import pytest

from benchsr.base.drawing import COLOURS
from benchsr.leaderboard.flags import flags
from benchsr.leaderboard.optimality import optimality
from benchsr.leaderboard.report import Leaderboard, report
from benchsr.leaderboard.scores import make_grid, worst
from benchsr.leaderboard.tables import LAYOUTS, WORST, LeaderboardInfo, frame, make_tables, markdown
from benchsr.models.zoo import zoo
from benchsr.results.records import Record, Status
from benchsr.threats.table import THREATS, load_threat

MODEL = "compact-esrgan"


def record(threat: str, image: str, psnr: float, ssim: float = 0.5, lpips: float = 0.5) -> Record:
    scores = {"psnr": psnr, "ssim": ssim, "lpips": lpips}
    return Record("p", "d", MODEL, threat, image, Status.OK, scores=scores)


MADE = [
    record("fgsm", "a", 15.0, lpips=0.4),
    record("bim", "a", 14.0, lpips=0.3),
    record("pgd", "a", 16.0, ssim=0.1),
    record("cw", "a", 1.0),  # of no size: it may do as it likes
    record("fgsm", "b", 12.0, lpips=0.6),
    record("bim", "b", 16.0, lpips=0.7),
    record("pgd", "b", 13.0),
    record("cw", "b", 1.0),
]
TWO = dict.fromkeys(THREATS, 2)


def test_optimality_is_the_distance_from_the_worst_of_each_image() -> None:
    made = [record({"fgsm": "aa-l1", "bim": "aa-mse"}.get(r.threat, r.threat), r.image, **r.scores) for r in MADE]
    found = optimality(make_grid(made, TWO), ("aa-l1", "aa-mse"))
    np.testing.assert_allclose(list(found[MODEL, "aa-l1"].values()), [0.5, 0.0, 0.05], atol=1e-12)
    np.testing.assert_allclose(list(found[MODEL, "aa-mse"].values()), [2.0, 0.0, 0.05], atol=1e-12)
    assert optimality(make_grid(made, TWO), ("aa-l1", "square")) == {}
    assert optimality(make_grid([*made[:-2], *made[-1:]], TWO), ("aa-l1", "pgd")) == {}  # an image was not attacked


def test_the_worst_is_of_each_image_and_metric_by_itself() -> None:
    grid = make_grid(MADE, TWO)
    cell = worst([grid[MODEL, t] for t in ("fgsm", "bim", "pgd")])
    assert cell.ok
    np.testing.assert_allclose(cell.mean, [(14 + 12) / 2, (0.1 + 0.5) / 2, (0.5 + 0.7) / 2])
    np.testing.assert_allclose(cell.shares["a"] * 2, [14, 0.1, 0.5])
    low, high = cell.estimate("psnr").low, cell.estimate("psnr").high
    assert (low, high) == pytest.approx((12, 14))
    partial = make_grid(MADE[:-3], TWO)
    assert worst([partial[MODEL, t] for t in ("fgsm", "bim")]).n == 0
    assert worst([partial[MODEL, t] for t in ("fgsm", "bim")]).status == "partial"


def board(threats: tuple[str, ...] = ("fgsm", "bim", "pgd", "cw")) -> Leaderboard:
    protocol = LeaderboardInfo("p", "P: toys", "f" * 64, (), threats, ("a", "b"))
    return Leaderboard(protocol, zoo(), [r for r in MADE if r.threat in threats])


def test_the_worst_is_a_column_that_says_that_it_is_derived() -> None:
    table = board().tables["table2-compact"]
    text = markdown(table.filled)
    assert "CW LPIPS ↓ | Worst (derived) PSNR ↑" in text
    assert "13.00 [12.00, 14.00]" in text
    made = frame(table).set_index("model")
    assert made.loc[MODEL, "worst_psnr"] == pytest.approx(13.0)
    said = report(board(), [])
    assert "under attacks of one size (fgsm, bim, pgd); computed from their figures, and no attack" in said
    assert board(("fgsm", "cw")).tables["table2-compact"].layout.columns == ("fgsm", "bim", "pgd", "cw")
    assert board(("fgsm", "bim")).tables["table2-compact"].layout.worst == ("fgsm", "bim")


def test_the_worst_is_no_threat() -> None:
    found = board()
    assert WORST not in THREATS
    assert not any(WORST in key for key in found.grid)
    assert not any(threat == WORST for _, threat in flags(found.records, found.cards))
    assert WORST not in set(found.correlations.threat)
    assert all(WORST not in threats for threats in found.datasets.values())


def test_attacks_of_one_column_have_one_size() -> None:
    for layout in LAYOUTS.values():
        assert len({load_threat(threat).ball for threat in layout.worst}) <= 1
        assert {THREATS[threat].unattacked for threat in layout.worst} <= {"clean"}
        assert len(layout.threats) <= len(COLOURS)  # a plot tells them apart
    assert not make_tables({}, ["pgd"], {})
