"""What counts as a figure that moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toys import changed

from benchsr.base.errors import InputError
from benchsr.results.drift import TOLERANCE, check, drift, issue, news
from benchsr.results.records import Record, Status, write_results

INFINITE = float("inf")
MEANS = {"psnr": 20.0, "ssim": 0.5, "lpips": 0.25}
OLD = [
    Record("quick", "photos", "bicubic", threat, image, Status.OK, scores=MEANS, key=digit * 64)
    for threat, digit in (("clean", "a"), ("pgd", "b"))
    for image in ("cat", "coffee")
]


def test_equal_results_have_not_moved() -> None:
    assert drift(OLD, OLD) == ([], 2)


@pytest.mark.parametrize("metric", list(TOLERANCE))
def test_a_mean_beyond_its_tolerance_is_named(metric: str) -> None:
    step = 2.2 * TOLERANCE[metric]  # of one image of two: 1.1 times the tolerance in the mean
    new = [changed(OLD[0], **{metric: MEANS[metric] + step}), *OLD[1:]]
    [found], compared = drift(new, OLD)
    assert (found.model, found.threat, found.metric, compared) == ("bicubic", "clean", metric, 2)
    assert f"bicubic / clean / {metric}" in str(found)
    close = [changed(OLD[0], **{metric: MEANS[metric] + step / 1.2}), *OLD[1:]]
    assert drift(close, OLD)[0] == []


def test_another_key_is_another_figure() -> None:
    other = [changed(r, psnr=5.0, key="c" * 64) for r in OLD]
    assert drift(other, OLD) == ([], 0)
    assert news(other, OLD) == len(OLD)
    assert news([changed(r, psnr=5.0, environment="other") for r in OLD], OLD) == 0
    gone = changed(OLD[0], model="esrgan", status=Status.UNAVAILABLE, reason="other words", key="d" * 64)
    assert news([*OLD, gone], OLD) == 0


def test_a_figure_that_got_lost_has_moved() -> None:
    gone = changed(OLD[2], image="", status=Status.UNAVAILABLE, reason="no package", psnr=None, key="d" * 64)
    [found], _ = drift([*OLD[:2], gone], OLD)
    assert (found.threat, found.now) == ("pgd", None)
    assert "no package" in str(found)
    [vanished], _ = drift(OLD[:2], OLD)
    assert (vanished.threat, vanished.now) == ("pgd", None)
    assert "was not evaluated" in str(vanished)


def test_one_metric_that_got_lost_has_moved() -> None:
    [found], _ = drift([changed(OLD[0], ssim=None, reason="ssim: too small"), *OLD[1:]], OLD)
    assert (found.threat, found.metric, found.before, found.now) == ("clean", "ssim", 0.5, None)
    assert "too small" in str(found)


def test_the_text_of_an_issue_names_every_cell_that_moved() -> None:
    gone = changed(OLD[2], status=Status.UNAVAILABLE, reason="no <b>package</b> | here", psnr=None, key="d" * 64)
    moved, compared = drift([changed(OLD[0], psnr=10.0), OLD[1], gone, OLD[3]], OLD)
    text = issue(moved, compared, "quick")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `bicubic` | `pgd` | `psnr` | 20.0000 | missing: unavailable: no &lt;b&gt;package&lt;/b&gt; \\| here |",
        "| `bicubic` | `clean` | `psnr` | 20.0000 | 15.0000 |",
    ]
    assert "2 figures of 2 cells moved" in text


def test_infinite_stays_infinite_and_finite_may_not_become_it() -> None:
    perfect = [changed(r, psnr=INFINITE) for r in OLD]
    assert drift(perfect, perfect)[0] == []
    assert {m.metric for m in drift(perfect, OLD)[0]} == {"psnr"}


def test_damaged_fresh_results_are_refused(tmp_path: Path) -> None:
    write_results(tmp_path / "a.csv", OLD)
    (tmp_path / "b.csv").write_text((tmp_path / "a.csv").read_text()[:-30])
    assert check(tmp_path / "a.csv", tmp_path / "a.csv") == ([], 2, 0)
    with pytest.raises(InputError, match="line"):
        check(tmp_path / "b.csv", tmp_path / "a.csv")
    write_results(tmp_path / "c.csv", [replace(r, key="c" * 64) for r in OLD])
    with pytest.raises(InputError, match="nothing can be checked"):
        check(tmp_path / "c.csv", tmp_path / "a.csv")
