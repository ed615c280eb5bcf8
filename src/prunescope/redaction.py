"""Taking passwords and tokens out of text that is written down or shown."""

from __future__ import annotations

import base64
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from urllib.parse import unquote

__all__ = ["redact", "redact_command"]

_REMOVED = "***"

_SECRET_NAME = re.compile(
    r"token(?!iz)|passw|passphrase|secret|api[_-]?key|private[_-]?key|credential|authorization",
    re.IGNORECASE,
)
_PLACE_NAME = re.compile(r"(path|file|dir|folder|url|uri|tokens)$", re.IGNORECASE)
"""Variables that say where a secret lies, or count tokens."""
_SHORTEST = 6
"""A value with fewer characters also stands for something else: it is only hidden in its place."""

# A user and password end at the last "@" before the path; one with a raw "/" is hidden as well,
# unless it may be a port.
_USER_INFO = re.compile(r"(?<=://)(?:[^/\s@:]*:(?!\d+/)[^\s@]*@(?:[^/\s@?#]*@)*|[^/\s@]*@)+")
_PASSWORD = re.compile(r"://([^/\s@:]*):(?!\d+/)([^/\s]+)@")
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:hf_|api_org_)[A-Za-z0-9]{16,}"
    r"|sk-[\w-]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)
_HEADER = re.compile(r"(?i)(authorization\W{1,6}(?:basic|bearer)\s+)[\w+/=.~-]+")
# In an argument anything that begins like a token is one: nobody has checked it yet.
_ARGUMENT = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|glpat-|xox[bp]-)[\w-]{8,}")


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """``text`` without secrets.

    That is: users and passwords in addresses, tokens by their known beginnings, authorization
    headers, and wherever they stand the values of environment variables whose names speak of a
    token, password, secret or key, and the passwords of addresses in the environment or on this
    process's command line, also percent-encoded and as basic authentication sends them.

    Args:
        text: what is to be shown or written.
        environment: the process's own by default.
    """
    for value in _known_secrets(environment):
        if value in text:
            text = text.replace(value, _REMOVED)
    text = _HEADER.sub(rf"\g<1>{_REMOVED}", text) if "uthorization" in text.lower() else text
    return _TOKENS.sub(_shown_token, _USER_INFO.sub("", text) if "://" in text else text)


def redact_command(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command line as one string, with whatever looks like a secret replaced by ``***``.

    Besides what :func:`redact` hides, that is the value of an option whose name speaks of a
    token, password, secret or key, and anything that begins as tokens do (``hf_``, ``sk-``, ...).
    """
    cleaned: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next:
            cleaned.append(_REMOVED)
            hide_next = False
        elif equals and _SECRET_NAME.search(name):
            cleaned.append(f"{name}={_REMOVED}")
        else:
            hide_next = _takes_a_secret(argument)
            shown = redact(argument, environment)
            marked = f"://{_REMOVED}@" if "@" in argument and "@" not in shown else "://"
            cleaned.append(_ARGUMENT.sub(_REMOVED, shown.replace("://", marked)))
    return shlex.join(cleaned)


def _shown_token(match: re.Match[str]) -> str:
    return f"hf_{_REMOVED}" if match.group().startswith("hf_") else _REMOVED


def _takes_a_secret(argument: str) -> bool:
    return argument.startswith("--") and bool(_SECRET_NAME.search(argument))


def _known_secrets(environment: Mapping[str, str] | None) -> list[str]:
    """Longest first, so that none is left as the end of another."""
    values = os.environ if environment is None else environment
    found = {
        value
        for name, value in values.items()
        if _SECRET_NAME.search(name) and not _PLACE_NAME.search(name) and not _counts(name, value)
    }
    named = {values.get("MLFLOW_TRACKING_USERNAME"): values.get("MLFLOW_TRACKING_PASSWORD")}
    found |= {_basic(f"{user}:{password}") for user, password in named.items() if user and password}
    arguments = sys.argv if environment is None else ()
    found |= set(_in_addresses((*values.values(), *arguments)))
    found |= set(_after_secret_options(arguments))
    return sorted((one for one in found if len(one) >= _SHORTEST), key=len, reverse=True)


def _counts(name: str, value: str) -> bool:
    """Whether it is a number of tokens (``MAX_TOKEN_LENGTH``); a password may be a number."""
    return value.isdigit() and "token" in name.lower()


def _in_addresses(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if "://" not in text or "@" not in text:
            continue
        for match in _PASSWORD.finditer(text):
            user, password = match.groups()
            yield from (password, unquote(password))
            yield _basic(f"{unquote(user)}:{unquote(password)}")


def _after_secret_options(arguments: Sequence[str]) -> Iterator[str]:
    for before, argument in pairwise(arguments):
        name, _, value = argument.partition("=")
        if value and _SECRET_NAME.search(name):
            yield value
        if _takes_a_secret(before) and "=" not in before:
            yield argument


def _basic(credentials: str) -> str:
    """What follows ``Authorization: Basic``."""
    return base64.b64encode(credentials.encode("utf-8", "surrogateescape")).decode()
