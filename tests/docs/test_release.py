"""What is released: versions agree, the wheel stays small, the workflows can be read."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_versions_agree() -> None:
    version = PYPROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = next(line for line in changes.splitlines() if line.startswith("## "))
    assert citation["version"] == version
    assert newest.split()[1] == version


def test_what_the_wheel_holds_stays_below_100_mb() -> None:
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    folders = [*wheel["packages"], *wheel["force-include"]]
    sizes = [path.stat().st_size for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert len(sizes) > 100
    assert sum(sizes) < 100e6


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_parse_and_so_do_their_scripts(workflow: Path) -> None:
    jobs: dict[str, Any] = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    for job in jobs.values():
        assert job.keys() >= {"runs-on", "steps"}
        needs = job.get("needs", [])
        assert ({needs} if isinstance(needs, str) else set(needs)) <= jobs.keys()
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            subprocess.run(["bash", "-n"], input=step.get("run", ""), text=True, check=True)
