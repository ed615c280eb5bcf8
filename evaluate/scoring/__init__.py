"""Loglikelihoods of lm-eval's requests, each shared prefix computed once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from prunescope.evaluate.loading import LoadedModel
    from prunescope.evaluate.progress import Progress
    from prunescope.evaluate.scoring.kept import KeptAnswers
    from prunescope.evaluate.scoring.lm import ScoringLM

__all__ = ["build_scorer"]


def build_scorer(
    loaded: LoadedModel,
    *,
    batch_size: int | Literal["auto"],
    progress: Progress,
    kept: KeptAnswers | None = None,
) -> ScoringLM:
    """An lm-eval model over an already loaded one, for ``lm_eval.evaluator.evaluate``.

    Its ``scorer_name``, ``tokens_scored`` and ``notes`` say, once requests were answered, which
    code computed them, how many tokens went through the model, and what a reader should know.
    ``progress.advance`` hears how many requests each batch answered; ``kept`` takes the answers in
    and has those that an earlier process gave.

    Raises:
        SettingError: ``batch_size`` is less than 1.
    """
    from prunescope.evaluate.scoring.kept import KeptAnswers
    from prunescope.evaluate.scoring.lm import ScoringLM

    kept = kept or KeptAnswers(None, "", math.inf)
    return ScoringLM(loaded, batch_size=batch_size, progress=progress, kept=kept)
