"""The lm-eval model that prunescope hands to lm-eval's evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lm_eval.models.huggingface import HFLM

from prunescope.errors import TaskError
from prunescope.evaluate.scoring.kept import KeptAnswers, ScorerState, loglikelihoods
from prunescope.evaluate.scoring.memory import (
    check_batch_size,
    free_memory,
    is_out_of_memory,
    out_of_memory_error,
)
from prunescope.evaluate.scoring.packed import Score
from prunescope.evaluate.scoring.prefix_tree import PrefixTreeScorer
from prunescope.evaluate.scoring.quiet import quiet
from prunescope.evaluate.scoring.trees import Request

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from prunescope.evaluate.loading import LoadedModel
    from prunescope.evaluate.progress import Progress

__all__ = ["ScoringLM"]

PLAIN_BATCH = 16
"""Sequences a batch of the plain path where the user leaves the size to us."""

Tokens = list[int]
EncodedRequest = tuple[tuple[str, str] | None, Tokens, Tokens]
"""What lm-eval passes on: (context, continuation) as text, then each as tokens."""
ISOLATE_FIRST = 16
"""Scores that are not finite are first checked on so many requests."""
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class ScoringLM(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face backend, with our own order, batches and progress.

    Attributes:
        scorer_name: ``prefix-tree`` or ``lm-eval-hf``.
        tokens_scored: tokens that went through the model, padding not counted.
        notes: what a reader of the results should know.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        batch_size: int | Literal["auto"],
        progress: Progress,
        kept: KeptAnswers,
    ) -> None:
        check_batch_size(batch_size)
        with quiet():
            super().__init__(
                pretrained=loaded.model,
                tokenizer=loaded.tokenizer,
                backend="causal",
                batch_size=PLAIN_BATCH if batch_size == "auto" else batch_size,
                max_length=loaded.max_length,
            )
        self._progress = progress
        self._kept = kept
        self._trees: PrefixTreeScorer | None = PrefixTreeScorer(loaded, batch_size, self._note)
        self._trees.restore(kept.scorer)
        if kept.scorer.batch_size is not None:
            self.batch_size_per_gpu = kept.scorer.batch_size
        self.scorer_name = "prefix-tree"
        self.tokens_scored = 0
        self.notes: list[str] = []

    @property
    def engine_name(self) -> str | None:
        """How prefix trees are scored: ``packed rows`` or ``cached prefixes``; None: not yet."""
        return self._trees.engine_name if self._trees else None

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[Score]:
        """Loglikelihood and greedy flag of each request, in their order."""
        with quiet():
            encoded = [self._encode(*request.args) for request in requests]
        self._note_truncation(encoded)
        self._kept.begin(len(requests))
        return self._score(encoded, self._progress.advance, self._kept)

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        """Loglikelihood of each whole text, by lm-eval's own windows."""
        known = self._kept.begin(len(requests))
        answers = [answer for answer in known.values() if isinstance(answer, float)]
        self._progress.advance(len(answers))
        for start in range(len(answers), len(requests), self.batch_size):
            part = requests[start : start + self.batch_size]
            with quiet():
                found = super().loglikelihood_rolling(part, disable_tqdm=True)
            answers += found
            self._kept.add(dict(enumerate(found, start)), self._state)
            self._progress.advance(len(part))
        return answers

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        """Generated text of each request, by lm-eval's own path."""

        def order(index: int) -> tuple[str, int]:
            context, settings = requests[index].args
            with quiet():
                return repr(settings), -len(self.tok_encode(context))

        indices = sorted(range(len(requests)), key=order)
        known = self._kept.begin(len(requests))
        answers = [str(known.get(index, "")) for index in range(len(requests))]
        self._progress.advance(len(known))

        def run(part: Sequence[int]) -> list[str]:
            generate = super(ScoringLM, self).generate_until
            with quiet():
                return list(generate([requests[i] for i in part], disable_tqdm=True))

        for part, texts in self._in_batches(indices[len(known) :], run):
            for index, text in zip(part, texts, strict=True):
                answers[index] = text
            self._kept.add(dict(zip(part, texts, strict=True)), self._state)
            self._progress.advance(len(part))
        return answers

    def _encode(self, context: str, continuation: str) -> EncodedRequest:
        """Tokens of a request, exactly as :class:`lm_eval.api.model.TemplateLM` makes them."""
        if context:
            context_tokens, tokens = self._encode_pair(context, continuation)
        else:
            tokens = self.tok_encode(continuation, add_special_tokens=False)
            context_tokens = [self.prefix_token_id]
            if tokens and tokens[0] == self.prefix_token_id:
                context_tokens, tokens = tokens[:1], tokens[1:]
        if not tokens:
            raise TaskError(
                f"a continuation has no tokens of its own: {continuation!r} after "
                f"{context[-60:]!r}",
                hint="Check the task's doc_to_choice and target_delimiter",
            )
        if len(tokens) > self.max_length:
            raise TaskError(
                f"a continuation of {len(tokens)} tokens is longer than the model's maximum of "
                f"{self.max_length}: {continuation[:60]!r}...",
                hint="Leave this task out for this model",
            )
        return (context, continuation), context_tokens, tokens

    def _loglikelihood_tokens(self, requests: list[EncodedRequest], **_: Any) -> list[Score]:
        """What lm-eval's rolling loglikelihood calls, window by window."""
        return self._score(requests, lambda _: None, None)

    @property
    def _state(self) -> ScorerState:
        """What another process needs to go on in the same way."""
        state = self._trees.state if self._trees else self._kept.scorer
        return state.model_copy(update={"batch_size": self.batch_size_per_gpu})

    def _score(
        self,
        requests: list[EncodedRequest],
        done: Callable[[int], None],
        kept: KeptAnswers | None,
    ) -> list[Score]:
        if self._trees is not None:
            encoded = [
                Request.encoded(index, context, continuation, self.max_length)
                for index, (_, context, continuation) in enumerate(requests)
            ]
            before = self._trees.tokens
            scores = self._trees.score(encoded, done, kept)
            self.tokens_scored += self._trees.tokens - before
            if scores is not None:
                self._isolate_broken(requests, scores)
                return [scores[index] for index in range(len(requests))]
            self._trees = None
            self.scorer_name = "lm-eval-hf"
        return self._score_plainly(requests, done, kept)

    def _isolate_broken(self, requests: list[EncodedRequest], scores: dict[int, Score]) -> None:
        """Score anew, apart from the others, what is not finite.

        NaN spreads through a packed row, because a weight of 0 times NaN is NaN: a sequence on
        which the model breaks would take its neighbours with it.
        """
        broken = [index for index, score in scores.items() if not math.isfinite(score[0])]
        for indices in (broken[:ISOLATE_FIRST], broken[ISOLATE_FIRST:]):
            if not indices:
                return
            again = self._score_plainly([requests[i] for i in indices], lambda _: None, None)
            scores.update(zip(indices, again, strict=True))
            if not any(math.isfinite(score[0]) for score in again):
                return  # the model is broken everywhere: the rest would tell nothing new

    def _score_plainly(
        self,
        requests: list[EncodedRequest],
        done: Callable[[int], None],
        kept: KeptAnswers | None,
    ) -> list[Score]:
        """lm-eval's own scoring, batch by batch, so that nothing is lost when memory runs out."""
        groups = _same_input(requests)
        order = sorted(groups, key=lambda tokens: (-len(tokens), tokens))
        answers = loglikelihoods(kept.answers) if kept is not None else {}
        done(len(answers))
        # Batches were answered one after the other: what is known is the beginning.
        rest = [tokens for tokens in order if not all(i in answers for i in groups[tokens])]

        def run(part: Sequence[tuple[int, ...]]) -> list[tuple[int, Score]]:
            indices = [index for tokens in part for index in groups[tokens]]
            score = super(ScoringLM, self)._loglikelihood_tokens
            with quiet():
                scores = score([requests[i] for i in indices], disable_tqdm=True)
            return list(zip(indices, scores, strict=True))

        for part, scored in self._in_batches(rest, run):
            answers.update(scored)
            if kept is not None:
                kept.add(dict(scored), self._state)
            self.tokens_scored += sum(min(len(tokens), self.max_length) for tokens in part)
            done(len(scored))
        return [answers[index] for index in range(len(requests))]

    def _in_batches(
        self, items: Sequence[Item], run: Callable[[Sequence[Item]], list[Answer]]
    ) -> Iterator[tuple[Sequence[Item], list[Answer]]]:
        """Batches of ``items`` and their answers; out of memory halves the batch and goes on."""
        start = 0
        while start < len(items):
            part = items[start : start + self.batch_size]
            answers = None
            try:
                answers = run(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if answers is None:
                free_memory()
                if len(part) == 1:
                    raise out_of_memory_error()
                self.batch_size_per_gpu = len(part) // 2
                self._note(f"out of memory: batch size halved to {self.batch_size}")
                continue
            yield part, answers
            start += len(part)

    def _note_truncation(self, requests: list[EncodedRequest]) -> None:
        longest = self.max_length + 1
        count = sum(len(context) + len(tokens) > longest for _, context, tokens in requests)
        if count:
            self._note(
                f"{count} of {len(requests)} requests are longer than the model's maximum of "
                f"{self.max_length} tokens and were cut from the left"
            )

    def _note(self, message: str) -> None:
        self.notes.append(message)
        self._progress.say(message)


def _same_input(requests: list[EncodedRequest]) -> dict[tuple[int, ...], list[int]]:
    """Indices of the requests by what the model reads for them (all but the last token)."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (_, context, continuation) in enumerate(requests):
        groups.setdefault(tuple(context + continuation[:-1]), []).append(index)
    return groups
