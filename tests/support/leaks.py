"""Everything that lies in a folder as text, however it is packed, searched for secrets."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

__all__ = ["Leak", "leaks_in", "leaks_in_text", "spellings"]

Leak = tuple[str, str]
"""Where, and which secret."""

_DEFLATED = re.compile(rb"deflate;([A-Za-z0-9+/=]+)")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}={0,2}")
_MOST_NESTED = 4


def spellings(secret: str) -> set[bytes]:
    """A secret as it is, percent-encoded, in JSON, as numpy keeps text, in base64 anywhere."""
    found = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}
    plain = {one.encode() for one in found}
    plain |= {secret.encode("utf-16-le"), secret.encode("utf-32-le")}
    return plain | {_inner_base64(b"x" * shift + secret.encode(), shift) for shift in range(3)}


def _inner_base64(content: bytes, shift: int) -> bytes:
    """The characters that only the secret decides, whatever stands before and after it."""
    coded = base64.b64encode(content).rstrip(b"=")
    return coded[(8 * shift + 5) // 6 : 8 * len(content) // 6]


def leaks_in_text(text: str, secrets: dict[str, str], place: str = "output") -> list[Leak]:
    """The secrets that a text holds."""
    return _found(place, text.encode("utf-8", "surrogatepass"), secrets)


def leaks_in(folder: Path, secrets: dict[str, str]) -> list[Leak]:
    """Where the files under ``folder``, or their names, hold a secret.

    Args:
        folder: searched to its depth; links are not followed.
        secrets: what a secret is called -> the secret.
    """
    found: list[Leak] = []
    for path in sorted(folder.rglob("*")):
        place = str(path.relative_to(folder))
        found += _found(f"name of {place}", place.encode("utf-8", "surrogatepass"), secrets)
        if path.is_file() and not path.is_symlink():
            for where, content in _opened(place, path.read_bytes(), path):
                found += _found(where, content, secrets)
    return found


def _found(place: str, content: bytes, secrets: dict[str, str]) -> list[Leak]:
    return [
        (place, name)
        for name, secret in secrets.items()
        if any(spelling in content for spelling in spellings(secret))
    ]


def _opened(
    place: str, content: bytes, path: Path | None = None, depth: int = 0
) -> Iterator[tuple[str, bytes]]:
    """The bytes themselves, and whatever is packed in them."""
    yield place, content
    if depth > _MOST_NESTED:
        return
    inner: list[tuple[str, bytes]] = []
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            inner = [(name, archive.read(name)) for name in archive.namelist()]
    elif content.startswith(b"\x1f\x8b"):
        inner = [("gzip", gzip.decompress(content))]
    elif content.startswith(b"PAR1"):
        inner = [("parquet", _parquet_text(content))]
    elif content.startswith(b"SQLite format 3\0") and path is not None:
        inner = [("database", _database_text(path))]
    elif content[257:262] == b"ustar":
        inner = list(_tar_members(content))
    for match in _DEFLATED.finditer(content):
        inner.append(("deflated", zlib.decompress(base64.b64decode(match.group(1)))))
    for match in _BASE64.finditer(content):
        coded = match.group().rstrip(b"=")
        whole = coded[: len(coded) // 4 * 4]
        inner.append(("base64", base64.b64decode(whole)))
    for name, packed in inner:
        if name == "base64":
            yield f"{place}:{name}", packed
        else:
            yield from _opened(f"{place}:{name}", packed, None, depth + 1)


def _tar_members(content: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def _parquet_text(content: bytes) -> bytes:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(content))
    rows = file.read().to_pylist()
    about = {k.decode(): v.decode() for k, v in (file.metadata.metadata or {}).items()}
    return json.dumps([about, rows], ensure_ascii=False, default=str).encode()


def _database_text(path: Path) -> bytes:
    lines: list[str] = []
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            rows = connection.execute(f'SELECT * FROM "{table}"')
            lines += [f"{table}: {value}" for row in rows for value in row if value is not None]
    return "\n".join(lines).encode("utf-8", "replace")
