"""What an evaluation found, and where and how."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from prunescope.records.config import Frozen, Labels, Stage
from prunescope.records.zeros import SparsityResult

__all__ = [
    "SCHEMA_VERSION",
    "Alarm",
    "Breakage",
    "DivergenceResult",
    "EvalRecord",
    "FailureInfo",
    "KeptTopk",
    "ModelInfo",
    "PerplexityResult",
    "Protocol",
    "Provenance",
    "RunRef",
    "TaskProtocol",
    "TaskResult",
]

SCHEMA_VERSION = 1
"""The version of the record's shape. It grows when a reader of the old shape would misread it."""


class ModelInfo(Frozen):
    """The model that was evaluated."""

    requested: str
    """What the user asked for, word for word."""
    name: str
    """Short name for tables: the last part of the path or hub id."""
    kind: Literal["safetensors", "bin", "gguf", "peft", "unknown"]
    """How the weights are stored; ``unknown`` for imported results."""
    path: str | None = None
    """Resolved local path."""
    hub_id: str | None = None
    revision: str | None = None
    """Commit hash on the hub, where the model came from it."""
    adapter_of: str | None = None
    """For a PEFT adapter that was merged for evaluation: the base model."""
    architecture: str | None = None
    parameters: int | None = None
    """Number of parameters, tied weights once."""
    dtype: str | None = None
    """dtype that the model ran in."""
    stored_dtype: str | None = None
    """dtype that most of the stored weights have."""
    bytes: int | None = None
    """Size of the stored weights, bytes."""
    max_length: int | None = None
    """Longest sequence that the model takes, tokens."""
    vocab_size: int | None = None
    source_sha256: str | None = None
    """Hash of what lies on disk and decides the weights (known before anything is loaded)."""
    weights_sha256: str | None = None
    """Hash over the names, dtypes, shapes and bytes of the weights, whatever the sharding."""
    mask_sha256: str | None = None
    """Hash over which weights of the decoder blocks' linear layers are zero."""
    tokenizer_sha256: str | None = None
    trust_remote_code: bool = False


class TaskProtocol(Frozen):
    """What decides a task's number, besides the model."""

    version: str
    documents_sha256: str
    """Hash over the hashes of the documents that were scored, in order."""
    n: int
    """Documents that were scored."""
    num_fewshot: int


