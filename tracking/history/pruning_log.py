"""``log_*.txt`` of wanda's ``main.py``: sparsity and perplexity, one row a method.

The file holds a header, ``method<TAB>actual_sparsity<TAB>ppl_test``, and rows (older versions
have no method: ``actual_sparsity<TAB>ppl``). The output of the program, kept in a file, is read
too; it may hold the zero-shot results as a Python dictionary.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from prunescope.records import TaskResult
from prunescope.tracking.history.outside import (
    METHODS,
    Evaluation,
    broken_perplexity,
    clean,
    folders,
    model_info,
    plausible_time,
    role_of,
    sparsity_share,
    task_result,
    unknown_perplexity,
)

__all__ = ["is_pruning_log", "read_pruning_log"]

_HEADER = re.compile(r"^(method[ \t]+)?actual_sparsity[ \t]+ppl(_test)?[ \t]*$", re.MULTILINE)
_CHECK = re.compile(r"^sparsity sanity check (\S+)\s*$", re.MULTILINE)
_PPL = re.compile(r"^(?:wikitext perplexity|ppl on wikitext) (\S+)\s*$", re.MULTILINE)
_MODEL = re.compile(r"^loading llm model (.+?)\s*$", re.MULTILINE)
_LAYOUT = re.compile(r"unstructured|(\d+)[:\-](\d+)")
_MAX_DICT = 200_000


def is_pruning_log(text: str) -> bool:
    """Whether a text is such a log."""
    return bool(_HEADER.search(text) or (_CHECK.search(text) and _PPL.search(text)))


def read_pruning_log(text: str, path: Path) -> list[Evaluation]:
    """One evaluation a row."""
    parents = folders(str(path.absolute().parent))
    pattern = next((m for p in reversed(parents[-3:]) if (m := _LAYOUT.fullmatch(p))), None)
    named = _MODEL.search(text)
    model = named.group(1) if named else _model_from(parents)
    ended = _written_at(path)
    tasks = _zero_shot(text)
    found: list[Evaluation] = []
    for method, share, value in _rows(text):
        role = role_of(share, "original")
        method = method or _method_of(parents)
        notes = ["perplexity at the window length of the pruning code, which the log does not tell"]
        notes += [] if named else ["model and pattern read from the log's folder"]
        found.append(
            Evaluation(
                side=f"{method} {share} {value} {len(found)}",
                model=model_info(model, "model"),
                started_at=ended,
                finished_at=ended,
                role=role,
                method=method if role == "pruned" else None,
                pattern=":".join(pattern.groups()) if pattern and pattern.group(1) else None,
                protocol={"ppl_corpus": "wikitext2", "requested_tasks": tuple(tasks)},
                sparsity=sparsity_share(share),
                perplexity={"wikitext2": unknown_perplexity(value)},
                tasks=tasks,
                broken=broken_perplexity(value),
                notes=tuple(notes),
            )
        )
    return found


def _rows(text: str) -> Iterator[tuple[str | None, float, float]]:
    """Method, sparsity and perplexity of each row."""
    header = _HEADER.search(text)
    if header is None:
        shares, values = _CHECK.findall(text), _PPL.findall(text)
        for share, value in zip(shares, values, strict=False):
            figures = _floats(share, value)
            if figures is not None:
                yield None, *figures
        return
    for line in text[header.end() :].lstrip("\r\n").splitlines():
        parts = line.split()
        figures = _floats(*parts[-2:]) if len(parts) in (2, 3) else None
        if figures is None or (len(parts) == 3) != bool(header.group(1)):
            break
        yield clean(parts[0]).lower()[:80] if len(parts) == 3 else None, *figures


def _floats(*texts: str) -> tuple[float, float] | None:
    try:
        share, value = (float(text) for text in texts)
    except ValueError:
        return None
    return (share, value) if 0 <= share <= 1 else None


def _written_at(path: Path) -> datetime | None:
    try:
        return plausible_time(path.stat().st_mtime)
    except OSError:
        return None


def _method_of(parents: list[str]) -> str | None:
    return next((p.lower() for p in reversed(parents[-3:]) if p.lower() in METHODS), None)


def _model_from(parents: list[str]) -> str:
    """wanda's scripts save under ``out/MODEL/PATTERN/METHOD/``."""
    for part in reversed(parents):
        if part.lower() not in METHODS and not _LAYOUT.fullmatch(part):
            return part
    return ""


def _zero_shot(text: str) -> dict[str, TaskResult]:
    """The tasks of the last dictionary of lm-eval results that the program printed."""
    found: dict[str, TaskResult] = {}
    for line in text.splitlines():
        if not line.startswith("{'results'") or len(line) > _MAX_DICT:
            continue
        try:
            printed = ast.literal_eval(re.sub(r": (nan|inf)\b", r": '\1'", line))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        results = printed.get("results") if isinstance(printed, dict) else None
        versions = printed.get("versions") if isinstance(printed, dict) else None
        for key, whole in results.items() if isinstance(results, Mapping) else ():
            name = clean(key)
            version = versions.get(key, "") if isinstance(versions, Mapping) else ""
            result = task_result(name, _texts(whole), version=clean(version))
            if result is not None:
                found[name] = result
    return found


def _texts(whole: Any) -> dict[str, Any]:
    return {str(k): v for k, v in whole.items()} if isinstance(whole, Mapping) else {}
