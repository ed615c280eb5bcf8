"""Score requests by the fastest engine that agrees with the model's ordinary forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from prunescope.errors import PrunescopeError
from prunescope.evaluate.scoring.branched import BranchedEngine
from prunescope.evaluate.scoring.kept import KeptAnswers, ScorerState, loglikelihoods
from prunescope.evaluate.scoring.masks import find_mask_form
from prunescope.evaluate.scoring.memory import free_memory, is_out_of_memory, out_of_memory_error
from prunescope.evaluate.scoring.packed import BatchScores, PackedEngine, Score
from prunescope.evaluate.scoring.projection import find_head
from prunescope.evaluate.scoring.selfcheck import pick_sample, reference_scores, worst_excess
from prunescope.evaluate.scoring.trees import Inputs, Request

if TYPE_CHECKING:
    from prunescope.evaluate.loading import LoadedModel

__all__ = ["Engine", "PrefixTreeScorer"]

AUTO_BUDGET = {"cpu": 1024, "mps": 4096, "cuda": 32768}
"""Tokens a batch to begin with. A CPU gains nothing from more; a GPU halves it as needed."""
PROBE_TOKENS = 8
RECHECK_FROM = 1.5
"""Inputs longer by this factor than all that were checked are checked again: a sliding window
or a change of rotary scaling shows only beyond a length."""


class Engine(Protocol):
    """A way to score inputs."""

    name: str

    def score(
        self, inputs: Inputs, budget: int, known: Collection[int] = ()
    ) -> Iterator[BatchScores]:
        """Scores in batches of about ``budget`` tokens; batches of known requests are left out."""


class PrefixTreeScorer:
    """Computes shared prefixes once, through an engine that was checked on this model.

    Attributes:
        tokens: tokens that went through the model for scores, padding not counted.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        batch_size: int | Literal["auto"],
        say: Callable[[str], None],
    ) -> None:
        self._model: Any = loaded.model
        self._device = torch.device(loaded.device)
        self._batch_size = batch_size
        self._budget: int | None = None
        self._say = say
        self._engines: list[Engine] | None = None
        self._problems: list[str] = []
        self._dropped = 0
        self._checked = 0
        self.tokens = 0

    @property
    def state(self) -> ScorerState:
        """What another process needs to go on in the same way."""
        return ScorerState(
            engine=self.engine_name,
            dropped=self._dropped,
            budget=self._budget,
        )

    def restore(self, state: ScorerState) -> None:
        """Go on as the scorer of an earlier process would; call it before the first request."""
        self._dropped, self._budget = state.dropped, state.budget

    def score(
        self,
        requests: Sequence[Request],
        done: Callable[[int], None],
        kept: KeptAnswers | None = None,
    ) -> dict[int, Score] | None:
        """Request index -> score; ``done`` hears how many requests each batch finished.

        Args:
            requests: what is to be scored.
            done: called after each batch.
            kept: takes in the scores as they come, and has those of an earlier process.

        Returns:
            None where no engine agrees with the model: the caller must score some other way.
        """
        if not requests:
            return {}
        longest = max(len(request.input) for request in requests)
        if self._engines is None:
            self._engines = self._build_engines(requests[0])[self._dropped :]
        if self._engines and longest > RECHECK_FROM * self._checked:
            self._check(pick_sample(requests))
            self._checked = longest
        if not self._engines:
            name, reason = type(self._model).__name__, ", ".join(self._problems)
            self._say(f"{name} does not fit prefix trees ({reason}): using lm-eval's own backend")
            return None
        engine = self._engines[0]
        if kept is not None and kept.restored and kept.scorer.engine != engine.name:
            self._say(f"the task begins anew: {kept.scorer.engine} gave way to {engine.name}")
            kept.reject()
        return self._run(engine, requests, done, kept)

    def _build_engines(self, request: Request) -> list[Engine]:
        """Engines by promise, those that cannot work left out."""
        probe = torch.tensor([request.input[:PROBE_TOKENS]], device=self._device)
        try:
            head = find_head(self._model, probe)
            form = find_mask_form(self._model.config)
        except Exception as error:
            self._problems.append(f"{type(error).__name__} in a first trial")
            return []
        if head is None:
            self._problems.append("its logits have an unknown form")
            return []
        engines: list[Engine] = [BranchedEngine(self._model, head, self._device)]
        if form is not None:
            engines.insert(0, PackedEngine(self._model, head, form, self._device))
        return engines

    @property
    def engine_name(self) -> str | None:
        """Which engine passed the check; None before the first request, or where none did."""
        return self._engines[0].name if self._engines and self._checked else None

    def _check(self, sample: Sequence[Request]) -> None:
        """Drop engines until the first agrees with the model's ordinary forward pass."""
        wanted = self._reference(sample)
        # A request on which the model itself breaks would take its neighbours in the row with it.
        sound = [request for request in sample if math.isfinite(wanted[request.index][0])]
        sample = sound or sample
        tokens = self.tokens
        while self._engines:
            engine = self._engines[0]
            try:
                found = self._run(engine, sample, lambda _: None)
            except PrunescopeError:
                raise
            # What a model makes of arguments that it does not know can be any error.
            except Exception as error:
                self._problems.append(f"{engine.name} fail with {type(error).__name__}")
            else:
                excess = worst_excess(found, wanted, sample, self._model.dtype)
                if not excess:
                    break
                self._problems.append(f"{engine.name} are off by {excess:.3g} nats")
            finally:
                self.tokens = tokens
            del self._engines[0]
            self._dropped += 1

    def _reference(self, sample: Sequence[Request]) -> dict[int, Score]:
        try:
            return reference_scores(self._model, sample, self._device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        longest = max(len(request.input) for request in sample)
        raise out_of_memory_error(f"a sequence of {longest} tokens")

    def _run(
        self,
        engine: Engine,
        requests: Sequence[Request],
        done: Callable[[int], None],
        kept: KeptAnswers | None = None,
    ) -> dict[int, Score]:
        """Scores of all requests; out of memory halves the budget and goes on with the rest."""
        budget = self._first_budget(requests)
        scores = loglikelihoods(kept.answers) if kept is not None else {}
        settled = set(kept.settled) if kept is not None else set()
        rest = [request for request in requests if request.index not in settled]
        done(len(scores))
        while rest:
            inputs = Inputs(rest)
            failed = False
            try:
                for batch in engine.score(inputs, budget, scores.keys()):
                    scores.update(batch.scores)
                    self.tokens += batch.tokens
                    if kept is not None:
                        kept.add(batch.scores, self.state)
                    done(len(batch.scores))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            rest = [request for request in rest if request.index not in scores]
            if failed:
                free_memory()
                longest = max(len(request.input) for request in rest)
                # A few halvings below the longest sequence still make packed rows shorter.
                if budget <= max(1, longest // 4):
                    raise out_of_memory_error(f"a sequence of {longest} tokens")
                budget //= 2
                self._budget = budget
                if kept is not None:
                    kept.settle()
                self._say(f"out of memory: scoring goes on with {budget} tokens at a time")
        return scores

    def _first_budget(self, requests: Sequence[Request]) -> int:
        if self._batch_size == "auto":
            start = AUTO_BUDGET.get(self._device.type, AUTO_BUDGET["cuda"])
        else:
            start = self._batch_size * max(len(request.input) for request in requests)
        return start if self._budget is None else min(start, self._budget)
