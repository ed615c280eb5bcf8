"""The values that cross the seams between evaluating, tracking and comparing.

An :class:`EvalRecord` is the authority over one evaluation; MLflow's params, metrics and tags
are an index over it. All models are frozen, refuse unknown fields, and survive a round trip
through JSON exactly: NaN and infinity are written as the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"``, which standard JSON parsers read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunescope.errors import OutputError, RecordError

__all__ = [
    "DEFAULT_TASKS",
    "SAMPLES_COLUMNS",
    "SCHEMA_VERSION",
    "TOKENS_ARRAYS",
    "TOPK_ARRAYS",
    "Alarm",
    "BlockTiers",
    "Breakage",
    "DivergenceResult",
    "EvalConfig",
    "EvalRecord",
    "FailureInfo",
    "KeptTopk",
    "Labels",
    "LayerSparsity",
    "ModelInfo",
    "PerplexityResult",
    "Protocol",
    "Provenance",
    "Role",
    "RunRef",
    "SparsityResult",
    "Stage",
    "TaskProtocol",
    "TaskResult",
    "TensorSparsity",
    "ZeroCount",
    "canonical_hash",
    "new_record_id",
    "parse_record",
    "read_record",
    "read_tensors",
    "samples_path",
    "tokens_path",
    "topk_path",
    "utc_now",
    "write_file",
    "write_record",
]

SCHEMA_VERSION = 1
"""The version of the record's shape. It grows when a reader of the old shape would misread it."""

DEFAULT_TASKS: tuple[str, ...] = (
    "boolq",
    "rte",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
)
"""The seven zero-shot tasks of the pruning papers, in the order of their tables."""

SAMPLES_COLUMNS: dict[str, str] = {
    "doc_id": "int64, index of the row in its split",
    "doc_sha256": "string, hash of what is scored: contexts, continuations, gold index",
    "context": "string, the longest text that all choices' prompts begin with",
    "choices": "list of string, what follows the context for each choice",
    "gold": "int64, index of the right choice; null where there is none",
    "loglikelihoods": "list of float64, nats, one a choice",
    "lengths": "list of int64, characters of each continuation (what acc_norm divides by)",
    "greedy": "list of bool, whether each continuation is the model's own greedy one",
    "predicted": "int64, index of the choice with the largest loglikelihood; null without choices",
    "acc": "float64, 1 or 0; null where the task has none",
    "acc_norm": "float64, 1 or 0; null where the task has none",
    "metrics": "string, JSON object of every per-document metric that lm-eval gives",
    "response": "string, generated text for generation tasks; null otherwise",
    "document": "string, the row of the data set as JSON",
}
"""The columns of ``samples/<task>.parquet`` (zstd), one row a document."""

TOKENS_ARRAYS: dict[str, str] = {
    "logprob": "float32, (windows, seqlen - 1), log-probability of the target, nats",
    "target": "int32, (windows, seqlen - 1), the token that was predicted",
    "top1": "int32, (windows, seqlen - 1), the model's most probable token",
    "window_nll": "float64, (windows,), mean cross-entropy of each window, nats per token",
    "window_start": "int64, (windows,), where each window begins in the corpus, characters; "
    "absent where the tokenizer does not tell",
    "window_end": "int64, (windows,), where it ends, characters; absent likewise",
}
"""The arrays of ``tokens/<corpus>.npz``, one entry a scored token."""

TOPK_ARRAYS: dict[str, str] = {
    "token": "int32, (windows, seqlen - 1, k), the most probable tokens, the first one first",
    "logprob": "float32, (windows, seqlen - 1, k), their log-probabilities, nats",
    "tail": "float32, (windows, seqlen - 1), log-probability of all other tokens together, nats",
    "target": "int32, (windows, seqlen - 1), the token that was predicted",
}
"""The arrays of ``tokens/<corpus>.topk.npz``, for a later ``--kl-reference``."""

