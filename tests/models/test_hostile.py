"""A stranger's cards and images: whatever they hold, the answer is an error that names the file, never a crash."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tomlkit
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import CARD

from benchsr.base.errors import BenchsrError
from benchsr.cli import main
from benchsr.data.images import read_image
from benchsr.models.zoo import load_card, network_key

hostile = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The same 200 cases in every run."""

GOOD = CARD.format(id="card", scale=4, path="card.safetensors", sha256="ab" * 32, more="").encode()

# TOML has integers of any length; 2**70 is one that no field can hold.
values = st.recursive(
    st.none().map(lambda _: "") | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(
    ["id", "title", "scale", "family", "weights", "base", "smoothing", "architecture", "licence", "caveats", "recipe"]
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of a good file, with a piece cut out and something else in its place."""
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 200)))
    return whole[:start] + draw(st.binary(max_size=40)) + whole[end:]


@st.composite
def wrong_tables(draw: st.DrawFn) -> bytes:
    """A good card in which some fields hold anything at all."""
    table = tomlkit.parse(GOOD.decode()).unwrap()
    table |= draw(st.dictionaries(fields | st.text(min_size=1, max_size=10), values, min_size=1, max_size=4))
    return tomlkit.dumps(table).encode()


def complaint(call: Callable[[], object]) -> str | None:
    """What a user is told, if anything; any other exception is the test's failure."""
    try:
        call()
    except BenchsrError as error:
        return str(error)
    return None


@hostile
@given(content=damaged(GOOD) | wrong_tables() | st.binary(max_size=300))
@example(content=b"")
@example(content=b"a=" + b"[" * 30_000)
@example(content=b"#" * (1 << 20))
@example(content=GOOD.replace(b'path = "card.safetensors"', b'path = "../../etc/passwd"'))
@example(content=GOOD.replace(b'path = "card.safetensors"', b'path = "card\\u0000.safetensors"'))
@example(content=GOOD.replace(b'path = "card.safetensors"', b'path = "' + b"x" * 999 + b'"'))
def test_no_card_gets_beyond_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_bytes(content)
    said = complaint(lambda: load_card(path))
    if said is None:  # a good card after all; but none of them has its weights
        assert complaint(lambda: network_key(load_card(path)))
    else:
        assert str(path) in said
        assert len(said) < 10_000


def picture(kind: str) -> bytes:
    """A good image file."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


pictures = st.sampled_from([picture(kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")])


@hostile
@given(content=pictures.flatmap(damaged) | st.binary(max_size=300))
@example(content=b"")
@example(content=picture("PNG")[:60])
def test_no_image_gets_beyond_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    said = complaint(lambda: read_image(path))
    if said is None:  # the damage did not matter to the decoder: an image like any other
        image = read_image(path)
        assert image.shape[0] == 3
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
    else:
        assert str(path) in said


@pytest.mark.parametrize("content", [b"", b"id = 3", b"\xff\xfe", GOOD[:100], b"a = " + b"[" * 5000], ids=range(5))
def test_the_command_line_shows_no_traceback(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    path = tmp_path / "card.toml"
    path.write_bytes(content)
    monkeypatch.setattr("sys.argv", ["benchsr", "show", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = "".join(capsys.readouterr().err.split())
    assert str(path) in said
    assert "Traceback" not in said
