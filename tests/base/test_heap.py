"""Freed memory goes back to the system when a process has grown, and never changes a figure."""

from __future__ import annotations

import ctypes
import itertools
import platform

import pytest
import torch
from conftest import tiny_rrdb

from benchsr.base import heap
from benchsr.base.heap import HEAP, LOOK, SLACK, Heap, malloc_trim
from benchsr.base.inference import freeze


def test_freed_memory_goes_back_where_the_process_has_grown() -> None:
    """Sizes of the process at each look, with those that it has after a trim: the growth counts from the least."""
    sizes = [10, 5, 5 + SLACK, 6 + SLACK, 7, 6 + SLACK, 8 + SLACK, 9]
    trims = itertools.count()
    tested = Heap(lambda pad: next(trims), lambda: sizes.pop(0))
    half = torch.empty(LOOK // 2, dtype=torch.int8)
    for left in [7, 6, 5, 3, 2, 0]:
        tested.keep(half)
        tested.keep(half)
        assert len(sizes) == left
    assert next(trims) == 2
    tested.keep(torch.empty(9 * LOOK, dtype=torch.int8, device="meta"))  # another device's memory is not malloc's


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert malloc_trim() is None
    Heap(malloc_trim(), lambda: pytest.fail("nothing to look for")).keep(torch.empty(2 * LOOK, dtype=torch.int8))


def test_a_gradient_is_the_same_and_its_activations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient() -> torch.Tensor:
        x = torch.linspace(0, 1, 3 * 24 * 24).reshape(1, 3, 24, 24).requires_grad_()
        (found,) = torch.autograd.grad(network(x).square().sum(), x)
        return found

    network = freeze(tiny_rrdb(num_blocks=2))
    expected = gradient()
    monkeypatch.setattr(heap, "LOOK", 1)
    monkeypatch.setattr(heap, "SLACK", -1 << 60)
    count = [0]
    real = malloc_trim() or (lambda pad: 0)

    def counted(pad: int) -> int:
        count[0] += 1
        return real(pad)

    monkeypatch.setattr(HEAP, "_trim", counted)
    assert torch.equal(gradient(), expected)
    assert count[0] > 10
    if platform.libc_ver()[0] == "glibc":
        assert malloc_trim() is not None
