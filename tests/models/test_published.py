"""Figures that were published for the networks of the zoo, computed again where data and weights are here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchsr.base.errors import UnavailableError
from benchsr.base.pairs import Scale
from benchsr.data.datasets import Dataset, load_dataset
from benchsr.data.fetching import fetch
from benchsr.metrics.quality import METRICS
from benchsr.models.cards import Card, Published
from benchsr.models.network import load_network
from benchsr.models.zoo import availability, zoo

CLAIMS = [(card, claim) for card in zoo().values() for claim in card.reproduces]


def data_at_hand(name: str, scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A data set from the user's cache, or taken over from BENCHSR_TEST_DATA, a folder that holds its files."""
    try:
        return load_dataset(name, scale=scale)
    except UnavailableError as error:
        origin = os.environ.get("BENCHSR_TEST_DATA")
        if origin is None:
            pytest.skip(f"{error}; or set BENCHSR_TEST_DATA to a folder that holds them")
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path))
    fetch(name, origin)
    return load_dataset(name, scale=scale)


def score(claim: Published, sr: Tensor, hr: Tensor, grey: bool) -> float:
    metric = METRICS[claim.metric]
    if claim.quantise_sr:
        sr = (sr * 255).round() / 255
    options = {"border": claim.border} if metric.inside else {}
    # Three equal channels score as their one does: so the grey levels are compared as they are.
    colour = "rgb" if grey and claim.grey == "luma" else claim.colour
    return float(metric.function(sr, hr, colour=colour, **options))


@pytest.mark.parametrize(
    ("card", "claim"), CLAIMS, ids=lambda x: x.id if isinstance(x, Card) else f"{x.dataset}-x{x.scale}"
)
def test_a_published_figure_is_reproduced(
    card: Card, claim: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, words = availability(card)
    if not here:
        pytest.skip(f"the weights of {card.id}: {words}")
    network = load_network(card.at(claim.scale))
    dataset = data_at_hand(claim.dataset, claim.scale, tmp_path, monkeypatch)
    scores = []
    with torch.no_grad():
        for source in dataset.sources.values():
            sample = dataset.sample(source.id)
            with Image.open(source.hr) as image:  # other images look grey, but have three channels
                grey = image.mode == "L"
            scores.append(score(claim, network(sample.lr[None]).clamp(0, 1), sample.hr[None], grey))
    assert sum(scores) / len(scores) == pytest.approx(claim.value, abs=claim.tolerance)


def test_bicubic_names_the_figures_that_everybody_knows() -> None:
    known = {(claim.dataset, claim.scale): claim.value for claim in zoo()["bicubic"].reproduces}
    assert {scale: known["set5", scale] for scale in (2, 3, 4)} == {2: 33.66, 3: 30.39, 4: 28.42}
    assert {scale: known["set14", scale] for scale in (2, 3, 4)} == {2: 30.24, 3: 27.55, 4: 26.00}
    assert all(claim.border == claim.scale for claim in zoo()["bicubic"].reproduces)
