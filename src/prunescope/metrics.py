"""What each metric is called, which way is better, and how it is written.

This is the only place that knows a metric's name, unit, direction and format.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ACC",
    "ACC_NORM",
    "KL",
    "PERPLEXITY",
    "SPARSITY",
    "Direction",
    "Metric",
    "corpus_title",
    "format_percent",
    "format_ratio",
    "format_relative",
    "metric_key",
    "mlflow_metric_name",
    "perplexity_title",
    "task_metric",
]

Direction = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """A figure that prunescope reports."""

    name: str
    title: str
    better: Direction
    unit: str = ""
    decimals: int = 4

    def format(self, value: float | None) -> str:
        """The value as tables show it; ``n/a`` where it is missing, ``nan`` or ``inf`` as such."""
        if value is None:
            return "n/a"
        return f"{value:.{self.decimals}f}" if math.isfinite(value) else str(value)

    def format_difference(self, value: float | None) -> str:
        """A signed difference, ``n/a`` where it is missing or not finite."""
        if value is None or not math.isfinite(value):
            return "n/a"
        return f"{value:+.{self.decimals}f}"

    def is_better(self, difference: float) -> bool | None:
        """Whether a change by ``difference`` is an improvement; None where it is neither."""
        if difference == 0 or self.better == "neither" or not math.isfinite(difference):
            return None
        return (difference > 0) == (self.better == "higher")


ACC = Metric("acc", "Accuracy", "higher")
ACC_NORM = Metric("acc_norm", "Accuracy (length-normalized)", "higher")
PERPLEXITY = Metric("ppl", "Perplexity", "lower")
KL = Metric("kl", "KL divergence from the original", "lower", unit="nats")
SPARSITY = Metric("sparsity", "Sparsity", "neither", unit="%", decimals=2)

_CORPORA = {"wikitext2": "WikiText2", "c4": "C4", "boolq-passages": "BoolQ passages"}
_KNOWN = {metric.name: metric for metric in (ACC, ACC_NORM)}
_LOWER = frozenset({"word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity", "brier"})


def task_metric(key: str, higher_is_better: bool | None = None) -> Metric:
    """The metric of a task by its key (``acc``, ``exact_match.strict-match``).

    Args:
        key: as in :attr:`prunescope.records.TaskResult.metrics`.
        higher_is_better: what lm-eval says, where it says something.
    """
    name = key.partition(".")[0]
    if name in _KNOWN and higher_is_better is not False:
        return _KNOWN[name]
    if higher_is_better is None:
        higher_is_better = name not in _LOWER
    return Metric(name, name, "higher" if higher_is_better else "lower")


def metric_key(lm_eval_key: str) -> str:
    """lm-eval's ``acc,none`` as ``acc``, ``exact_match,strict-match`` as
    ``exact_match.strict-match``."""
    name, _, filter_name = lm_eval_key.partition(",")
    return name if filter_name in ("", "none") else f"{name}.{filter_name}"


def mlflow_metric_name(*parts: str) -> str:
    """A name that MLflow accepts: letters, digits, ``_ - . : /`` and space; others become ``_``.

    A metric's filter moves behind the task: ``("exact_match.strict-match", "gsm8k")`` gives
    ``exact_match/gsm8k.strict-match``, so that the UI's chart sections are the metrics.
    """
    *front, first, last = ("", *parts) if len(parts) > 1 else ("", "", *parts)
    name, dot, filter_name = first.partition(".")
    whole = "/".join(part for part in (*front, name, f"{last}{dot}{filter_name}") if part)
    return re.sub(r"[^\w\-.:/ ]", "_", whole, flags=re.ASCII)


def corpus_title(corpus: str) -> str:
    """A corpus as tables name it: ``WikiText2`` for ``wikitext2``, a file by its last part."""
    last_part = corpus.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return _CORPORA.get(corpus) or last_part or corpus


def perplexity_title(corpus: str, *seqlens: int) -> str:
    """What a perplexity is called: ``WikiText2 PPL (2048)``, with each window length there is."""
    lengths = " / ".join(str(seqlen) for seqlen in dict.fromkeys(seqlens) if seqlen > 0)
    return f"{corpus_title(corpus)} PPL" + (f" ({lengths})" if lengths else "")


def format_percent(fraction: float | None, decimals: int = 2) -> str:
    """A fraction in percent, for example ``41.31%``; ``n/a`` where it is missing or not finite."""
    if fraction is None or not math.isfinite(fraction):
        return "n/a"
    return f"{100 * fraction:.{decimals}f}%"


def format_ratio(ratio: float, decimals: int) -> str:
    """How many times as large, after a times sign; a hundredfold and more in whole numbers."""
    return f"\u00d7{ratio:.{decimals}f}" if ratio < 100 else f"\u00d7{ratio:,.0f}"


def format_relative(fraction: float | None) -> str:
    """A signed relative change in percent, for example ``-3.96%``; ``n/a`` where it is missing."""
    if fraction is None or not math.isfinite(fraction):
        return "n/a"
    return f"{100 * fraction:+.2f}%"
