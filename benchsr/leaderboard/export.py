"""Tables for papers, pages and notebooks, and a snippet for a model's page."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from benchsr.base.errors import InputError
from benchsr.base.registry import Registry
from benchsr.base.text import escape, markdown_table
from benchsr.leaderboard.flags import FLAGS
from benchsr.leaderboard.plots import ATTACKS
from benchsr.leaderboard.report import Leaderboard
from benchsr.leaderboard.scores import CONFIDENCE, NOT_RUN
from benchsr.leaderboard.sensitivity import DROP, LARGEST, SMALLEST, Smallest
from benchsr.leaderboard.tables import FAMILIES, CardInfo, Table, expected_images, frame, show
from benchsr.leaderboard.transfer import Matrix, transfer_frame
from benchsr.metrics.quality import METRICS
from benchsr.results.lines import read_table
from benchsr.results.transfers import TRANSFER
from benchsr.threats.table import THREATS

COSTS = "costs"
"""Name of the table that `benchsr costs` writes."""

SMALLEST_EPS = "smallest-eps"
"""Name of the table of the smallest changes that cost so much."""

Found = TypeVar("Found")

PARETO = "pareto"
"""Name of the plots beside it."""


@dataclass(frozen=True)
class Exhibit:
    """A table to be shown and its data: `columns` are (group, name), `best` the (row, column) to set off."""

    caption: str
    columns: Sequence[tuple[str, str]]
    labels: Sequence[str]
    cells: Sequence[Sequence[str]]
    data: pd.DataFrame
    best: frozenset[tuple[int, int]] = field(default_factory=frozenset)


def exhibit(board: Leaderboard, folder: Path, name: str) -> Exhibit:
    """A table of the board in `folder` by its name, its transferred attacks, its smallest changes, or its costs.

    Raises UnknownIdError for a table that the board does not have, InputError for costs that were not measured.
    """
    if name in (crossed := by_family(TRANSFER, board.transfers)):
        return _transfer(board, crossed[name])
    if name in (sought := by_family(SMALLEST_EPS, board.smallest)):
        return _smallest(board, sought[name])
    if name != COSTS:
        whole = Registry("table of this board", board.tables)[name]
        return table_exhibit(board, whole, board.shown[name])
    return _costs(read_costs(folder))


def by_family(stem: str, found: Mapping[str, Found]) -> dict[str, Found]:
    """What was found of each family, by the name of its table."""
    return {f"{stem}{FAMILIES[family][0]}": table for family, table in found.items() if table}


def read_costs(folder: Path) -> pd.DataFrame:
    """costs.csv of the board in `folder`. Raises InputError where it is missing, or no table of costs."""
    path, fix = folder / f"{COSTS}.csv", "make it with: benchsr costs"
    text, counts = ("model", "machine", "reason"), ["parameters", "macs_pass", "passes", "macs", "peak_bytes"]
    types = {"lr_side": "int64", **dict.fromkeys(text, "object"), **dict.fromkeys((*counts, "seconds"), "float64")}
    data = read_table(path, types, fix)
    if (data[counts].notna() & (data[counts] % 1 != 0)).any(axis=None):
        raise InputError(f"{path}: {', '.join(counts)} are whole numbers; {fix}")
    return data


def table_exhibit(board: Leaderboard, whole: Table, table: Table) -> Exhibit:
    """An exhibit that shows `table`, and has the data of the `whole` one, with a caption that says what they are."""
    columns = [(column, metric) for column in table.layout.columns for metric in table.metrics]
    cells, best = [], set()
    for i, row in enumerate(table.rows):
        line = []
        for j, (column, metric) in enumerate(columns):
            cell = row.cells[column]
            value = cell.value(metric)
            line.append("–" if np.isnan(value) else METRICS[metric].shown(value) + "*" * (not cell.ok))
            if row.mark(column, metric) == "best":
                best.add((i, j))
        cells.append(line)
    metrics = [METRICS[m] for m in table.metrics]
    up, down = (", ".join(m.title for m in metrics if m.higher_is_better is way) or "none" for way in (True, False))
    caption = (
        f"{table.title}. {board.protocol.title}, fingerprint {board.protocol.fingerprint[:12]}. Means over "
        f"{len(board.protocol.images)} images unless the threat has its own. Higher is better: {up}; lower: {down}. "
        f"Bold: the best and, where so many images can separate any, what no paired test separates "
        "from it; *: images missing, not ranked; –: not evaluated."
    )
    shown = {row.card.id for row in table.rows}
    if unshown := [row.card.id for row in whole.rows if row.card.id not in shown]:
        caption += f" Without figures: {', '.join(unshown)}."
    caption += f" {table.derivation}" if table.derivation else ""
    heads = [(table.layout.heading(column), METRICS[metric].title) for column, metric in columns]
    return Exhibit(caption, heads, [row.card.title for row in table.rows], cells, frame(whole), frozenset(best))


def _transfer(board: Leaderboard, found: Sequence[Matrix]) -> Exhibit:
    metrics = board.protocol.metrics
    cards = list({card.id: card for matrix in found for card in matrix.cards}.values())
    heads = [(card.title, METRICS[metric].title) for card in cards for metric in metrics]
    labels = [f"{matrix.attack} made on {source.title}" for matrix in found for source in matrix.cards]
    cells = [
        [show(matrix.cell(source.id, victim.id).estimate(metric), metric) for victim in cards for metric in metrics]
        for matrix in found
        for source in matrix.cards
    ]
    caption = (
        f"Transferred attacks: rows, the model that the attack was made on; columns, the model that is scored. "
        f"{board.protocol.title}, fingerprint {board.protocol.fingerprint[:12]}. "
        + " ".join(words for matrix in found for words in matrix.sentences(metrics))
    )
    return Exhibit(caption, heads, labels, cells, transfer_frame(found, metrics))


def _smallest(board: Leaderboard, found: Sequence[Smallest]) -> Exhibit:
    heads = [("", head) for head in ("L-infinity, in 255ths", "l2", "Images")]
    cells = [[*s.cells, str(s.images)] for s in found]
    data = board.measured[
        board.measured["figure"].isin(list(SMALLEST)) & board.measured["model"].isin([s.card.id for s in found])
    ]
    caption = (
        f"The smallest change of LR that was found to cost {DROP:g} dB of PSNR, its norm: median over images "
        f"[smallest, largest]. {board.protocol.title}, fingerprint {board.protocol.fingerprint[:12]}. Each bounds the "
        f"true smallest from above; not reached: {LARGEST * 255:g}/255, or as much at every element in l2, costs "
        "less. Models as they are deployed, which the attacks know."
    )
    return Exhibit(caption, heads, [s.card.title for s in found], cells, data.dropna(axis=1, how="all"))


COST_COLUMNS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("Parameters (M)", lambda v: f"{v / 1e6:.2f}"),
    "macs": ("MACs (G)", lambda v: f"{v / 1e9:.2f}"),
    "passes": ("Passes", lambda v: f"{v:.0f}"),
    "peak_bytes": ("Peak memory (MB)", lambda v: f"{v / 1e6:.0f}"),
    "seconds": ("Seconds", lambda v: f"{v:.3g}"),
}
"""Columns of costs.csv that are shown: their titles, and how."""


def cost_cells(data: pd.DataFrame) -> list[list[str]]:
    """The figures of costs.csv as they are shown, a line for each of its rows; a dash where there is none."""
    return [
        ["–" if np.isnan(value := float(line[name])) else shown(value) for name, (_, shown) in COST_COLUMNS.items()]
        for _, line in data.iterrows()
    ]


def cost_caption(data: pd.DataFrame) -> str:
    """What the figures of costs.csv are of."""
    sides = " and ".join(f"{side} x {side}" for side in sorted(set(data["lr_side"])))
    machines = "; ".join(dict.fromkeys(data["machine"].dropna()))
    return (
        f"Costs of an answer for one LR image of {sides} pixels. MACs: convolutions and matrix products of all passes. "
        f"Peak memory: tensors alive at once. Seconds: {machines}."
    )


def _costs(data: pd.DataFrame) -> Exhibit:
    heads = [("", title) for title, _ in COST_COLUMNS.values()]
    return Exhibit(cost_caption(data), heads, list(data["model"]), cost_cells(data), data)


def _csv(shown: Exhibit) -> bytes:
    return shown.data.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def _parquet(shown: Exhibit) -> bytes:
    buffer = io.BytesIO()
    try:
        shown.data.to_parquet(buffer, index=False)
    except ImportError:
        raise InputError("parquet needs pyarrow: pip install 'benchsr[parquet]'; or take --format csv") from None
    return buffer.getvalue()


def _markdown(shown: Exhibit) -> bytes:
    header = ["Model", *(escape(" ".join(filter(None, column))) for column in shown.columns)]
    rows = [
        [escape(label), *(_bold(escape(text), (i, j) in shown.best) for j, text in enumerate(cells))]
        for i, (label, cells) in enumerate(zip(shown.labels, shown.cells, strict=True))
    ]
    return f"{markdown_table(header, rows)}\n\n{escape(shown.caption)}\n".encode()


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


def _styled(shown: Exhibit, safe: Callable[[str], str]) -> pd.io.formats.style.Styler:
    """The exhibit for pandas to set, every text made `safe`."""
    heads = [(safe(group), safe(name)) for group, name in shown.columns]
    grouped = any(group for group, _ in heads)
    columns = pd.MultiIndex.from_tuples(heads) if grouped else pd.Index([name for _, name in heads])
    cells = [[safe(text) for text in line] for line in shown.cells]
    data = pd.DataFrame(cells, columns=columns)
    marks = pd.DataFrame("", index=data.index, columns=columns)
    for i, j in shown.best:
        marks.iloc[i, j] = "font-weight: bold"
    styler = data.style.apply(lambda _: marks, axis=None)
    return styler.relabel_index([safe(label) for label in shown.labels], axis="index")


def _latex(shown: Exhibit) -> bytes:
    columns = "l" + "r" * len(shown.columns)
    styler = _styled(shown, lambda text: text.translate(_LATEX))
    table = styler.to_latex(
        hrules=True,
        convert_css=True,
        column_format=columns,
        multicol_align="c",
        caption=shown.caption.translate(_LATEX),
    )
    return f"% needs \\usepackage{{booktabs}}\n{table}".encode()


def _html(shown: Exhibit) -> bytes:
    caption = html.escape(shown.caption)
    return (_styled(shown, html.escape).set_uuid("benchsr").set_caption(caption).to_html() + "\n").encode()


FORMATS: Registry[Callable[[Exhibit], bytes]] = Registry(
    "format", {"latex": _latex, "csv": _csv, "parquet": _parquet, "markdown": _markdown, "html": _html}
)
"""How an exhibit is written, by the format's name."""


