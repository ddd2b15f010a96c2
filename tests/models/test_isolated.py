"""Networks in a process of their own: the answers and gradients of this process, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch
from conftest import tiny_rrdb
from torch import Tensor, nn

from benchsr.base.inference import Autocast, checkpoint_blocks
from benchsr.base.inner import inner_gradients
from benchsr.evaluation.memory import bytes_per_pixel
from benchsr.metrics.objective import Objective
from benchsr.models.isolated import COOKIE, Isolated
from benchsr.models.live import live, made
from benchsr.models.network import load_network
from benchsr.models.zoo import network_key


def gradient(network: nn.Module, lr: Tensor) -> tuple[Tensor, Tensor]:
    """An answer, and the gradient of its sum of squares; another answer is asked for in between."""
    x = lr.clone().requires_grad_()
    sr = network(x)
    network(x.detach() * 0.5)
    sr.square().sum().backward()
    assert x.grad is not None
    return sr.detach(), x.grad


def test_answers_and_gradients_are_those_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rrdb.py").write_text("from conftest import tiny_rrdb\ndef make(): return tiny_rrdb(num_blocks=2)\n")
    card, own = made("my_rrdb:make"), live("own", tiny_rrdb(num_blocks=2))
    assert network_key(card) == network_key(own)
    here, there = load_network(own), load_network(card)
    assert isinstance(there, Isolated)
    assert os.environ.get(COOKIE) is None
    for shape in ((1, 3, 12, 12), (2, 3, 9, 13)):
        lr = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), inner_gradients() as inner:
            assert torch.equal(here(lr), there(lr))
            assert here(lr).stride() == there(lr).stride()
        assert inner == []
        for wrap in (lambda network: network, Autocast):
            for mine, other in zip(gradient(wrap(here), lr), gradient(wrap(there), lr), strict=True):
                assert torch.equal(mine, other)
                assert mine.stride() == other.stride()
    l1 = Objective(l1_weight=1.0, perceptual_weight=0.0)
    kept = [bytes_per_pixel(network, l1, torch.device("cpu"), 16) for network in (here, there)]
    assert kept[1] == pytest.approx(kept[0], rel=0.05)
    checkpoint_blocks(there)
    assert bytes_per_pixel(there, l1, torch.device("cpu"), 16) < 0.7 * kept[1]
    assert torch.equal(gradient(here, lr)[1], gradient(there, lr)[1])
    (process,) = [p for p in psutil.Process().children() if "benchsr.models.serving" in " ".join(p.cmdline())]
    del there
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
