"""What was asked for, and what the user says about it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "DEFAULT_TASKS",
    "EvalConfig",
    "Frozen",
    "Labels",
    "Role",
    "Stage",
]

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

Role = Literal["original", "pruned"]
Stage = Literal["load", "sparsity", "perplexity", "tasks"]


class Frozen(BaseModel):
    """A value that does not change, refuses unknown fields, and survives JSON exactly."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=()
    )


class EvalConfig(Frozen):
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
    checkpoint_every: float = 30.0
    """Seconds between two writes of a task's answers while it runs; 0 writes after each batch."""
    kl_reference: str | None = None
    """The original to take the token-level KL divergence from: a model as for ``model``, or a
    record directory, whose kept top-k log-probabilities are used, else the model that it names."""
    keep_topk: int | None = None
    """Keep each scored token's largest log-probabilities, this many, for later evaluations."""


class Labels(Frozen):
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
