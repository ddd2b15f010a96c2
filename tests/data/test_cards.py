"""Cards of data sets: those that come with benchsr, own ones, and every way to get one wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_data import put, put_pair, random_image

from benchsr.base.errors import BenchsrError, CardError, InputError, UnavailableError, UnknownIdError
from benchsr.base.shrinking import bicubic_downscale
from benchsr.data.cards import DATASETS, SETS, Archives, DataCard, FilesByManifest, load_data_card
from benchsr.data.datasets import load_dataset


@pytest.mark.parametrize("card", DATASETS.values(), ids=lambda card: card.id)
def test_a_card_of_benchsr_holds_together(card: DataCard) -> None:
    assert load_data_card(SETS / f"{card.id}.toml") == card
    assert card.packaged
    if isinstance(card.source, FilesByManifest):
        names = [listed.name for listed in card.manifest]
        hr = {name.removesuffix("_HR.png") for name in names if name.endswith("_HR.png")}
        assert len(hr) == card.count
        assert sorted(names) == sorted([*(f"{name}_HR.png" for name in hr), *(f"{name}_LR.png" for name in hr)])
        assert len({listed.sha256 for listed in card.manifest}) == len(names)
    elif isinstance(card.source, Archives):
        assert [archive.part for archive in card.source.archives] == ["HR", "LR"]


def test_no_image_stands_in_two_data_sets() -> None:
    hashes = [listed.sha256 for card in DATASETS.values() for listed in card.manifest]
    assert len(hashes) == len(set(hashes)) == 2 * (5 + 14 + 100 + 100)


CARD = """
id = "mine"
title = "My images"
licence = "mine"
paper = "none"
count = 2
scales = [4]

[lr]
kind = "given"

