"""How far each attack is from the worst that is known of the same model, image and budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from benchsr.leaderboard.scores import sign
from benchsr.results.records import Record, Status, metrics_of


def optimality(records: Iterable[Record], threats: Sequence[str]) -> dict[tuple[str, str], dict[str, float]]:
    """For each (model, threat) by metric the mean distance from the worst figure among `threats`, image by image: >= 0.

    In the metric's unit; 0 says that no other attack did more to any image. Compare attacks of one norm and eps alone.
    Images without an evaluation under each of `threats` do not count, as in `worst_case`; a model without any is left
    out.
    """
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for r in records:
        if r.threat in threats and r.status is Status.OK:
            found.setdefault(r.model, {}).setdefault(r.image, {})[r.threat] = r
    metrics = metrics_of(r for images in found.values() for rows in images.values() for r in rows.values())
    signs = np.array([sign(m) for m in metrics])
    gaps: dict[tuple[str, str], dict[str, float]] = {}
    for model, images in found.items():
        whole = [rows for rows in images.values() if len(rows) == len(set(threats))]
        if not whole:
            continue
        scores = np.array([[[rows[t].scores.get(m, np.nan) for m in metrics] for t in threats] for rows in whole])
        signed = scores * signs
        mean = (signed - signed.min(axis=1, keepdims=True)).mean(axis=0)
        for threat, row in zip(threats, mean.tolist(), strict=True):
            gaps[model, threat] = dict(zip(metrics, row, strict=True))
    return gaps
