"""How every figure looks and is saved: one palette, one resolution, and equal bytes for equal figures."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import BaseModel

from benchsr.base.files import cache_dir, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
"""Okabe and Ito's palette (2008), grey for yellow: colour-blind readers tell them apart; markers say it again."""

MARKERS = "osD^vPX*"
GREY = "#666666"
GRID = "#dddddd"
DPI = 110

_METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None, "Creator": None},
}


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many inches that belongs to no global state and makes room for what is put on it."""
    from matplotlib.figure import Figure  # half a second, which commands that draw nothing anew need not wait

    return Figure(figsize=(width, height), layout="constrained")


def drawn(figure: Figure, kind: str = "png") -> bytes:
    """The figure as "png", "pdf" or "svg" (with real text, on no background), without a date or version in it.

    A PNG has 256 colours, a third of the bytes, unless the figure shows photographs.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchsr"}):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=_METADATA[kind], transparent=kind == "svg")
    return buffer.getvalue() if kind != "png" or _has_photographs(figure) else _in_few_colours(buffer)


def _has_photographs(figure: Figure) -> bool:
    shown = [image.get_array() for axes in figure.axes for image in axes.images]
    return any(pixels is not None and pixels.ndim == 3 for pixels in shown)


def _in_few_colours(png: io.BytesIO) -> bytes:
    buffer = io.BytesIO()
    with Image.open(png) as image:
        palette = Image.Quantize.MEDIANCUT
        image.convert("RGB").quantize(256, palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


KEPT = 200_000_000
"""Bytes of drawn figures that the cache keeps."""


LIBRARIES = ("jinja2", "matplotlib", "numpy", "pandas", "scipy")
"""What figures, tables and reports are made with."""


@cache
def _made_with() -> str:
    """A hash of all of the package's code, templates and tables, and of versions: whatever changes in it may change
    a figure.
    """
    hasher = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in LIBRARIES).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.*")):
        if path.suffix in (".py", ".j2", ".toml"):
            hasher.update(path.read_bytes())
    return hasher.hexdigest()


def _draw(plot: Callable[..., Figure | None], inputs: tuple[object, ...], kind: str, made_of: str) -> bytes:
    figure = plot(*inputs)
    return drawn(figure, kind) if figure else b""


class _Pickler(pickle.Pickler):
    """Equal bytes for equal values, in every process."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.fast = True  # no references: they tell equal objects from one and the same

    def reducer_override(self, value: Any) -> Any:
        """What is pickled in place of a table or dataclass, whose sets are in an order that hangs on the process."""
        if isinstance(value, BaseModel):
            return str, (f"{type(value).__qualname__} {value.model_dump_json()}",)
        if is_dataclass(value) and not isinstance(value, type):
            held = [getattr(value, field.name) for field in fields(value)]
            return tuple, ([type(value).__qualname__, *(sorted(v) if isinstance(v, Set) else v for v in held)],)
        return NotImplemented


def _hash(inputs: tuple[object, ...]) -> str:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(inputs)
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _remembered(function: Callable[..., bytes], aside: str) -> tuple[Any, Any]:
    """joblib's cache, and `function` as it remembers it, whatever is in the argument `aside`. Raises OSError."""
    from joblib import Memory

    folder = cache_dir() / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    memory = Memory(folder, verbose=0)
    return memory, memory.cache(function, ignore=[aside])


def _key(values: tuple[object, ...]) -> str:
    return f"{_hash(values)} {_made_with()}"


def drawn_once(plot: Callable[..., Figure | None], *inputs: object, kind: str = "png") -> bytes:
    """`drawn(plot(*inputs), kind)`, from the cache where the same code has drawn the same inputs before.

    Empty where `plot` returns None. `plot` must be a function of a module. Without a cache folder it just draws.
    """
    try:
        memory, remembered = _remembered(_draw, "inputs")  # whose hash joblib takes seconds for
        arguments = (plot, inputs, kind, _key(inputs))
        known = remembered.check_call_in_cache(*arguments)
        content: bytes = remembered(*arguments)
        if not known:
            memory.reduce_size(bytes_limit=KEPT)
    except OSError:
        return _draw(plot, inputs, kind, "")
    return content


def _same(content: bytes, made_of: str) -> bytes:
    return content


def recall(*made_of: object) -> bytes | None:
    """What `remember` was given, by the same code, for equal values; None where it was not, or is forgotten."""
    with suppress(OSError):
        _, remembered = _remembered(_same, "content")
        arguments = (b"", _key(made_of))
        if remembered.check_call_in_cache(*arguments):
            return remembered(*arguments) or None
    return None


def remember(content: bytes, *made_of: object) -> None:
    """Keep what was made of some values in the cache of figures, if there is one."""
    with suppress(OSError):
        memory, remembered = _remembered(_same, "content")
        remembered(content, _key(made_of))
        memory.reduce_size(bytes_limit=KEPT)


def save(figure: Figure, path: Path) -> None:
    """Write the figure to `path`, whose suffix says the format, atomically. Raises InputError where it cannot."""
    write_atomic(path, drawn(figure, path.suffix.removeprefix(".")))