[source]
kind = "folder"
path = "images"
"""


def own(folder: Path, *changes: tuple[str, str], name: str = "mine") -> Path:
    text = CARD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.toml").write_text(text)
    return folder / f"{name}.toml"


MADE = ('kind = "given"', 'kind = "made"\nboundary = "symmetric"')


def test_own_images_by_a_card(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        put_pair(tmp_path / "images" / "HR" / f"{name}.png", tmp_path / "images" / "LR" / f"{name}.png", seed=seed)
    dataset = load_dataset(own(tmp_path))
    assert (dataset.id, dataset.ids) == ("mine", ["a", "b"])
    assert torch.equal(dataset[1].lr, random_image(40, 48, 1)[:, ::4, ::4])
    made = load_dataset(own(tmp_path, MADE), crop=9)
    assert torch.equal(made[1].lr, bicubic_downscale(made[1].hr, boundary="symmetric"))
    assert made.sample_key("a") != dataset.sample_key("a")


def test_own_images_that_are_not_what_the_card_says(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"mine\.toml: source\.path: there is no folder"):
        load_dataset(own(tmp_path))
    put(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=r"holds 1 of the 2 images of mine; see count in its card"):
        load_dataset(own(tmp_path))
    put(tmp_path / "images" / "b.png")
    with pytest.raises(InputError, match=r"a\.png has no LR.*\(lr\.kind\)"):
        load_dataset(own(tmp_path))
    assert len(load_dataset(own(tmp_path, MADE))) == 2
    with pytest.raises(UnavailableError, match="for x2, x8, not for x4"):
        load_dataset(own(tmp_path, MADE, ("[4]", "[2, 8]")))


def test_a_card_gives_lr_at_one_scale_and_makes_it_at_others(tmp_path: Path) -> None:
    for name in "ab":
        put_pair(tmp_path / "images" / "HR" / f"{name}.png", tmp_path / "images" / "LR" / f"{name}.png")
    more = 'kind = "given"\nscale = 4\notherwise = { boundary = "symmetric" }'
    card = own(tmp_path, ("[4]", "[2, 4]"), ('kind = "given"', more))
    given, made = load_dataset(card), load_dataset(card, scale=2)
    assert torch.equal(given[0].lr, given[0].hr[:, ::4, ::4])
    assert made[0].scale == 2
    assert torch.equal(made[0].lr, bicubic_downscale(made[0].hr, 2, boundary="symmetric"))
    assert given.sample_key("a") != made.sample_key("a")
    with pytest.raises(UnavailableError, match="'mine' is for x2, x4, not for x3"):
        load_dataset(card, scale=3)
    assert load_dataset(own(tmp_path, ("[4]", "[4]")))[0].scale == 4


@pytest.mark.parametrize("name", ["ntire-track1-valid", "aim-valid", "div2k-valid"])
def test_pairs_of_x4_are_unavailable_at_other_scales(name: str) -> None:
    with pytest.raises(UnavailableError, match=f"data set '{name}' is for x4, not for x2"):
        load_dataset(name, scale=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "My images"', "", r"title: Field required"),
        ("count = 2", "count = 0", r"count: Input should be greater"),
        ("count = 2", 'count = 2\nlicense = "x"', r"license: no such field; did you mean 'licence'\?"),
        ("[4]", "[5]", r"scales\.0"),
        ("[4]", "[2, 4]", r"file: lr\.scale must be one of scales, \[2, 4\]"),
        ('kind = "given"', 'kind = "given"\nscale = 2', r"file: lr\.scale must be one of scales, \[4\]"),
        ('kind = "given"', 'kind = "drawn"', r"lr: .*'drawn'.*'given', 'made'"),
        ('kind = "given"', 'kind = "made"\nboundary = "zero"', r"lr\.made\.boundary"),
        ('kind = "folder"', 'kind = "torrent"', r"source: .*'torrent'"),
        ('path = "images"', 'pfad = "images"', r"source\.folder\.path: Field required"),
        ('id = "mine"', 'id = "yours"', r"id: 'yours' must be the file's name"),
        ("count = 2", "count = = 2", r"not a TOML file"),
        (
            'kind = "folder"\npath = "images"',
            'kind = "archives"\narchives = [{ part = "LR", url = "https://a.b/c.zip" }]',
            r"source\.archives: one archive of HR images",
        ),
        (
            'kind = "folder"\npath = "images"',
            'kind = "manifest"\nmanifest = "../mine.csv"\nurl = "https://a.b/{path}"',
            r"source\.manifest\.manifest",
        ),
        (
            'kind = "folder"\npath = "images"',
            'kind = "manifest"\nmanifest = "mine.csv"\nurl = "file:///a/{path}"',
            r"source\.manifest\.url",
        ),
    ],
)
def test_a_wrong_card_names_file_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(CardError, match=rf"^{tmp_path}/mine\.toml: {message}"):
        load_dataset(own(tmp_path, (old, new)))


def test_an_own_card_never_passes_for_a_data_set_of_benchsr(tmp_path: Path) -> None:
    card = own(tmp_path, ('id = "mine"', 'id = "set5"'), name="set5")
    with pytest.raises(CardError, match=r"set5\.toml: id: 'set5' is a data set of benchsr"):
        load_dataset(card)
    with pytest.raises(CardError, match=r"absent\.toml: cannot be read"):
        load_dataset(tmp_path / "absent.toml")


ROW = f"x4/a_HR.png,10,{'0' * 64}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a manifest"),
        ("", "path: a manifest lists files"),
        (f"path,bytes,sha256\n{ROW}\n{ROW}\n", "path: .*each of another name"),
        (f"path,bytes,sha256\n{ROW}\nx4/b.png,ten,{'0' * 64}\n", "line 3: bytes: "),
        ("path,bytes,sha256\nx4/b.png,10,abc\n", "line 2: sha256: "),
        (f"path,bytes,sha256\n../b.png,10,{'0' * 64}\n", "line 2: path: "),
        (f"path,bytes,sha256\n/b.png,10,{'0' * 64}\n", "line 2: path: "),
        (f"path,bytes,sha256\nb.png,{10**12},{'0' * 64}\n", "line 2: bytes: "),
        (f"path,bytes,md5\nb.png,10,{'0' * 64}\n", "line 2: "),
        (f"path,bytes,sha256\n{ROW},1,2\n", "line 2: "),
        ("path,bytes,sha256\n" + "".join(f"{i}.png,10,{'0' * 64}\n" for i in range(2001)), "a manifest lists 2000"),
        (b"\xff\xfe\x00", "cannot be read as a manifest"),
    ],
)
def test_a_wrong_manifest_names_file_line_and_field(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "mine.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    source = (
        'kind = "folder"\npath = "images"',
        'kind = "manifest"\nmanifest = "mine.csv"\nurl = "https://a.b/{path}"',
    )
    with pytest.raises(CardError, match=rf"^{tmp_path}/mine\.csv: {message}"):
        load_dataset(own(tmp_path, source))


# --- joined sets ---------------------------------------------------------------------------------------------------


def test_joined_sets_are_one_with_images_told_apart(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        put(tmp_path / "images" / f"{name}.png", seed=seed)
        put(tmp_path / "others" / f"{name}.png", seed=10 + seed)
    first = own(tmp_path, MADE)
    others = (('id = "mine"', 'id = "other"'), ('"images"', '"others"'), ('"given"', '"made"'))
    second = own(tmp_path, *others, name="other")
    joined = load_dataset(f"{first}+{second}", crop=8)
    assert joined.id == "mine+other"
    assert joined.ids == ["mine-a", "mine-b", "other-a", "other-b"]
    for sample_id, card in (("mine-b", first), ("other-b", second)):
        alone, together = load_dataset(card, crop=8).sample("b"), joined.sample(sample_id)
        assert torch.equal(alone.hr, together.hr)
        assert torch.equal(alone.lr, together.lr)  # each set's own way of making LR
    assert load_dataset(f"photos+{first}").ids[:2] == ["photos-astronaut", "photos-chelsea"]
    assert joined.first(3).ids == joined.ids[:3]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("photos+", InputError, "between the \\+ stand names"),
        ("photos+photos", InputError, "each another one"),
        ("photos+fotos", UnknownIdError, "unknown data set 'fotos'"),
        ("photos+absent.toml", CardError, "absent"),
    ],
)
def test_names_that_cannot_be_joined(names: str, error: type[BenchsrError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_dataset(names)
