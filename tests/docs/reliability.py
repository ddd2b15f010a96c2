"""Writes docs/reliability.md from the log of its trials: `tox -e reliability` runs them, then this file.

A trial is a test with the marker `reliability`. Its line says the first line of its docstring, or what it records as
"trial"; whatever else it hands on by `record_property` is a count of its line.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from benchsr.base.text import escape, markdown_table

ROOT = Path(__file__).parents[2]
LOG = ROOT / "docs" / "reliability.xml"
PAGE = LOG.with_suffix(".md")

SUMMED = ("kills", "inputs", "lost", "doubled", "foreign_files_touched", "tracebacks")
"""Counts that the page adds up over all trials; the last four are to be 0."""

NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


@dataclass
class Trial:
    """One test: what it tried, what it counted, how it ended."""

    module: str
    about: str
    what: str
    seconds: float
    outcome: str
    counts: dict[str, str]


@dataclass
class Section:
    """The trials of one test module."""

    module: str
    about: str
    trials: list[Trial] = field(default_factory=list)

    @property
    def table(self) -> str:
        """A line for each trial; numbers that most of them have are columns, the rest follows in words."""
        had = Counter(name for trial in self.trials for name, count in trial.counts.items() if NUMBER.fullmatch(count))
        columns = [name for name, times in had.items() if 2 * times > len(self.trials)]
        rows = []
        for trial in self.trials:
            rest = [escape(f"{shown(name)}: {count}") for name, count in trial.counts.items() if name not in columns]
            words = "; ".join(filter(None, [trial.outcome, *rest]))
            rows.append(
                [escape(trial.what), words, *(trial.counts.get(name, "") for name in columns), f"{trial.seconds:.0f}"]
            )
        head = ["trial", "", *(escape(shown(name)) for name in columns), "s"]
        return markdown_table(head, rows, 2)


def shown(name: str) -> str:
    return name.replace("_", " ")


def properties(element: ET.Element) -> dict[str, str]:
    """What a test, or all of them, recorded; the last word counts."""
    return {p.attrib["name"]: p.attrib["value"] for p in element.iterfind("properties/property")}


def read_trial(case: ET.Element) -> Trial:
    counts = properties(case)
    package, _, module = case.attrib["classname"].rpartition(".")
    what = counts.pop("trial", "") or case.attrib["name"].partition("[")[0].removeprefix("test_").replace("_", " ")
    about = counts.pop("about", "")
    outcome = ""
    failures = [*case.iterfind("failure"), *case.iterfind("error")]
    if failures:
        message, _, _ = failures[0].attrib.get("message", "").partition("\n")
        outcome = f"**failed**: {escape(message[:100])}"
    elif (skipped := case.find("skipped")) is not None:
        outcome = f"not run: {escape(skipped.attrib.get('message', ''))}"
    name = "/".join([*package.split("."), f"{module}.py"])
    return Trial(name, about, what, float(case.attrib["time"]), outcome, counts)


def sections(trials: Sequence[Trial]) -> list[Section]:
    found: dict[str, Section] = {}
    for trial in trials:
        section = found.setdefault(trial.module, Section(trial.module, trial.about))
        section.trials.append(trial)
    return list(found.values())


def page(log: Path) -> str:
    """The page of one run of the trials. Every figure of it comes from `log`."""
    (suite,) = ET.parse(log).getroot().iter("testsuite")
    trials = [read_trial(case) for case in suite.iterfind("testcase")]
    sums = {
        shown(name): sum(int(t.counts[name]) for t in trials if name in t.counts)
        for name in SUMMED
        if any(name in t.counts for t in trials)
    }
    template = Path(__file__).with_name("reliability.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False)
    return (
        environment.from_string(template)
        .render(
            log=log.name,
            date=suite.attrib["timestamp"][:10],
            made_on=properties(suite),
            minutes=f"{float(suite.attrib['time']) / 60:.0f}",
            n=len(trials),
            failed=sum(t.outcome.startswith("**failed**") for t in trials),
            skipped=sum(t.outcome.startswith("not run") for t in trials),
            sums=sums,
            sections=sections(trials),
        )
        .rstrip()
        + "\n"
    )


def without_host(log: Path) -> None:
    """Take the machine's name and folders out of a log: they are nobody's business."""
    tree = ET.parse(log)
    for suite in tree.getroot().iter("testsuite"):
        suite.attrib.pop("hostname", None)
    for kind in ("failure", "error"):
        for found in tree.getroot().iter(kind):
            found.text = None  # a traceback; what went wrong is in its message
    tree.write(log, encoding="utf-8", xml_declaration=True)


if __name__ == "__main__":
    without_host(LOG)
    PAGE.write_text(page(LOG), encoding="utf-8")
