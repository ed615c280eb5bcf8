"""What a record says about where it was made, and what it must never say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunescope.evaluate.provenance import collect_provenance
from prunescope.redaction import redact_command

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWx"


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "m", "--tracking-uri", "https://anna:hunter22@mlflow.lab/"],
        ["eval", "m", "--token", "hunter22"],
        ["eval", "m", "--api-key=hunter22"],
        ["eval", "m", "--tag", f"note={SECRET}"],
        ["eval", f"https://x/{SECRET}"],
    ],
)
def test_no_secret_survives_in_the_command_line(arguments: list[str]) -> None:
    text = redact_command(arguments, {})
    assert "hunter22" not in text
    assert SECRET not in text
    assert "***" in text


def test_values_of_secret_environment_variables_are_removed_wherever_they_stand() -> None:
    environment = {"MLFLOW_TRACKING_PASSWORD": "open-sesame", "HOME": "/home/anna"}
    text = redact_command(["eval", "/home/anna/open-sesame"], environment)
    assert text == "eval '/home/anna/***'"


def test_tokenizer_is_no_secret() -> None:
    arguments = ["eval", "m", "--tokenizer", "./tok", "--tokenizer=./tok"]
    assert redact_command(arguments, {}) == "eval m --tokenizer ./tok --tokenizer=./tok"


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzABC0123456789_-", min_size=12, max_size=40))
def test_hub_tokens_never_survive(tail: str) -> None:
    assert f"hf_{tail}" not in redact_command(["eval", f"hf_{tail}"], {})


def test_provenance_names_versions_and_hardware_and_is_json() -> None:
    found = collect_provenance(["prunescope", "eval", "m"])
    assert {"torch", "transformers", "lm-eval", "mlflow", "prunescope"} <= set(found.packages)
    assert int(found.hardware["cores"]) >= 1
    assert found.command == "prunescope eval m"
    assert json.loads(found.model_dump_json())["python"].count(".") == 2