Role = Literal["original", "pruned"]
Stage = Literal["load", "sparsity", "perplexity", "tasks"]


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=()
    )


# --- what was asked for -------------------------------------------------------------------------


class EvalConfig(_Frozen):
    """What to evaluate and how: the whole input of one evaluation, with no state outside it."""

    model: str
    """Local folder, hub id with optional ``@revision``, GGUF file or PEFT adapter folder."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; the model's own when None."""
    dtype: str = "auto"
    """``auto`` (float32 on CPU, the checkpoint's own on GPU), float32, float16 or bfloat16."""
    device: str = "auto"
    """``auto`` (first GPU, else CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""
    device_map: Literal["auto"] | None = None
    """``auto`` spreads the model over all GPUs."""
    cache_dir: str | None = None
    """Where hub downloads go; Hugging Face's own cache when None."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    seed: int = 0
    skip: frozenset[Stage] = frozenset()
    """Stages to leave out: any of ``sparsity``, ``perplexity``, ``tasks``."""
    tasks: tuple[str, ...] = DEFAULT_TASKS
    """lm-eval task, tag or group names, or paths of YAML files."""
    limit: int | None = None
    """Score only the first ``limit`` documents of each task."""
    num_fewshot: int | None = None
    """Examples in the prompt; each task's own default when None."""
    batch_size: int | Literal["auto"] = "auto"
    seqlen: int | Literal["model"] | None = None
    """Perplexity window in tokens; None: 2048 or the model's maximum where that is less."""
    nsamples: int | None = None
    """Score only the first ``nsamples`` perplexity windows."""
    ppl_corpus: str = "wikitext2"
    """``wikitext2``, ``c4``, ``boolq-passages``, or the path of a text file."""
    data_dir: str | None = None
    """A folder made by ``prunescope data pull``: then no network is used."""
    block: int = 16
    """Rows and columns of the blocks whose structure is counted."""
    topk: int = 10
    """A block counts as "at most k" up to this many weights."""
    kl_reference: str | None = None
    """The original to take the token-level KL divergence from: a model as for ``model``, or a
    record directory, whose kept top-k log-probabilities are used, else the model that it names."""
    keep_topk: int | None = None
    """Keep each scored token's largest log-probabilities, this many, for later evaluations."""


class Labels(_Frozen):
    """What the user says about a run; none of it changes a number."""

    role: Role | None = None
    method: str | None = None
    """How it was pruned, for example ``wanda`` or ``magnitude``."""
    target_sparsity: float | None = None
    """The sparsity that was aimed at, a fraction from 0 to 1."""
    pattern: str | None = None
    """The N:M pattern that the pruned layers are said to have, for example ``2:4``."""
    baseline_run_id: str | None = None
    """MLflow run id of the original that this run is compared with."""
    run_name: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)


# --- what was found -----------------------------------------------------------------------------


class ModelInfo(_Frozen):
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


class TaskProtocol(_Frozen):
    """What decides a task's number, besides the model."""

    version: str
    documents_sha256: str
    """Hash over the hashes of the documents that were scored, in order."""
    n: int
    """Documents that were scored."""
    num_fewshot: int


class Protocol(_Frozen):
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


class ZeroCount(_Frozen):
    """Exact zeros among parameters."""

    zeros: int
    parameters: int
    share: float | None = None
    """The share where only it is known (imported results); the counts are 0 then."""

    @property
    def known(self) -> bool:
        """Whether anything was counted."""
        return self.parameters > 0 or self.share is not None

    @property
    def fraction(self) -> float:
        """Share of the parameters that are exactly zero; 0.0 where there are none."""
        if self.share is not None:
            return self.share
        return self.zeros / self.parameters if self.parameters else 0.0

    def __add__(self, other: ZeroCount) -> ZeroCount:
        return ZeroCount(
            zeros=self.zeros + other.zeros, parameters=self.parameters + other.parameters
        )


