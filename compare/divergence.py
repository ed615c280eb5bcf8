"""How far the two models' beliefs over the answers of a task are apart, and where it hurts.

The distributions are over a document's answer choices, from their stored loglikelihoods
normalized to sum to one. This is not the token-level KL divergence over the vocabulary, which
needs both models' logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunescope.compare.pairing import PairedTask

__all__ = [
    "GROUP_FIELDS",
    "ChoiceDivergence",
    "Collapse",
    "DocumentLoss",
    "FlipGroup",
    "choice_divergence",
    "collapse",
    "flips_by_field",
    "flips_by_margin",
    "worst_documents",
]

Floats = NDArray[np.float64]

GROUP_FIELDS = ("activity_label", "subject", "category", "topic")
"""Fields of a document that sort a task's documents into kinds."""

COLLAPSE_SHARE = 0.95


@dataclass(frozen=True)
class ChoiceDivergence:
    """Mean divergence between two models' distributions over the answer choices of a task."""

    task: str
    n: int
    """Documents with finite loglikelihoods on both sides."""
    kl: float
    """Mean of sum(p * ln(p / q)), p the original's, q the pruned model's; nats."""
    kl_stderr: float
    total_variation: float
    """Mean of 1/2 sum |p - q|, from 0 to 1."""
    total_variation_stderr: float


@dataclass(frozen=True)
class FlipGroup:
    """Flips among some of a task's documents."""

    label: str
    n: int
    lost: int
    gained: int

    @property
    def net(self) -> float:
        """Change of accuracy among them, a fraction."""
        return (self.gained - self.lost) / self.n if self.n else 0.0


@dataclass(frozen=True)
class Collapse:
    """A model that gives (nearly) always the same answer though the right ones vary."""

    task: str
    side: str
    choice: int
    """Index of that answer."""
    share: float
    gold_share: float
    """Share of the documents for which it is right."""


@dataclass(frozen=True)
class DocumentLoss:
    """A document whose right answer lost probability."""

    task: str
    doc_id: int
    original_p: float
    """Probability of the right answer among the choices in the original."""
    pruned_p: float
    original_choice: int
    pruned_choice: int
    gold: int
    context: str
    choices: tuple[str, ...]


# --- distributions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """Documents with the same number of choices."""

    rows: NDArray[np.int64]
    """Positions in the pair."""
    original: Floats
    """(documents, choices), log-probabilities among the choices."""
    pruned: Floats


def _blocks(pair: PairedTask) -> Iterable[_Block]:
    """The pair's finite documents, grouped by their number of choices (at least two)."""
    a, b = pair.original, pair.pruned
    count_a = np.diff(a.offsets)[pair.original_rows]
    count_b = np.diff(b.offsets)[pair.pruned_rows]
    for choices in np.unique(count_a):
        rows = np.nonzero((count_a == choices) & (count_b == choices))[0]
        if choices < 2 or not len(rows):
            continue
        each = np.arange(choices)
        x = a.loglikelihoods[a.offsets[pair.original_rows[rows]][:, None] + each]
        y = b.loglikelihoods[b.offsets[pair.pruned_rows[rows]][:, None] + each]
        finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        if finite.any():
            yield _Block(rows[finite], _log_softmax(x[finite]), _log_softmax(y[finite]))


def _log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def choice_divergence(pair: PairedTask) -> ChoiceDivergence | None:
    """Mean KL divergence and total variation over the documents; None without choices."""
    kl: list[Floats] = []
    variation: list[Floats] = []
    for block in _blocks(pair):
        p = np.exp(block.original)
        kl.append((p * (block.original - block.pruned)).sum(axis=1))
        variation.append(0.5 * np.abs(p - np.exp(block.pruned)).sum(axis=1))
    if not kl:
        return None
    divergence, distance = np.concatenate(kl), np.concatenate(variation)
    n = len(divergence)
    root = math.sqrt(max(n - 1, 1))
    return ChoiceDivergence(
        task=pair.task,
        n=n,
        kl=max(0.0, float(divergence.mean())),
        kl_stderr=float(divergence.std()) / root,
        total_variation=float(distance.mean()),
        total_variation_stderr=float(distance.std()) / root,
    )


# --- where it hurts -----------------------------------------------------------------------------


