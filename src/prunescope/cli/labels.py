"""What the user says about a run, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from prunescope.errors import SettingError
from prunescope.records import Labels
from prunescope.redaction import redact

__all__ = ["check_labels"]


def check_labels(
    role: str | None = None,
    method: str | None = None,
    target_sparsity: float | None = None,
    pattern: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Labels:
    """The labels of a run.

    Raises:
        SettingError: a role, sparsity or pattern that cannot be.
    """
    known: dict[str, Literal["original", "pruned"]] = {"original": "original", "pruned": "pruned"}
    if role is not None and role not in known:
        raise SettingError(f"--role takes original or pruned, found '{role}'")
    if target_sparsity is not None and not 0 <= target_sparsity <= 1:
        raise SettingError(
            f"--target-sparsity is a fraction from 0 to 1, found {target_sparsity:g}",
            hint="Write 0.5 for 50 %",
        )
    if pattern is not None:
        from prunescope.evaluate.sparsity.alarms import check_pattern

        pattern = check_pattern(pattern)
    # Without secrets already here: what a record says is compared with these later.
    return Labels(
        role=known[role] if role else None,
        method=redact(method) if method else method,
        target_sparsity=target_sparsity,
        pattern=pattern,
        run_name=redact(run_name) if run_name else run_name,
        tags={redact(key): redact(value) for key, value in (tags or {}).items()},
    )
