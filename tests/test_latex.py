"""LaTeX tables go through pdflatex as they are, whatever a name holds."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.golden import GOLDEN
from support.records import original_record, pruned_record

from prunescope.compare.delta import compare_records
from prunescope.compare.formats import escape_latex, latex_report
from prunescope.records import EvalRecord

needs_pdflatex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-base)"
)

SPECIAL = (
    r"\input{x} $a_1^2$ 50% #1 ~^ {\bf y} a & b | <c> -- '' ``q`` ?` !`"
    " \xc5 \xe9 \xd7 \xb1 \u2265 \u2026 \u22125"
)


def compiled(folder: Path, body: str) -> str:
    """What pdflatex says of a document with this body; it must end without an error."""
    text = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (folder / "paper.tex").write_text(f"{text}{body}\n\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run(
        [*command, "paper.tex"], cwd=folder, capture_output=True, check=False, timeout=60
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-2000:]
    assert (folder / "paper.pdf").stat().st_size > 1000
    return (folder / "paper.log").read_text(encoding="utf-8", errors="replace")


@needs_pdflatex
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.tex")), ids=lambda path: path.stem)
def test_every_golden_table_compiles(path: Path, tmp_path: Path) -> None:
    log = compiled(tmp_path, path.read_text(encoding="utf-8"))
    assert "Missing character" not in log
    assert log.count("Undefined control sequence") == 0
    # A leaderboard over seven tasks wants a landscape page or table*.
    assert "Overfull" not in log or path.stem == "leaderboard"


def named(record: EvalRecord, name: str) -> EvalRecord:
    model = record.model.model_copy(update={"name": name})
    return record.model_copy(update={"model": model, "tasks": {name: record.tasks["boolq"]}})


@needs_pdflatex
def test_names_full_of_special_characters_compile(tmp_path: Path) -> None:
    comparison = compare_records(
        named(original_record(), SPECIAL),
        named(pruned_record(), f"[{SPECIAL}"),
        now=datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC),
    )
    text = latex_report(comparison)
    assert "pdflatex lacks" not in text
    assert "Missing character" not in compiled(tmp_path, text)


@needs_pdflatex
def test_every_letter_that_is_not_warned_of_compiles(tmp_path: Path) -> None:
    letters = [chr(code) for code in range(0x20, 0x180)] + [
        *"\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u0394\u2212\u2026\u2265"
    ]
    known = [c for c in letters if "pdflatex lacks" not in latex_of(c)]
    assert len(known) > 320
    log = compiled(tmp_path, "\n\n".join(f"x{escape_latex(c)}x" for c in known))
    assert "Missing character" not in log


def latex_of(name: str) -> str:
    record = named(original_record(), name)
    return latex_report(compare_records(record, record, now=datetime(2026, 3, 14, tzinfo=UTC)))


def test_letters_beyond_are_warned_of_in_a_comment() -> None:
    assert latex_of("模型").count("% has letters that pdflatex lacks") == 2
    assert "pdflatex lacks" not in latex_of("Llama-2-7b")