def flips_by_margin(pair: PairedTask, key: str = "acc", bins: int = 4) -> tuple[FlipGroup, ...]:
    """Flips by how sure the original was: its best loglikelihood minus the next.

    Returns:
        Groups of about equal size, least sure first; empty where there are no choices.
    """
    margins = np.full(len(pair), np.nan)
    for block in _blocks(pair):
        ordered = np.sort(block.original, axis=1)
        margins[block.rows] = ordered[:, -1] - ordered[:, -2]
    known = np.nonzero(np.isfinite(margins))[0]
    scores = _binary(pair, key)
    if scores is None or len(known) < bins:
        return ()
    order = known[np.argsort(margins[known], kind="stable")]
    groups = []
    for part in np.array_split(order, bins):
        low, high = margins[part[0]], margins[part[-1]]
        groups.append(_group(f"{low:.2f} to {high:.2f} nats", part, scores))
    return tuple(groups)


def flips_by_field(
    pair: PairedTask, key: str = "acc", *, least: int = 10, most: int = 10
) -> tuple[str, tuple[FlipGroup, ...]] | None:
    """Flips by a field that sorts the documents into kinds, for example HellaSwag's activities.

    Args:
        pair: the documents.
        key: which metric says right or wrong.
        least: kinds with fewer documents are left out.
        most: how many kinds to give, those that lost most first.

    Returns:
        The field's name and the groups; None where no such field is present.
    """
    scores = _binary(pair, key)
    if scores is None or not len(pair) or not pair.original.may_have(GROUP_FIELDS):
        return None
    documents = pair.original.documents
    field = next((f for f in GROUP_FIELDS if documents[0].get(f) is not None), None)
    if field is None:
        return None
    rows_of: dict[str, list[int]] = {}
    for row, source in enumerate(pair.original_rows):
        rows_of.setdefault(str(documents[source].get(field)), []).append(row)
    groups = [_group(k, np.asarray(v), scores) for k, v in rows_of.items() if len(v) >= least]
    groups.sort(key=lambda group: (group.net, group.label))
    return field, tuple(groups[:most])


def collapse(pair: PairedTask) -> tuple[Collapse, ...]:
    """Sides that give the same answer for at least 95 % of the documents, though it is not right
    nearly as often."""
    found = []
    gold = pair.gold()
    for side, chosen in zip(("original", "pruned"), pair.predictions(), strict=True):
        if len(chosen) < 20 or (chosen < 0).any():
            continue
        counts = np.bincount(chosen)
        answer = int(counts.argmax())
        share, right = float(counts[answer]) / len(chosen), float((gold == answer).mean())
        if share >= COLLAPSE_SHARE and right < COLLAPSE_SHARE - 0.05:
            found.append(Collapse(pair.task, side, answer, share, right))
    return tuple(found)


def worst_documents(pairs: Iterable[PairedTask], count: int = 20) -> tuple[DocumentLoss, ...]:
    """The documents whose right answer lost most probability, over all tasks, worst first.

    The probability is the right answer's share among the choices.
    """
    candidates: list[tuple[float, PairedTask, int, float]] = []
    for pair in pairs:
        gold = pair.gold()
        for block in _blocks(pair):
            right = gold[block.rows]
            inside = np.nonzero((right >= 0) & (right < block.original.shape[1]))[0]
            p = np.exp(block.original[inside, right[inside]])
            q = np.exp(block.pruned[inside, right[inside]])
            for i in np.argsort(q - p, kind="stable")[:count]:
                row = int(block.rows[inside[i]])
                if p[i] > q[i]:
                    candidates.append((float(q[i] - p[i]), pair, row, float(p[i])))
    candidates.sort(key=lambda c: (c[0], c[1].task, c[2]))
    return tuple(_document(pair, row, p, p + change) for change, pair, row, p in candidates[:count])


def _document(pair: PairedTask, row: int, p: float, q: float) -> DocumentLoss:
    source = int(pair.original_rows[row])
    texts = pair.original.text_of(source)
    predicted = pair.predictions()
    return DocumentLoss(
        task=pair.task,
        doc_id=int(pair.original.doc_id[source]),
        original_p=p,
        pruned_p=q,
        original_choice=int(predicted[0][row]),
        pruned_choice=int(predicted[1][row]),
        gold=int(pair.gold()[row]),
        context=texts[0],
        choices=texts[1],
    )


def _binary(pair: PairedTask, key: str) -> tuple[Floats, Floats] | None:
    scores = pair.scores(key)
    if scores is None or not all(((s == 0) | (s == 1)).all() for s in scores):
        return None
    return scores


def _group(label: str, rows: NDArray[np.int64], scores: tuple[Floats, Floats]) -> FlipGroup:
    a, b = scores[0][rows], scores[1][rows]
    return FlipGroup(label, len(rows), int((a > b).sum()), int((b > a).sum()))
