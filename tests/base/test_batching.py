"""How networks are asked: the same chunks for everyone, full float32, one thread, and honest seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchsr.base.inference import Stopwatch, draw_slices, full_float32, one_thread, row_slices, to_8bit, to_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(("side", "at_once"), [(8, 7), (24, 7), (32, 3), (40, 2), (48, 1), (200, 1)])
def test_on_the_cpu_the_size_of_lr_alone_decides_how_many_draws_go_together(side: int, at_once: int) -> None:
    lr = torch.zeros(3, side, side)
    for most in (1, 7, 100):
        slices = list(draw_slices(21, lr, most))
        assert slices[0] == slice(0, at_once)
        assert [i for rows in slices for i in range(rows.start, rows.stop)] == list(range(21))
    assert list(draw_slices(3, lr.to("meta"), 2)) == [slice(0, 2), slice(2, 3)]


def test_on_the_cpu_images_go_one_by_one() -> None:
    assert list(row_slices(2, CPU, 8)) == [slice(0, 1), slice(1, 2)]
    assert list(row_slices(5, torch.device("meta"), 4)) == [slice(0, 4), slice(4, 5)]


@pytest.fixture
def tf32() -> Iterator[None]:
    """Lets a test change the flags."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("before", [True, False])
def test_float32_is_full_inside_and_as_before_outside(before: bool, tf32: None) -> None:
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for backend in backends:
        backend.allow_tf32 = before

    def fails() -> None:
        with full_float32():
            assert [backend.allow_tf32 for backend in backends] == [False, False]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [backend.allow_tf32 for backend in backends] == [before, before]


def test_one_thread_inside_and_as_many_as_before_outside() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_seconds_on_a_gpu_start_and_end_with_an_empty_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, gpu = iter([10.0, 12.5]), torch.device("cuda", 1)
    said: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", said.append)

    def now() -> float:
        said.append("time")
        return next(clock)

    monkeypatch.setattr(time, "perf_counter", now)
    with Stopwatch(gpu) as watch:
        said.append("work")
    assert said == [gpu, "time", "work", gpu, "time"]
    assert watch.seconds == 2.5


def test_seconds_on_the_cpu_need_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("there may be none"))
    with Stopwatch(CPU) as watch:
        pass
    assert watch.seconds >= 0


def test_eight_bit_levels_are_kept_and_others_go_to_the_nearest() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(to_8bit(levels), levels)
    assert torch.equal(to_8bit(levels + 0.4 / 255)[:-1], levels[:-1])
    between = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_bytes(between).float() / 255, to_8bit(between))
    assert to_bytes(torch.tensor([-0.5, 1.5])).tolist() == [0, 255]
