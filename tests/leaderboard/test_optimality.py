"""How far each attack is from the worst that is known."""

from __future__ import annotations

import numpy as np

from benchsr.leaderboard.optimality import optimality
from benchsr.results.records import Record, Status


def record(threat: str, image: str, psnr: float, ssim: float = 0.5, lpips: float = 0.5) -> Record:
    return Record("p", "d", "m", threat, image, Status.OK, scores={"psnr": psnr, "ssim": ssim, "lpips": lpips})


def test_optimality_is_the_distance_from_the_worst_of_each_image() -> None:
    made = [
        record("aa-l1", "a", 15.0, lpips=0.4),
        record("aa-mse", "a", 14.0, lpips=0.3),
        record("aa-l1", "b", 12.0, lpips=0.6),
        record("aa-mse", "b", 16.0, lpips=0.7),
        record("aa-l1", "c", 1.0),  # not attacked by the other: left out
    ]
    found = optimality(made, ("aa-l1", "aa-mse"))
    np.testing.assert_allclose(list(found["m", "aa-l1"].values()), [0.5, 0.0, 0.05], atol=1e-12)
    np.testing.assert_allclose(list(found["m", "aa-mse"].values()), [2.0, 0.0, 0.05], atol=1e-12)
    assert optimality(made, ("aa-l1", "square")) == {}
