from __future__ import annotations

from pathlib import Path

import pytest

from benchsr.base.errors import CardError, UnknownIdError
from benchsr.base.files import digest
from benchsr.base.pairs import SCALES
from benchsr.evaluation.protocol import CODE_VERSION, load_protocol, protocols
from benchsr.threats.table import THREATS

MINIMAL = 'id = "mine"\ntitle = "Mine"\ndataset = "photos"\ncrop = 16\n'


@pytest.mark.parametrize("name", list(protocols()))
def test_packaged_protocols_are_named_after_their_files_and_cover_the_papers_columns(name: str) -> None:
    protocol = protocols()[name]
    assert protocol.id == name
    assert protocol.threats[0] == "clean"
    if name in ("quick", "paper", "paper-at", "adaptive"):  # those that are set beside the paper
        assert {"noise", "blur", "fgsm", "bim", "pgd", "cw"} <= set(protocol.threats)
        assert {"ntire", "aim"} <= set(protocol.threats) or name == "adaptive"
        assert any("PGD" in line for line in protocol.description)


def test_the_fingerprint_covers_whatever_can_change_a_figure() -> None:
    quick = load_protocol("quick")
    variants = [
        quick,
        quick.override(seed=1),
        quick.override(dataset="div2k-valid"),
        quick.override(precision="bf16"),
        quick.override(perceptual_net="vgg19"),
        quick.model_copy(update={"crop": 16}),
        quick.model_copy(update={"settings": {"pgd": {"steps": 11}}}),
        quick.model_copy(update={"metrics": quick.metrics.model_copy(update={"border": 0})}),
    ]
    assert len({v.model_copy().fingerprint for v in variants}) == len(variants)
    assert quick.model_copy(update={"title": "Other words"}).fingerprint == quick.fingerprint


def test_a_board_is_of_one_scale() -> None:
    quick, twice = load_protocol("quick"), load_protocol("quick").override(scale=2)
    assert (quick.scale, quick.board, twice.board) == (4, "quick", "quick-x2")
    assert load_protocol("quick-x2") == twice
    assert twice.heading == "Quick x2: embedded photographs, small crops"
    assert len({quick.override(scale=scale).fingerprint for scale in SCALES}) == len(SCALES)
    with pytest.raises(CardError, match="option: scale: Input should be 2, 3, 4 or 8"):
        quick.override(scale=5)


def test_fingerprints_of_x4_are_as_they_were_before_scale_was_a_choice() -> None:
    """They stand in the published boards."""
    quick = load_protocol("quick")
    told = {"code": CODE_VERSION, **{k: v for k, v in quick.figures().items() if k != "scale"}}
    assert quick.fingerprint == digest(told)


def test_settings_and_objective_reach_the_threats(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MINIMAL + "[objective]\nperceptual_weight = 0.5\n[settings.pgd]\nsteps = 3\nl1_weight = 2.0\n")
    settings = load_protocol(file).threat("pgd").settings
    assert (settings["steps"], settings["perceptual_weight"], settings["l1_weight"]) == (3, 0.5, 2.0)
    assert load_protocol(file).threat("fgsm").settings["l1_weight"] == 1.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("crop = 2", "crop"),
        ('threats = ["clean", "pdg"]', "pgd"),
        ("[settings.pgd]\nepsilon = 0.1", "eps"),
        ("[metrics]\nboarder = 4", "metrics.boarder"),
        ("crop = = 2", "TOML"),
    ],
)
def test_bad_protocol_files_name_file_and_field(text: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MINIMAL.replace("crop = 16\n", "") + text)
    with pytest.raises(CardError, match=named) as error:
        load_protocol(file)
    assert "mine.toml" in str(error.value)


def test_missing_files_and_unknown_ids() -> None:
    with pytest.raises(CardError, match=r"absent\.toml"):
        load_protocol("absent.toml")
    with pytest.raises(UnknownIdError, match="did you mean 'quick'"):
        load_protocol("quik")


def test_digest_is_canonical() -> None:
    assert digest({"a": 1, "b": [2.0]}) == digest({"b": [2.0], "a": 1}) != digest({"a": 1, "b": [2.5]})
    assert len(digest(list(THREATS))) == 64
