"""docs/reliability.md says what its log says, whatever a trial counts."""

from __future__ import annotations

from pathlib import Path

from reliability import LOG, PAGE, page, without_host

MADE_UP = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" hostname="of-mine" time="125.0" timestamp="2026-11-28T17:30:00+00:00">
<properties><property name="python" value="3.11.7" /><property name="torch" value="2.11" />
<property name="instructions" value="AVX2" /><property name="cores" value="2" /></properties>
<testcase classname="tests.a.test_one" name="test_kills[1]" time="60.4"><properties>
<property name="about" value="What one is about." /><property name="trial" value="Of the docstring." />
<property name="trial" value="Killed | resumed" /><property name="kills" value="20" />
<property name="lost" value="0" /></properties></testcase>
<testcase classname="tests.a.test_one" name="test_more" time="1"><properties>
<property name="about" value="What one is about." /><property name="kills" value="3" />
<property name="lost" value="1" />
<property name="odd_count" value="7" /></properties>
<failure message="lost&#10;more">/of-mine/x.py: lost</failure></testcase>
<testcase classname="tests.test_two" name="test_ray" time="0"><skipped message="no Ray" /></testcase>
<testcase classname="tests.test_two" name="test_set_up" time="0"><error message="none">/of-mine/y.py</error></testcase>
</testsuite></testsuites>
"""


def test_the_page_is_of_the_committed_log() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(LOG), "write it anew: python tests/docs/reliability.py"
    assert "hostname" not in LOG.read_text(encoding="utf-8")


def test_every_count_finds_its_place(tmp_path: Path) -> None:
    log = tmp_path / "log.xml"
    log.write_text(MADE_UP)
    without_host(log)
    assert "of-mine" not in log.read_text()
    said = page(log)
    assert "Python 3.11.7, torch 2.11, AVX2 instructions, 2 cores: 4 trials in 2 min, 2 failed, 1 not run" in said
    assert "kills 23, lost 1." in said
    assert "| trial |  | kills | lost | s |" in said
    assert r"| Killed \| resumed |  | 20 | 0 | 60 |" in said
    assert "| more | **failed**: lost; odd count: 7 | 3 | 1 | 1 |" in said
    assert "| ray | not run: no Ray | 0 |" in said