class Protocol(Frozen):
    """How the numbers were taken. Two numbers are comparable when their parts of it are equal."""

    tasks: dict[str, TaskProtocol] = Field(default_factory=dict)
    requested_tasks: tuple[str, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    """What was asked for; None: each task's default."""
    batch_size: str = "auto"
    dtype: str | None = None
    device: str | None = None
    scorer: str | None = None
    """Which code computed the loglikelihoods: ``prefix-tree`` or ``lm-eval-hf``."""
    ppl_corpus: str | None = None
    seqlen: int | None = None
    nsamples: int | None = None
    """What was asked for; None: all windows."""
    seed: int = 0


class PerplexityResult(Frozen):
    """Perplexity of a corpus by the protocol of GPTQ, SparseGPT and wanda."""

    corpus: str
    corpus_sha256: str
    """Hash of the text."""
    perplexity: float
    """exp(mean over windows of the window's mean cross-entropy); NaN where it broke."""
    mean_nll: float
    """Mean over windows of the window's mean cross-entropy, nats per token."""
    stderr_nll: float | None = None
    """Standard error of ``mean_nll`` over windows, nats per token."""
    seqlen: int
    """Window length, tokens; 0 where it is not known (imported results)."""
    windows: int
    tokens: int
    """Predicted tokens: windows x (seqlen - 1)."""
    corpus_tokens: int
    """Tokens of the whole corpus, before it was cut into windows."""


class DivergenceResult(Frozen):
    """KL(original || this model) over the vocabulary, token by token, on a perplexity corpus."""

    corpus: str
    kind: Literal["full", "top-k"]
    """``full``: over the whole vocabulary. ``top-k``: over the original's k most probable tokens
    and one bucket for all others, a lower bound of the full one."""
    k: int | None = None
    mean: float
    """Nats per token."""
    stderr_tokens: float | None = None
    """Standard error of the mean over the tokens, as if they were independent."""
    stderr_windows: float | None = None
    """Standard error of the mean over the windows; None with fewer than two."""
    percentiles: dict[str, float] = Field(default_factory=dict)
    """Percent -> percentile of the tokens' divergences, nats; ``0`` and ``100`` are the extremes.
    """
    same_top: float
    """Share of the tokens where both models' most probable token is the same."""
    same_top_stderr: float | None = None
    tokens: int
    windows: int
    reference_name: str
    """The original's short name."""
    reference_record_id: str | None = None
    """The original's evaluation, where one was named."""
    reference_sha256: str | None = None
    """Hash of the original's weights."""


class KeptTopk(Frozen):
    """What ``tokens/<corpus>.topk.npz`` holds."""

    k: int
    bytes: int
    """Size of the file."""
    covered: float
    """Mean probability of the k tokens together."""


class TaskResult(Frozen):
    """One lm-eval task (or group) as lm-eval reports it."""

    task: str
    version: str
    n: int
    """Documents that were scored."""
    primary: str
    """Name of the primary metric, ``acc`` for the seven tasks."""
    metrics: dict[str, float]
    """Metric -> value. The key is lm-eval's without ``,none``; another filter is kept as
    ``exact_match.strict-match``."""
    stderr: dict[str, float] = Field(default_factory=dict)
    """Metric -> standard error, where lm-eval gives one. The same keys as ``metrics``."""
    higher_is_better: dict[str, bool] = Field(default_factory=dict)
    full_results: dict[str, Any] = Field(default_factory=dict)
    """lm-eval's own dictionary, unchanged (``alias``, ``acc,none``, ``acc_stderr,none``, ...)."""
    num_fewshot: int | None = None
    documents_sha256: str | None = None
    """None where the documents are not known (imported runs, groups)."""
    group: bool = False
    """Whether this aggregates other tasks."""
    subtasks: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """Value of the primary metric, None where it is missing."""
        return self.metrics.get(self.primary)


class Alarm(Frozen):
    """Something about the weights or answers that contradicts what the run is said to be."""

    code: str
    """``not-pruned``, ``target-missed``, ``pattern-broken``, ``weights-unchanged``,
    ``answers-unchanged``, ``zeros-outside``, ``nonfinite-weights`` or ``all-zero``."""
    message: str
    """One sentence without a full stop, with the figures and the first tensor's name."""


class Breakage(Frozen):
    """Where NaN or infinity was seen first."""

    stage: Stage
    where: str
    """For example ``wikitext2 window 3`` or ``boolq document 17``."""
    what: str
    """For example ``NaN logits``."""


class Provenance(Frozen):
    """Where and with what the evaluation ran."""

    packages: dict[str, str] = Field(default_factory=dict)
    python: str = ""
    hardware: dict[str, str] = Field(default_factory=dict)
    """``cpu``, ``cores``, ``memory``, ``gpu`` ... as text."""
    host: str = ""
    user: str = ""
    git_commit: str | None = None
    """Commit of the repository that the command ran in."""
    command: str = ""
    """Command line, secrets removed."""
    timings: dict[str, float] = Field(default_factory=dict)
    """Stage -> seconds."""
    tokens_per_second: float | None = None
    data_source: str = "hub"
    """``hub``, ``folder``, or how the rows came otherwise."""
    notes: tuple[str, ...] = ()
    """What happened that a reader should know, for example ``batch size halved to 4``."""
    reused_from: str | None = None
    """record_id of the evaluation whose numbers these are, where nothing was run again."""
    imported: bool = False


class FailureInfo(Frozen):
    """Why an evaluation failed."""

    type: str
    message: str
    stage: str | None = None


class EvalRecord(Frozen):
    """One evaluation of one model."""

    schema_version: int = SCHEMA_VERSION
    record_id: str
    record_key: str | None = None
    """Hash of everything that decides the numbers. Equal keys mean equal results."""
    status: Literal["running", "finished", "failed"]
    started_at: datetime
    finished_at: datetime | None = None
    labels: Labels = Labels()
    model: ModelInfo
    protocol: Protocol
    sparsity: SparsityResult | None = None
    perplexity: dict[str, PerplexityResult] = Field(default_factory=dict)
    divergence: dict[str, DivergenceResult] = Field(default_factory=dict)
    """Perplexity corpus -> divergence from the original, where one was named."""
    topk: dict[str, KeptTopk] = Field(default_factory=dict)
    """Perplexity corpus -> what was kept of the log-probabilities, where it was asked for."""
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    broken: tuple[Breakage, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    provenance: Provenance = Provenance()
    error: FailureInfo | None = None

    @property
    def mean_accuracy(self) -> float | None:
        """Plain mean of the primary metric over the tasks (groups left out), None without any."""
        values = [t.accuracy for t in self.tasks.values() if not t.group]
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known else None


class RunRef(Frozen):
    """A run on a tracking server."""

    run_id: str
    experiment_id: str
    run_name: str
    tracking_uri: str
    url: str | None = None
    """Address of the run's page; None for a store without a server."""
