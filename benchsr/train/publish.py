"""Put trained weights into the zoo: `python -m benchsr.train.publish runs/MODEL ... --cards model_zoo`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import tomlkit
import torch
import typer
from pydantic import BaseModel
from torch.optim.swa_utils import AveragedModel

from benchsr.base.errors import BenchsrError, InputError, IntegrityError
from benchsr.base.files import sha256_file, write_atomic
from benchsr.base.schema import FileName, Sha256, read_card, read_json
from benchsr.models.adapters import adapter_about, merge_adapter
from benchsr.models.cards import Card
from benchsr.models.network import load_network
from benchsr.train.adapters import add_adapters
from benchsr.train.recipe import parse_recipe

PROBE_SIDE = 24
"""LR side, in pixels, of the image that a merged adapter and the trained network must agree on."""

HALF_PRECISION = 2 / 255
"""How far answers may lie apart where float16 rounds an adapter; half a grey level was seen for rank 4 of RRDB-23."""


class _Weights(BaseModel):
    file: FileName
    sha256: Sha256


class _Record(BaseModel):
    """What the record of a run must say."""

    weights: _Weights
    recipe_sha256: Sha256
    start: str


def publish(run: Path, cards: Path) -> Path:
    """Copy the weights of the finished `run` to `cards`/weights and write their facts into the model's card.

    The card's `weights` get the new sha256 and its `[training]` table what the run recorded, so that no figure is typed
    by hand. Returns the card. Raises InputError where the run is not finished or the card is missing, IntegrityError
    where the weights are not those that the run recorded, the card's recipe is not the one that was run, or an adapter
    merged into its base does not give the trained network's answers.
    """
    records = sorted(run.glob("*.json"))
    if len(records) != 1:
        raise InputError(
            f"{run} holds no finished run (one MODEL.json is written at the end); train or --resume it first"
        )
    model = records[0].stem
    read_json(records[0], _Record, "--resume the run to write it again")
    table = json.loads(records[0].read_text())
    weights, card = run / table["weights"]["file"], cards / f"{model}.toml"
    if not card.exists():
        raise InputError(f"no card {card} to publish {run} under")
    if sha256_file(weights) != table["weights"]["sha256"]:
        raise IntegrityError(f"{weights} is not what {records[0]} describes; --resume the run to write it again")
    if not read_card(Card, card).weights:
        raise InputError(f"{card}: weights: it has none that could be replaced")
    document = tomlkit.parse(card.read_text(encoding="utf-8"))
    recipe = parse_recipe(document.get("recipe", tomlkit.table()).unwrap(), model)
    if recipe.sha256 != table["recipe_sha256"]:
        raise IntegrityError(f"{card} holds another recipe than {run} was trained by; restore it or train again")
    adapted = adapter_about(weights) is not None
    if adapted:
        require_same_answers(run, weights, table["start"])
    table["weights"]["file"] = f"weights/{model}.safetensors"
    write_atomic(cards / table["weights"]["file"], weights.read_bytes())
    kind = {"kind": "adapter", "base": table["start"]} if adapted else {"kind": "file", "format": "safetensors"}
    if document["weights"][0]["kind"] != kind["kind"]:  # a card whose weights were still to be trained
        document["weights"][0].clear()
    document["weights"][0].update({**kind, "path": table["weights"]["file"], "sha256": table["weights"]["sha256"]})
    try:
        document["training"] = tomlkit.item(table)
    except (ValueError, RecursionError) as error:  # such as null, which TOML has not
        raise InputError(
            f"{records[0]}: cannot stand in a card ({error}); --resume the run to write it again"
        ) from None
    write_atomic(card, tomlkit.dumps(document))
    return card


def require_same_answers(run: Path, adapter: Path, start: str) -> None:
    """Raise IntegrityError unless `adapter`, merged into the network of card `start`, answers as what `run` trained."""
    rank = int((adapter_about(adapter) or {})["rank"])
    trained = AveragedModel(add_adapters(load_network(start), rank))
    trained.load_state_dict(torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)["run"]["ema"])
    merged = merge_adapter(load_network(start), adapter, start)
    lr = torch.rand((1, 3, PROBE_SIDE, PROBE_SIDE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        apart = float((trained.eval()(lr) - merged(lr)).abs().max())
    if apart > HALF_PRECISION:
        raise IntegrityError(f"{adapter}: merged into {start} it answers {apart:.4f} apart from the network of {run}")


def main(
    runs: Annotated[list[Path], typer.Argument(help="folders of finished runs")],
    cards: Annotated[Path, typer.Option(help="folder of the cards")] = Path("model_zoo"),
) -> None:
    """Put the weights of finished training runs into the zoo, and their facts into its cards."""
    for run in runs:
        typer.echo(publish(run, cards))


if __name__ == "__main__":
    try:
        typer.run(main)
    except BenchsrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
