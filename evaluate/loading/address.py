"""What a model is called on the Hugging Face hub, and where that hub is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HubModel", "hub_cache", "hub_endpoint", "parse_hub_id"]

# owner/name or name, each of letters, digits, "_", "-" and "." (the hub's own rule), @revision.
_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:@(?P<revision>[^\s@]+))?", re.ASCII)


@dataclass(frozen=True)
class HubModel:
    """A model's address on the hub."""

    id: str
    revision: str | None = None
    """Branch, tag or commit; None: the main branch."""

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def parse_hub_id(text: str) -> HubModel | None:
    """``owner/name`` or ``owner/name@revision``; None where the text is no hub id.

    >>> parse_hub_id("HuggingFaceTB/SmolLM2-135M@main").revision
    'main'
    >>> parse_hub_id("models/a/b") is None
    True
    """
    match = _HUB_ID.fullmatch(text)
    if match is None or ".." in match["id"] or "--" in match["id"] or len(match["id"]) > 96:
        return None
    return HubModel(match["id"], match["revision"])


def hub_endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, else huggingface.co."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def hub_cache() -> Path:
    """Folder that downloads go to: HF_HUB_CACHE, else in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
