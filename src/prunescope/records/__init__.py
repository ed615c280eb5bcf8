"""The values that cross the seams between evaluating, tracking and comparing.

An :class:`EvalRecord` is the authority over one evaluation; MLflow's params, metrics and tags
are an index over it. All models are frozen, refuse unknown fields, and survive a round trip
through JSON exactly: NaN and infinity are written as the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"``, which standard JSON parsers read.
"""

from __future__ import annotations

from prunescope.records.config import (
    DEFAULT_TASKS,
    EvalConfig,
    Labels,
    Role,
    Stage,
)
from prunescope.records.files import (
    SAMPLES_COLUMNS,
    TOKENS_ARRAYS,
    TOPK_ARRAYS,
    canonical_hash,
    new_record_id,
    parse_record,
    read_record,
    read_tensors,
    samples_path,
    tokens_path,
    topk_path,
    utc_now,
    write_file,
    write_record,
)
from prunescope.records.redacted import without_secrets
from prunescope.records.results import (
    SCHEMA_VERSION,
    Alarm,
    Breakage,
    DivergenceResult,
    EvalRecord,
    FailureInfo,
    KeptTopk,
    ModelInfo,
    PerplexityResult,
    Protocol,
    Provenance,
    RunRef,
    TaskProtocol,
    TaskResult,
)
from prunescope.records.zeros import (
    BlockTiers,
    LayerSparsity,
    SparsityResult,
    TensorSparsity,
    ZeroCount,
)

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
    "without_secrets",
    "write_file",
    "write_record",
]
