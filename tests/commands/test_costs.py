"""Costs against counts by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import tiny_rrdb
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN
from torch import Tensor, nn

from benchsr.base.errors import InputError
from benchsr.commands import costs as module
from benchsr.commands.costs import Costs, PeakMemory, cost_table, costs
from benchsr.models.cards import Card
from benchsr.models.zoo import defended, load_card


def rrdb_convolutions(nf: int, nb: int, gc: int) -> list[tuple[int, int, int]]:
    """(in, out, output size over LR size) of the 3 x 3 convolutions of an RRDB generator of scale 4."""
    dense = [(nf + k * gc, gc if k < 4 else nf, 1) for k in range(5)]
    return [(3, nf, 1), *dense * 3 * nb, (nf, nf, 1), (nf, nf, 2), (nf, nf, 4), (nf, nf, 4), (nf, 3, 4)]


def by_hand(nf: int, nb: int, gc: int, side: int) -> tuple[int, int]:
    """Parameters and MACs."""
    convolutions = rrdb_convolutions(nf, nb, gc)
    parameters = sum(9 * i * o + o for i, o, _ in convolutions)
    return parameters, sum(9 * i * o * (side * up) ** 2 for i, o, up in convolutions)


def tiny_card(folder: Path, **smoothing: object) -> Card:
    path = folder / "tiny.safetensors"
    save_file({name: value.contiguous() for name, value in tiny_rrdb().state_dict().items()}, path)
    source = {"kind": "file", "path": path.name, "format": "safetensors"}
    fields = {"id": "tiny", "title": "Tiny", "family": "compact", "weights": [source | {"sha256": sha256(path)}]}
    texts = dict.fromkeys(("licence", "paper", "training_data", "fine_tuning_data"), "none")
    card = Card.model_validate(fields | texts | ({"smoothing": smoothing} if smoothing else {}))
    card._folder = folder
    return card


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_parameters_of_the_papers_generator() -> None:
    with torch.device("meta"):
        network = ESRGAN(num_filters=64, num_blocks=23, scale=4)
    # 16.70 M is what ESRGAN's authors and every table of costs since give.
    assert sum(p.numel() for p in network.parameters()) == by_hand(64, 23, 32, 1)[0] == 16_697_987


def test_costs_of_a_network_by_hand(tmp_path: Path) -> None:
    found = costs(tiny_card(tmp_path), side=12)
    assert (found.parameters, found.macs_pass) == by_hand(8, 1, 32, 12)
    assert (found.passes, found.macs, found.lr_side) == (1, found.macs_pass, 12)
    assert found.seconds
    assert "torch" in found.machine


def test_macs_of_one_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Conv2d(3, 5, kernel_size=(3, 5), stride=2, groups=1).requires_grad_(False)
    monkeypatch.setattr(module, "load_network", lambda card, device: net)
    found = costs(load_card("bicubic"), side=21)
    height, width = (21 - 3) // 2 + 1, (21 - 5) // 2 + 1
    assert found.macs == height * width * 5 * 3 * 3 * 5
    assert found.parameters == 5 * 3 * 3 * 5 + 5


@pytest.mark.parametrize("sigma", [0.05, {"pgd": 0.05, "clean": 0.0}])
def test_an_answer_of_a_smoothed_model_takes_its_draws(tmp_path: Path, sigma: object) -> None:
    plain, smoothed = costs(tiny_card(tmp_path), side=8), costs(tiny_card(tmp_path, n=5, sigma=sigma), side=8)
    assert smoothed.passes == 5
    assert smoothed.macs == 5 * by_hand(8, 1, 32, 8)[1]
    assert smoothed.macs_pass == plain.macs_pass
    assert smoothed.peak_bytes is not None
    assert plain.peak_bytes is not None
    assert smoothed.peak_bytes >= plain.peak_bytes + 4 * 3 * 32 * 32 * 4  # the other draws' outputs, float32


def test_a_model_that_never_smooths_takes_one_pass(tmp_path: Path) -> None:
    assert costs(tiny_card(tmp_path, n=5, sigma=0.0), side=8).passes == 1


@pytest.mark.parametrize(("defence", "passes"), [("jpeg", 1), ("self-ensemble", 8), ("mean-smoothing", 21)])
def test_what_a_defence_asks_of_the_network_counts(tmp_path: Path, defence: str, passes: int) -> None:
    card = tiny_card(tmp_path)
    found, plain = costs(defended(card, defence), side=8), costs(card, side=8)
    assert (found.passes, found.macs_pass) == (passes, plain.macs_pass)
    assert found.macs == passes * by_hand(8, 1, 32, 8)[1]


def test_bicubic_has_no_weights() -> None:
    found = costs(load_card("bicubic"), side=8)
    assert (found.parameters, found.macs, found.passes) == (0, 0, 1)


def test_peak_memory_by_hand() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = torch.cat([x, x])  # 2 alive beside x
            b = torch.cat([a, a])  # 2 + 4
            del a
            view = b.view(-1)  # no memory of its own
            c = torch.cat([view[:1000], view[:1000]])  # 4 + 2
            del b, view
            return torch.cat([c, c, c])[:1]  # 2 + 6 is the peak

    x, memory = torch.zeros(1000), PeakMemory()
    with torch.no_grad(), memory:
        memory.hold([x])
        Net()(x)
    assert memory.peak == (1 + 2 + 6) * 4000
    assert memory.alive == 4000


def test_peak_memory_does_not_depend_on_the_run(tmp_path: Path) -> None:
    first, second = (costs(tiny_card(tmp_path), side=10).peak_bytes for _ in range(2))
    assert first == second


def test_what_cannot_be_had_is_a_row_with_a_reason(tmp_path: Path) -> None:
    missing = tiny_card(tmp_path)
    (tmp_path / "tiny.safetensors").unlink()
    row, whole = cost_table([missing, load_card("bicubic")], side=8)
    assert row == Costs("tiny", 8, reason=row.reason)
    assert "tiny.safetensors" in row.reason
    assert whole.parameters == 0


def test_a_side_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 pixel"):
        costs(load_card("bicubic"), side=0)
