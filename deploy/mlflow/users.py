"""Accounts of the MLflow server in whose container this runs, as its user ``admin``.

python users.py add NAME                          a new user; asks for the password
python users.py password NAME                     another password for a user
python users.py grant NAME EXPERIMENT [EDIT]      what a user may do with an experiment:
                                                  READ, EDIT, MANAGE or NO_PERMISSIONS
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import Any

import requests

PERMISSIONS = ("READ", "EDIT", "MANAGE", "NO_PERMISSIONS")


def main(words: list[str]) -> str:
    """Carry out a command and return what was done; a refusal ends the program with a line."""
    given = _parser().parse_args(words)
    if given.command == "grant":
        query = {"experiment_name": given.experiment}
        found = _ask("GET", "2.0/mlflow/experiments/get-by-name", params=query)
        resource = {
            "resource_type": "experiment",
            "resource_id": found["experiment"]["experiment_id"],
        }
        wanted = {"username": given.name, "permission": given.permission}
        _ask("POST", "3.0/mlflow/users/permissions/grant", json=wanted | resource)
        return f"{given.name} has {given.permission} on {given.experiment}"
    account = {"username": given.name, "password": _password()}
    if given.command == "add":
        _ask("POST", "2.0/mlflow/users/create", json=account)
        return f"added {given.name}"
    _ask("PATCH", "2.0/mlflow/users/update-password", json=account)
    return f"{given.name} has another password"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("add", "password", "grant"):
        commands.add_parser(command).add_argument("name")
    commands.choices["grant"].add_argument("experiment")
    commands.choices["grant"].add_argument(
        "permission", nargs="?", default="EDIT", choices=PERMISSIONS
    )
    return parser


def _password() -> str:
    """From the terminal, unseen, or else the first line of the standard input."""
    if sys.stdin.isatty():
        return getpass.getpass()
    return sys.stdin.readline().rstrip("\n")


def _ask(method: str, path: str, **content: Any) -> Any:
    answer = requests.request(
        method,
        f"{os.environ['MLFLOW_OWN_ADDRESS']}/api/{path}",
        auth=("admin", os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]),
        timeout=30,
        **content,
    )
    if answer.ok:
        return answer.json() if answer.content else {}
    try:
        reason = answer.json()["message"]
    except (ValueError, KeyError):
        reason = answer.text
    sys.exit(f"refused (status {answer.status_code}): {reason}")


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
