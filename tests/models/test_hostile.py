"""A stranger's cards and weights: whatever they hold, the answer is an error that names the file, never a crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import tomlkit
import torch
from conftest import tiny_rrdb
from hostile import COUNTS, EXTREMES, HUGE, Survey, binaries, tables, texts
from safetensors.torch import save, save_file
from toys import toy_card

from benchsr.base.errors import BenchsrError
from benchsr.models.adapters import merge_adapter
from benchsr.models.network import load_network
from benchsr.models.zoo import find_weights, load_card

Record = Callable[[str, object], None]


def use_card(path: Path) -> None:
    """Read a card; then load the network, whose errors are about its weights."""
    card = load_card(path)
    with suppress(BenchsrError):
        load_network(card)


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_cards(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "cache"))
    path = Path(toy_card(tmp_path, "card", more="[smoothing]\nn = 5\nsigma = { clean = 0.1, pgd = 0.2 }\n"))
    good = path.read_bytes()
    extremes = [
        *EXTREMES,
        *HUGE[:1],
        good.replace(b'path = "card.safetensors"', b'path = "../../etc/passwd"'),
        good.replace(b'path = "card.safetensors"', b'path = "card\\u0000.safetensors"'),
        good.replace(b'path = "card.safetensors"', b'path = "' + b"x" * 999 + b'"'),
        good + b"[recipe]\na = " + b"[" * 500 + b"]" * 500,
    ]
    survey = Survey(tmp_path, path, use_card, f"show {path}")
    contents = tables(tomlkit.parse(good.decode()).unwrap(), tomlkit.dumps) | texts(good)
    survey.run(contents, count, extremes).record(record_property)
    assert survey.refused


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "."])
def test_cards_that_are_no_files(target: str, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    if target == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    assert Survey(tmp_path, path, use_card, f"show {path}").judge(None)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_malformed_weights(
    suffix: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "cache"))
    path = tmp_path / f"weights{suffix}"
    state = tiny_rrdb(num_filters=4).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)

    def use(path: Path) -> None:
        find_weights.cache_clear()  # which keeps what a path held, for as long as a run lasts
        load_network(load_card(path))(torch.rand(1, 3, 8, 8))

    survey = Survey(tmp_path, path, use, f"show {path}", names=("weights: ", "made (1, 3"))
    survey.run(binaries(path.read_bytes()), count, EXTREMES[:3]).record(record_property)
    assert survey.refused


def adapter(values: float = 0.1, rank: str = "2", alpha: str = "1", inner: tuple[int, ...] = (2, 4, 3, 3)) -> bytes:
    """An adapter of the last convolution of a tiny RRDB."""
    weights = {"model.10.lora_A.weight": torch.full(inner, values), "model.10.lora_B.weight": torch.ones(3, 2, 1, 1)}
    return save(weights, metadata={"rank": rank, "alpha": alpha})


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_adapters(count: int, tmp_path: Path, record_property: Record) -> None:
    path, network = tmp_path / "adapter.safetensors", tiny_rrdb(num_filters=4)
    convolutions = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert "model.10" in convolutions
    extremes = [
        *EXTREMES[:3],
        *(adapter(value) for value in (torch.nan, torch.inf, -torch.inf)),
        *(adapter(rank=rank) for rank in ("0", "-1", "1e9", "nan", "9" * 5000, "", "\x00")),
        *(adapter(alpha=alpha) for alpha in ("nan", "inf", "x", "9" * 5000)),
        adapter(inner=(2, 4, 1, 1)),
        save({"x": torch.ones(1)}),
    ]

    def use(path: Path) -> None:
        merge_adapter(network, path, "base")(torch.rand(1, 3, 8, 8))

    Survey(tmp_path, path, use).run(binaries(adapter()), count, extremes).record(record_property)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch escaped",)

    path = tmp_path / "weights.pth"
    torch.save({"a": Payload()}, path)
    said = Survey(tmp_path, path, lambda path: load_network(load_card(path)), f"show {path}").judge(None)
    assert said
    assert "nothing was run" in said
