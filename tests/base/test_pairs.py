"""What makes LR and HR a pair."""

from __future__ import annotations

import pytest
import torch

from benchsr.base.errors import InputError
from benchsr.base.pairs import SCALES, Sample, Scale, check_pair, scale_of


@pytest.mark.parametrize("scale", SCALES)
def test_a_pair_tells_its_scale(scale: Scale) -> None:
    lr, hr = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5 * scale, 7 * scale)
    check_pair(lr, hr)
    assert scale_of(lr, hr) == Sample("a", lr[0], hr[0]).scale == scale


@pytest.mark.parametrize("sides", [(5, 7), (25, 35), (10, 21), (11, 14), (2, 3), (30, 42), (0, 0)])
def test_sizes_that_are_of_no_scale(sides: tuple[int, int]) -> None:
    with pytest.raises(
        InputError, match=rf"hr must be 2, 3, 4 or 8 times lr: got LR of 5 x 7.*{sides[0]} x {sides[1]}"
    ):
        scale_of(torch.zeros(1, 3, 5, 7), torch.zeros(1, 3, *sides))


def test_as_many_images_of_both() -> None:
    with pytest.raises(InputError, match="hr must be as many images as lr: got 3 and 2"):
        check_pair(torch.rand(2, 3, 8, 8), torch.rand(3, 3, 16, 16))
