"""The texts that perplexity is measured on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.errors import DataError
from prunescope.evaluate.data.folder import read_manifest, read_rows
from prunescope.evaluate.data.hub import datasets_cache, hub_error, hub_or_cache

__all__ = [
    "CORPORA",
    "Corpus",
    "hub_rows",
    "load_corpus",
    "raw_rows",
]


@dataclass(frozen=True)
class Corpus:
    """A text to measure perplexity on."""

    name: str
    """``wikitext2``, ``c4``, ``boolq-passages``, or a file's name with the start of its hash."""
    text: str
    source: str
    """Where it came from, for the record."""


@dataclass(frozen=True)
class _Recipe:
    """How a named corpus is made of the rows of a data set."""

    task: str
    """Name of its rows in a data folder; lm-eval has a task ``c4`` of its own."""
    split: str
    hub: Mapping[str, Any]
    """Arguments of ``datasets.load_dataset``."""
    column: str
    joint: str
    distinct: bool = False
    first: int | None = None
    is_task: bool = False
    """Whether its rows are those of the lm-eval task of the same name."""

    def join(self, rows: Iterable[Mapping[str, Any]]) -> str:
        texts = [str(row[self.column]) for row in rows]
        if self.distinct:
            texts = list(dict.fromkeys(texts))
        return self.joint.join(texts[: self.first])


CORPORA: Mapping[str, _Recipe] = {
    "wikitext2": _Recipe(
        task="wikitext2",
        split="test",
        hub={"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"},
        column="text",
        joint="\n\n",
    ),
    "c4": _Recipe(
        task="corpus-c4",
        split="validation",
        hub={
            "path": "allenai/c4",
            "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
        },
        column="text",
        joint=" ",
        first=1100,
    ),
    "boolq-passages": _Recipe(
        task="boolq",
        split="validation",
        hub={"path": "aps/super_glue", "name": "boolq"},
        column="passage",
        joint="\n\n",
        distinct=True,
        is_task=True,
    ),
}
"""The corpora that have a name.

- ``wikitext2``: the rows of WikiText-2's raw test split joined by two newlines, as GPTQ,
  SparseGPT and wanda take it.
- ``c4``: the first 1,100 documents of shard 0 of C4's English validation split joined by a
  blank, as GPTQ and wanda take it. They score its first 256 windows: ``--nsamples 256``.
- ``boolq-passages``: the distinct passages (Wikipedia text) of BoolQ's validation split in their
  order, joined by two newlines.
"""


def load_corpus(name: str, *, data_dir: Path | None, cache_dir: str | None) -> Corpus:
    """The text that perplexity is measured on.

    Args:
        name: one of :data:`CORPORA`, or the path of a text file (UTF-8).
        data_dir: a folder made by ``data pull``; then no network is used. None: the hub.
        cache_dir: where hub downloads go; Hugging Face's own cache when None.

    Raises:
        DataError: unknown name, unreadable or empty file, neither hub nor folder, or rows that
            the folder lacks or that are damaged.
    """
    recipe = CORPORA.get(name)
    if recipe is None:
        return _from_file(name)
    if data_dir is not None:
        return _from_folder(name, recipe, data_dir)
    return _from_hub(name, recipe, cache_dir)


def raw_rows(text: str) -> list[dict[str, str]]:
    """The rows that the hub's ``wikitext-2-raw-v1`` has for the text of ``wiki.test.raw``.

    A line keeps its leading blank and its trailing ``" \\n"``; a blank line is the empty string.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [{"text": line + "\n" if line.strip() else ""} for line in lines]


def _from_folder(name: str, recipe: _Recipe, data_dir: Path) -> Corpus:
    file = read_manifest(data_dir).splits(recipe.task).get(recipe.split)
    if file is None:
        raise DataError(f"{data_dir} has no rows for the corpus {name}", hint=_WITHOUT[name])
    rows = read_rows(data_dir, file)
    return Corpus(name, recipe.join(rows), f"folder: {file.source}")


_WITHOUT = {
    "wikitext2": "Add it with `prunescope data pull DIR --tasks wikitext2` where there is a hub, "
    "or with --wikitext FILE, or use --ppl-corpus boolq-passages",
    "c4": "Add it with `prunescope data pull DIR --tasks c4` where there is a hub, "
    "or use another --ppl-corpus",
    "boolq-passages": "Add it with `prunescope data pull DIR --tasks boolq`",
}


def _from_hub(name: str, recipe: _Recipe, cache_dir: str | None) -> Corpus:
    rows = hub_rows(name, recipe.hub, recipe.split, cache_dir)
    config = recipe.hub.get("name") or ""
    source = f"hub: {recipe.hub['path']} {config}".rstrip() + f", {recipe.split}"
    return Corpus(name, recipe.join(rows), source)


def hub_rows(name: str, hub: Mapping[str, Any], split: str, cache_dir: str | None) -> Any:
    """One split of a data set on the hub, as a ``datasets.Dataset``.

    Raises:
        DataError: the hub is out of reach, or does not give it.
    """
    from datasets import load_dataset

    with hub_or_cache(), datasets_cache(cache_dir):
        try:
            return load_dataset(**hub, split=split)
        except Exception as error:  # datasets raises many kinds
            known = hub_error(error, f"the corpus {name}")
            if known is None:
                raise
            raise known from error


def _from_file(name: str) -> Corpus:
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(
            f"expected a corpus ({', '.join(CORPORA)}) or a text file, found no file {name}",
            hint="Check --ppl-corpus",
        )
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8 text in {path}, found the byte 0x{content[error.start]:02x} "
            f"at offset {error.start}",
            hint="Convert the file, for example with iconv",
        ) from error
    if not text.strip():
        raise DataError(f"{path} holds no text")
    stem = re.sub(r"[^\w.\-]", "_", path.stem)
    return Corpus(f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}", text, f"file: {path.name}")
