"""Networks of a stranger's code: whatever they do, others' figures stay as they are, and their own rows say what."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from faults import FIGURES, ToyBench, ToyExecutor, make_bench
from hostile_nets import ACTS

from benchsr.evaluation import worker
from benchsr.evaluation.executors import Executor, InProcess, Processes
from benchsr.models import isolated

CPU = torch.device("cpu")


TRIAL = "BENCHSR_TRIAL"
"""An environment variable that all processes of a trial inherit."""

PARTS = 4
"""Runs that the strangers are spread over."""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyBench:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "user-cache"))
    monkeypatch.setenv(TRIAL, str(tmp_path))
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", None)  # ToyMake sets it, and pytest puts the real one back
    monkeypatch.setattr("benchsr.evaluation.worker.load_network", None)
    for module, name in ((worker, "free_bytes"), (isolated, "ANSWER_SECONDS")):
        monkeypatch.setattr(module, name, getattr(module, name))
    return make_bench(tmp_path, n_images=3)


def invited(bench: ToyBench, names: list[str], executor: Executor) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Tables of a run without the networks `names` and of one with them, which come first; and what else is wrong."""
    cards = f"bicubic,{bench.folder / 'toy-a.toml'}"
    cache = bench.folder / "user-cache" / "attacked"
    strangers = ",".join(f"{name}=hostile_nets:{name.replace('-', '_')}" for name in names)
    bench.run("without", ToyExecutor(InProcess(CPU)), cards, threats="clean,pgd", limit=2)
    settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    bench.run(
        "with",
        ToyExecutor(executor, harsh=True),
        f"{strangers},{cards}",
        threats="clean,pgd",
        limit=2,
        cache=cache,
        trust_code=True,
    )
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == settings
    until = time.monotonic() + 20
    while (left := started(bench)) and time.monotonic() < until:
        time.sleep(0.2)
    return bench.table("without"), bench.table("with"), [f"left: {command}" for command in left]


def started(bench: ToyBench) -> list[str]:
    """Processes that a run has started, and that run; but for Python's own, which serves this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if process.environ().get(TRIAL) == str(bench.folder) and "resource_tracker" not in command:
                found.append(command)
    return found


def judged(bench: ToyBench, without: pd.DataFrame, found: pd.DataFrame, names: list[str]) -> list[str]:
    """What is not as it must be."""
    others = found.loc[without.index]
    assert set(without.status) == {"ok"}
    wrong = [f"figures of others: {cell}" for cell in without.index[(without != others).any(axis=1)]]
    figures = [f for f in FIGURES if f != "key"]
    plain = found.loc[["plain"], figures].droplevel("model")
    lines = pd.read_csv(bench.folder / "with" / "toy" / "results.csv", keep_default_na=False)
    for name in names:
        rows, says = found.loc[[name], figures].droplevel("model"), ACTS[name][1]
        reasons = set(lines[lines.model == name].reason)
        print(f"{name}: {reasons}")
        if not says and not rows.equals(plain):
            wrong.append(f"{name}: not as one that behaves: {reasons}")
        if says and not any(says in reason for reason in reasons):
            wrong.append(f"{name}: does not say {says!r}, but: {reasons}")
    return wrong


def test_a_stranger_who_patches_torch_and_one_who_dies_harm_themselves_alone(bench: ToyBench) -> None:
    names = ["plain", "patches", "leaves"]
    without, found, wrong = invited(bench, names, InProcess(CPU))
    assert wrong + judged(bench, without, found, names) == []


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("part", range(PARTS))
def test_no_stranger_harms_others(
    bench: ToyBench, part: int, workers: int, record_property: Callable[[str, object], None]
) -> None:
    """Hostile networks beside two others, and a run without them to compare with."""
    names = ["plain", *list(ACTS)[1 + part :: PARTS]]
    executor: Executor = InProcess(CPU) if workers == 1 else Processes(CPU, 2)
    without, found, wrong = invited(bench, names, executor)
    wrong += judged(bench, without, found, names)
    record_property("workers", workers)
    record_property("hostile_models", len(names) - 1)
    record_property("figures_of_others_compared", without.size)
    record_property("figures_of_others_changed", sum("others" in w for w in wrong))
    record_property("processes_left", sum("left" in w for w in wrong))
    assert wrong == []
