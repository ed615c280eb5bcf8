"""``prunescope ui``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated

import typer

from prunescope.cli import options
from prunescope.errors import SettingError, TrackingError

__all__ = ["ui_command"]


def ui_command(
    port: Annotated[int, typer.Option("--port", "-p", help="Port on this machine.")] = 5000,
    tracking_uri: options.TrackingUri = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the runs of the embedded store in a browser: MLflow's own pages, on 127.0.0.1.

    Of a tracking server, which has its own pages, the links are printed. --json and --quiet print
    the links alone, once the pages answer.

    Examples:

        prunescope ui

        prunescope ui --port 5001

        prunescope ui --tracking-uri http://mlflow.lab:5000 --json
    """
    from prunescope.cli.console import Output
    from prunescope.tracking.store import open_store

    if not 1 <= port <= 65535:
        raise SettingError(f"--port takes 1 to 65535, found {port}")
    store = open_store(tracking_uri, root=options.DEFAULT_ROOT)
    output = Output(as_json, quiet)

    def show_links(address: str) -> None:
        links = store.experiment_links(address)
        output.show(
            lambda: [f"{name}  {link}" for name, link in links],
            document=lambda: {
                "address": address,
                "experiments": [{"name": name, "url": link} for name, link in links],
            },
            essential=lambda: [link for _, link in links],
        )

    if store.uri.startswith(("http://", "https://")):
        output.note(f"{store.uri} has its own pages:")
        show_links(store.uri)
        return
    _check_free(port)
    address = f"http://127.0.0.1:{port}"
    output.note(f"starting MLflow at {address} (stop it with Ctrl+C)")
    raise typer.Exit(
        _serve(store.uri, str(store.artifact_location), port, lambda: show_links(address))
    )


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(
                f"port {port} of this machine is taken", hint=f"Use --port {port + 1}"
            ) from error


def _serve(uri: str, artifacts: str, port: int, ready: Callable[[], None]) -> int:
    """Run the server until it ends; ``ready`` is called once its pages answer."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--default-artifact-root", artifacts, "--host", "127.0.0.1", "--port", str(port)]
    # Job execution costs 1.5 GB of worker processes that nothing here uses.
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **os.environ,
    }
    server = subprocess.Popen(command, env=environment, stdout=2)  # stdout is for the links
    try:
        while server.poll() is None and not _answers(port):
            time.sleep(0.2)
        if server.poll() is None:
            ready()
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        return 0


def _answers(port: int) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
