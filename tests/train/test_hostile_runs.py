"""The record of a training run that somebody changed: an error that names it, or its weights are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import tiny_rrdb
from hostile import COUNTS, EXTREMES, HUGE, Survey, jsons
from safetensors.torch import save_file

from benchsr.base.files import sha256_file
from benchsr.models.zoo import load_card, zoo_dir
from benchsr.train.publish import publish
from benchsr.train.recipe import parse_recipe

MODEL = "compact-esrgan"


@pytest.mark.parametrize("count", COUNTS)
def test_malformed_records(count: int, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    run, cards = tmp_path / "run", tmp_path / "cards"
    run.mkdir()
    cards.mkdir()
    weights, card, path = run / "weights.safetensors", cards / f"{MODEL}.toml", run / f"{MODEL}.json"
    save_file(tiny_rrdb(num_filters=4).state_dict(), weights)
    text = (zoo_dir() / f"{MODEL}.toml").read_text()
    good = {
        "command": "benchsr train",
        "recipe_sha256": parse_recipe(load_card(MODEL).recipe, MODEL).sha256,
        "start": "new",
        "seed": 0,
        "data": {"folder": "photos", "images": 3, "held_out": 1, "sha256": "ab" * 32},
        "weights": {"file": weights.name, "sha256": sha256_file(weights), "bytes": weights.stat().st_size},
        "stages": [{"name": "l1", "steps": 10, "seconds": 1.5, "validation": {"psnr": 20.5}}],
    }
    survey = Survey(
        *(tmp_path, path, lambda _: load_card(publish(run, cards))),
        names=(f"{card} holds another recipe than {run}", str(run / "")),
        prepare=lambda: card.write_text(text),
    )
    survey.judge(json.dumps(good).encode())
    assert not survey.refused
    survey.run(jsons(good), count, [*EXTREMES, *HUGE]).record(record_property)
