"""Say in one line why a model could not be had from the hub."""

from __future__ import annotations

import errno
from collections.abc import Collection

from prunescope.errors import ModelError
from prunescope.evaluate.loading.address import HubModel, hub_endpoint

__all__ = ["explain", "no_weights", "status_of", "transport_errors"]

_DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)


def transport_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub's HTTP client raises, whichever it is (requests, httpx, ...)."""
    from huggingface_hub import errors

    bases: tuple[type, ...] = errors.HfHubHTTPError.__bases__
    return (*(base for base in bases if issubclass(base, Exception)), errors.HfHubHTTPError)


def status_of(error: Exception) -> int | None:
    """The HTTP status that the error came with; None where there was no answer."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def explain(model: HubModel, error: Exception) -> ModelError:
    """One line on what the hub said, or that it said nothing, and what can be done."""
    from huggingface_hub import errors

    endpoint = hub_endpoint()
    status = status_of(error)
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{model.id} is gated on {endpoint}: access is refused ({status})",
            hint=f"Accept its terms at {endpoint}/{model.id} and set HF_TOKEN to your token",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            f"{model.id} has no revision {model.revision!r} on {endpoint}",
            hint=f"Its branches, tags and commits are listed at {endpoint}/{model.id}/tree/main",
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return ModelError(
            f"no model {model.id!r} on {endpoint} and no such folder here",
            hint="Check the spelling; for a private model set HF_TOKEN",
        )
    if status in (401, 403):
        return ModelError(
            f"{endpoint} refuses access to {model.id} ({status})",
            hint="Set HF_TOKEN to a token that may read it",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelError(
            f"{model} is neither a folder here nor in the hub's cache, and the hub is switched off"
            " (HF_HUB_OFFLINE)",
            hint="Give a local folder, or unset HF_HUB_OFFLINE to download it",
        )
    if status is not None:
        return ModelError(
            f"the hub at {endpoint} failed with status {status} for {model}",
            hint="Try again later, give a local folder, or name a mirror with HF_ENDPOINT",
        )
    return _no_answer(model, error)


def _no_answer(model: HubModel, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        where = error.filename or "the cache"
        return ModelError(
            f"cannot store {model.id} in {where}: {error.strerror}",
            hint="Choose another folder for downloads with --cache-dir or HF_HOME",
        )
    if isinstance(error, ValueError | TypeError | KeyError):
        return ModelError(
            f"what answers at {hub_endpoint()} is not a Hugging Face hub ({reason})",
            hint="Check HF_ENDPOINT and the proxy settings",
        )
    return ModelError(
        f"{model} is neither a folder here nor in the hub's cache, and the hub at {hub_endpoint()}"
        f" cannot be reached ({reason})",
        hint="Give a local folder, or name a mirror that can be reached with HF_ENDPOINT",
    )


def no_weights(model: HubModel, names: Collection[str]) -> ModelError:
    """A repository without weights that can be read, and what it has instead."""
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if gguf:
        return ModelError(
            f"{model} has GGUF files and no safetensors: {', '.join(gguf[:4])}",
            hint="Download one of them and give its path",
        )
    return ModelError(
        f"{model} has no weights in safetensors or PyTorch (.bin) form",
        hint="Found: " + (", ".join(sorted(names)[:8]) or "no files"),
    )