def model_page(board: Leaderboard, card: CardInfo) -> str:
    """A section in Markdown for the page of a model: its figures on this board, and what they mean and do not mean.

    Raises InputError where the board has no figures of it.
    """
    threats = [t for t in board.protocol.threats if board.grid.get((card.id, t), NOT_RUN).n]
    if not threats:
        raise InputError(f"{card.id} has no figures on this board; make them with: benchsr run --models {card.id}")
    metrics = board.protocol.metrics
    heads = [METRICS[m].heading for m in metrics]
    rows = []
    for threat in threats:
        cell = board.grid[card.id, threat]
        flag = " ⚑" if (card.id, threat) in board.flags else ""
        figures = [show(cell.estimate(metric), metric) + flag for metric in metrics]
        rows.append([escape(THREATS[threat].title), *figures, str(cell.n)])
    paragraphs = [
        f"## Robustness of {escape(card.title)}",
        f"Measured with benchsr, protocol {escape(board.protocol.title)} (`{board.protocol.id}`, fingerprint "
        f"`{board.protocol.fingerprint[:12]}`). Again: `benchsr run --models {card.id} --protocol {board.protocol.id}`",
        markdown_table(["Threat", *heads, "images"], rows),
        "\n".join(f"- {line}" for line in _meaning(board, card, threats)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _meaning(board: Leaderboard, card: CardInfo, threats: Sequence[str]) -> list[str]:
    """How to read a model's figures, every label that they need included."""
    expected = expected_images(board.protocol)
    lines = [
        f"Each figure is a mean over images with its {CONFIDENCE:.0%} bootstrap interval; it holds for these images "
        "and settings alone, and bounds no other attack.",
        *board.protocol.description,
    ]
    if card.family == "compact":
        lines.append(
            "A compact network, trained by benchsr: not the paper's model, and not comparable with its figures."
        )
    elif card.retrains:
        lines.append(f"Reproduced here for the paper's row {card.retrains}, not its weights: {card.origin}")
    elif not card.paper_row:
        lines.append("Not a row of the paper.")
    if card.smoothing:
        lines.append(
            f"Answers are medians over noisy copies of the input. The attacks {', '.join(ATTACKS)} see the network "
            "without that: attackers who know it may be stronger (protocol adaptive)."
        )
    few = [t for t in threats if board.grid[card.id, t].n < expected.get(t, 0)]
    if few:
        lines.append(f"Images are missing under: {', '.join(few)}.")
    if any((card.id, t) in board.flags for t in threats):
        raised = dict.fromkeys(flag for t in threats for flag in board.flags.get((card.id, t), ()))
        lines.append(f"⚑: the figure may flatter the model: {'; '.join(FLAGS[flag] for flag in raised)}.")
    absent: dict[str, list[str]] = {}
    for threat in board.protocol.threats:
        if threat not in threats:
            absent.setdefault(board.grid.get((card.id, threat), NOT_RUN).reason, []).append(threat)
    lines += [f"Not evaluated: {', '.join(names)} ({reason})." for reason, names in absent.items()]
    lines += [f"Training data: {card.training_data}", f"Fine-tuning data: {card.fine_tuning_data}", *card.caveats]
    return [escape(line) for line in lines]
