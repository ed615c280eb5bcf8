"""Reading ``deploy/compose.yaml`` as Docker Compose does, without Docker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["DEPLOY", "interpolate", "read_compose", "read_settings"]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<rest>[^}]*))?\})")


def interpolate(text: str, settings: Mapping[str, str]) -> str:
    """Put settings in the place of ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``.

    Raises:
        ValueError: one that must be set is not, or is empty.
    """

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        given = settings.get(found["name"], "")
        if found["kind"] == ":-":
            return given or found["rest"]
        if found["kind"] == ":?" and not given:
            raise ValueError(f"{found['name']}: {found['rest']}")
        return given

    return _VARIABLE.sub(value, text)


def read_compose(settings: Mapping[str, str]) -> dict[str, Any]:
    """The services, networks and volumes, with ``settings`` in their places."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(interpolate(text, settings))
    return found


def read_settings() -> dict[str, str]:
    """The names of ``.env.example`` and their defaults, empty where there is none."""
    lines = (DEPLOY / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line.strip() and not line.startswith("#")]
    return {name: value for name, _, value in pairs}
