"""What is released: versions agree, the wheel stays small, workflows can be read, whatever is fetched has a hash."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchsr.data.cards import DATASETS, Archives, FilesByManifest
from benchsr.metrics.perceptual import TRUNKS
from benchsr.models.cards import UrlSource
from benchsr.models.zoo import zoo

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")

PINNED_AT_FIRST_FETCH = {
    "https://data.vision.ee.ethz.ch/timofter/FrequencySeparationRWSR/checkpoints/ESRGAN-FS/AIM2019_TDSR.pth",
    "https://data.vision.ee.ethz.ch/timofter/FrequencySeparationRWSR/checkpoints/ESRGAN-FS/DPED_TDSR.pth",
    "https://github.com/cszn/KAIR/releases/download/v1.0/RealSR_DPED.pth",
    "https://data.vision.ee.ethz.ch/alugmayr/real-world-sr/AIM19/valid-gt-clean.zip",
    "https://data.vision.ee.ethz.ch/alugmayr/real-world-sr/AIM19/valid-input-noisy.zip",
    "https://data.vision.ee.ethz.ch/alugmayr/real-world-sr/NTIRE20/track1-valid-gt.zip",
    "https://data.vision.ee.ethz.ch/alugmayr/real-world-sr/NTIRE20/track1-valid-input.zip",
}
"""Addresses whose bytes nobody has published a hash of: docs/security.md says what that means."""


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


def test_the_image_is_given_all_that_the_wheel_is_made_of() -> None:
    given = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    wheel, project = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"], PYPROJECT["project"]
    needed = [
        *wheel["packages"],
        *wheel["force-include"],
        project["readme"],
        *project["license-files"],
        "pyproject.toml",
    ]
    assert given[0] == "*"
    assert {f"!{path}" for path in needed} == set(given[1:])


def test_anybody_may_write_where_the_image_keeps_files() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    open_to_all = set(re.findall(r"mkdir -m 1777 (.+)", dockerfile)[0].split())
    folders = re.findall(r"^(?:VOLUME|WORKDIR) (.+)$|BENCHSR_CACHE=(\S+)", dockerfile, flags=re.MULTILINE)
    assert {first or second for first, second in folders} == open_to_all


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


def test_every_dependency_is_locked_by_hash_at_a_version_that_is_allowed() -> None:
    entries = re.split(r"^(?=\S)", CONSTRAINTS, flags=re.MULTILINE)
    locked: dict[str, set[str]] = {}
    for entry in filter(str.strip, entries):
        pin = Requirement(entry.split("\\")[0])
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry
        locked.setdefault(canonicalize_name(pin.name), set()).add(str(pin.specifier).removeprefix("=="))
    project = PYPROJECT["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    for requirement in map(Requirement, [*PYPROJECT["build-system"]["requires"], *project["dependencies"], *extras]):
        versions = locked.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement} is not in constraints.txt: run tox -e lock"
        assert all(map(requirement.specifier.contains, versions)), f"{requirement}: {versions}; run tox -e lock"
    assert "://" not in CONSTRAINTS


def test_ci_installs_by_hash_and_a_release_lists_what_it_was_made_with() -> None:
    scripts = {
        path.stem: {
            name: "\n".join(step.get("run", "") for step in job["steps"])
            for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items()
        }
        for path in WORKFLOWS
    }
    assert "--require-hashes -r constraints.txt" in scripts["ci"]["locked"]
    assert "pytest" in scripts["ci"]["locked"]
    assert "cyclonedx-py environment" in scripts["release"]["build"]
    assert "sbom/" in scripts["release"]["publish"]


def test_whatever_is_fetched_by_itself_has_a_hash_or_is_pinned_at_its_first_fetch() -> None:
    weights = [source for card in zoo().values() for source in card.weights]
    origins = [card.source for card in DATASETS.values()]
    archives = [archive for origin in origins if isinstance(origin, Archives) for archive in origin.archives]
    # The schema asks a hash of packages and of the lines of manifests.
    assert {source.kind for source in weights} == {"file", "adapter", "package", "url", "manual"}
    assert sum(len(card.manifest) for card in DATASETS.values() if isinstance(card.source, FilesByManifest)) > 200
    without = {source.url for source in weights if isinstance(source, UrlSource) and source.sha256 is None}
    without |= {archive.url for archive in archives if archive.sha256 is None}
    assert without == PINNED_AT_FIRST_FETCH
    assert all(re.search(r"-[0-9a-f]{8}\.pth$", trunk.file) for trunk in TRUNKS.values())


def test_one_module_alone_fetches_anything() -> None:
    fetching = re.compile(
        r"\b(?:import requests|from requests|urllib\.request|http\.client|urlopen|load_state_dict_from_url|hf_hub|"
        r"pooch\.(?:create|retrieve)|pip\W+download)"
    )
    fetchers = [path.name for path in (ROOT / "benchsr").rglob("*.py") if fetching.search(path.read_text("utf-8"))]
    assert fetchers == ["downloads.py"]