class BlockTiers(_Frozen):
    """Blocks of a weight matrix, each counted once in the order of the fields."""

    block: tuple[int, int]
    """Rows and columns of a block."""
    topk: int
    empty: int = 0
    at_most_topk: int = 0
    """At most ``topk`` weights left."""
    two_four: int = 0
    """Every group of four along the input dimension has at most two weights left."""
    dense: int = 0
    """No zero at all."""
    other: int = 0
    ragged: int = 0
    """Blocks at an edge that are smaller than a whole one; counted in the tiers as well."""


class TensorSparsity(_Frozen):
    """One stored weight tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    zeros: int
    parameters: int
    layer: int | None = None
    """Index of the decoder block it belongs to."""
    kind: str | None = None
    """``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down``, ..., ``embedding``, ``norm``."""
    linear: bool = False
    """Whether it is the weight of a linear layer inside a decoder block."""
    tied_to: str | None = None
    """Name of the tensor that it shares its memory with, and which is counted in its place."""
    mask_sha256: str | None = None
    nm_groups: dict[str, int] = Field(default_factory=dict)
    """``"2:4"`` -> groups that comply (all-zero groups included)."""
    nm_total: dict[str, int] = Field(default_factory=dict)
    """``"2:4"`` -> groups in all; a ragged last group counts as one."""
    nm_empty: dict[str, int] = Field(default_factory=dict)
    """``"2:4"`` -> groups that are all zero."""
    pattern: str | None = None
    """The tightest N:M pattern that holds in all groups."""
    blocks: BlockTiers | None = None
    rows: int | None = None
    """Rows (output neurons) of a matrix, of all experts together where they are stacked."""
    columns: int | None = None
    """Columns (input features) of a matrix, of all experts together where they are stacked."""
    empty_rows: int | None = None
    """Rows (output neurons) that are all zero."""
    empty_columns: int | None = None
    """Columns (input features) that are all zero."""
    heads: int | None = None
    """Slices of an attention projection that belong to one head (rows of q, k and v, columns of
    o), where the config tells the heads' size."""
    empty_heads: int | None = None
    """Slices of one head that are all zero."""
    nonfinite: int = 0
    """NaN or infinite weights."""


class LayerSparsity(_Frozen):
    """The linear layers of one decoder block."""

    layer: int
    zeros: int
    parameters: int


class SparsityResult(_Frozen):
    """Exact zeros in the stored weights.

    ``linear`` counts the linear layers inside the decoder blocks (wanda's ``check_sparsity``,
    the headline figure), ``total`` every parameter once (tied weights once).
    """

    linear: ZeroCount
    total: ZeroCount
    layers: tuple[LayerSparsity, ...] = ()
    kinds: dict[str, ZeroCount] = Field(default_factory=dict)
    """Module kind -> count, over the linear layers of the decoder blocks."""
    pattern: str | None = None
    """N:M pattern that holds in every pruned linear layer of the decoder blocks, if one does."""
    tensors: tuple[TensorSparsity, ...] = ()
    """One entry a tensor. Empty in ``record.json``; whole in ``sparsity.json``."""


class PerplexityResult(_Frozen):
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


class DivergenceResult(_Frozen):
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


class KeptTopk(_Frozen):
    """What ``tokens/<corpus>.topk.npz`` holds."""

    k: int
    bytes: int
    """Size of the file."""
    covered: float
    """Mean probability of the k tokens together."""


class TaskResult(_Frozen):
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


class Alarm(_Frozen):
    """Something about the weights or answers that contradicts what the run is said to be."""

    code: str
    """``not-pruned``, ``target-missed``, ``pattern-broken``, ``weights-unchanged``,
    ``answers-unchanged``, ``zeros-outside``, ``nonfinite-weights`` or ``all-zero``."""
    message: str
    """One sentence without a full stop, with the figures and the first tensor's name."""


class Breakage(_Frozen):
    """Where NaN or infinity was seen first."""

    stage: Stage
    where: str
    """For example ``wikitext2 window 3`` or ``boolq document 17``."""
    what: str
    """For example ``NaN logits``."""


class Provenance(_Frozen):
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


class FailureInfo(_Frozen):
    """Why an evaluation failed."""

    type: str
    message: str
    stage: str | None = None


class EvalRecord(_Frozen):
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


class RunRef(_Frozen):
    """A run on a tracking server."""

    run_id: str
    experiment_id: str
    run_name: str
    tracking_uri: str
    url: str | None = None
    """Address of the run's page; None for a store without a server."""


# --- identity, reading and writing --------------------------------------------------------------


def new_record_id() -> str:
    """A fresh id for a record: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def utc_now() -> datetime:
    """The present time, with its zone."""
    return datetime.now(UTC)


def canonical_hash(value: Any) -> str:
    """sha256 of a JSON value in one canonical spelling (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file whole: temporary name, fsync, rename. Readers never see half of it.

    Raises:
        OutputError: the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}",
            hint="Check the folder's permissions and the free disk space",
        ) from error


def _file_name(name: str, suffix: str) -> str:
    return re.sub(r"[^\w.\-]", "_", name)[:120] + suffix


def samples_path(directory: Path, task: str) -> Path:
    """Where a record directory keeps the documents of a task (see :data:`SAMPLES_COLUMNS`)."""
    return directory / "samples" / _file_name(task, ".parquet")


def tokens_path(directory: Path, corpus: str) -> Path:
    """Where a record directory keeps the tokens of a corpus (see :data:`TOKENS_ARRAYS`)."""
    return directory / "tokens" / _file_name(corpus, ".npz")


def topk_path(directory: Path, corpus: str) -> Path:
    """Where a record directory keeps log-probabilities of a corpus (see :data:`TOPK_ARRAYS`)."""
    return directory / "tokens" / _file_name(corpus, ".topk.npz")


def write_record(directory: Path, record: EvalRecord) -> EvalRecord:
    """Write ``record.json`` (and ``sparsity.json``, where it has tensors) into ``directory``.

    Returns:
        The record as ``record.json`` holds it: its sparsity without the tensors.
    """
    if record.sparsity is not None and record.sparsity.tensors:
        write_file(directory / "sparsity.json", record.sparsity.model_dump_json(indent=1))
        slim = record.sparsity.model_copy(update={"tensors": ()})
        record = record.model_copy(update={"sparsity": slim})
    write_file(directory / "record.json", record.model_dump_json(indent=1))
    return record


def read_record(directory: Path) -> EvalRecord:
    """Read ``record.json`` from a record directory; the sparsity comes without its tensors.

    Raises:
        RecordError: there is none, it is damaged, or a newer prunescope wrote it.
    """
    path = directory / "record.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"no readable record at {path}: {error}") from error
    return parse_record(text, source=str(path))


def parse_record(text: str, *, source: str) -> EvalRecord:
    """Parse the text of a ``record.json``.

    Raises:
        RecordError: it is damaged, or a newer prunescope wrote it.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{source} is not JSON: {error}") from error
    if not isinstance(raw, Mapping):
        raise RecordError(f"expected a record in {source}, found {type(raw).__name__}")
    version = raw.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"{source} has record schema {version}, this prunescope reads up to {SCHEMA_VERSION}",
            hint="Install a newer prunescope",
        )
    try:
        return EvalRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{source} is not a record: {place}: {first['msg']}") from error


def read_tensors(directory: Path) -> SparsityResult:
    """Read ``sparsity.json``, one entry a tensor, from a record directory.

    Raises:
        RecordError: there is none, or it is damaged.
    """
    path = directory / "sparsity.json"
    try:
        return SparsityResult.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RecordError(f"no readable sparsity at {path}: {error}") from error
