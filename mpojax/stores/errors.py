"""Errors of the clients of stores: which may go away, and what each means in one line."""

import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

# Seconds after which a store that does not answer is given up, by this machine's monotonic clock.
# The clients try a few times themselves, for up to half a minute each time.
PATIENCE = float(os.environ.get("MPOJAX_STORE_PATIENCE") or 120.0)
# What went wrong, by the name of an error's class or of one of its bases.
_REFUSED = {
    "PermissionError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "RefreshError",
}
_UNREACHED = {
    "ClientError",  # of aiohttp: refused and broken connections; of botocore, see `_code`
    "ConnectionError",
    "HTTPClientError",
    "RequestException",
    "TimeoutError",
}
_STATUS_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_STATUS_UNREACHED = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")
_OWN_MEANING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


_is_given_up = False


def attempt(path: Any, action: Callable[[], Any]) -> Any:
    """The result of an action, tried again while the store does not answer, but not for ever.

    Raises:
      FileNotFoundError, FileExistsError: as the store says.
      PermissionError: the store refuses.
      ConnectionError: it has not answered for `PATIENCE` seconds.
    """
    global _is_given_up
    start, wait = time.monotonic(), 0.5
    while True:
        try:
            found, _is_given_up = action(), False
            return found
        except Exception as error:
            if _meaning(error) is not ConnectionError:
                raise explain(error, path) from error
            if _is_given_up or time.monotonic() - start > PATIENCE:
                _is_given_up = True  # what ends the process does not wait as long once more
                raise explain(error, path) from error
            logging.warning("%s: the store does not answer (%s); trying again", path, _line(error))
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, 15.0)


def explain(error: Exception, path: Any) -> Exception:
    """The error to raise in place of that of a client: of a kind users know, in one line."""
    kind = _meaning(error)
    if kind is PermissionError:
        return PermissionError(
            f"{path}: the store refuses ({_line(error)}); see that these credentials may list, "
            "read, write and delete objects in the bucket (gcloud auth application-default login, "
            "or the variables AWS_...)"
        )
    if kind is ConnectionError:
        return ConnectionError(
            f"{path}: the store does not answer ({_line(error)}), given up after {PATIENCE:.0f} s; "
            "what was saved before is whole, and the same command resumes from it"
        )
    if kind is FileNotFoundError:
        return FileNotFoundError(f"no object {path}, or no such bucket")
    known = isinstance(error, (OSError, ValueError, ImportError))
    return error if known else OSError(f"{path}: {_line(error)}")


def is_outage(error: Exception) -> bool:
    """True where the store does not answer or refuses, which says nothing about its objects."""
    return _meaning(error) in (ConnectionError, PermissionError)


def _meaning(error: Exception) -> type[Exception] | None:
    """PermissionError, ConnectionError (it may go away), an error of files, or None."""
    if isinstance(error, _OWN_MEANING):
        return type(error)
    names = {base.__name__ for each in _chain(error) for base in type(each).__mro__}
    # Clients wrap errors in others, without their status: of s3fs 400 comes as one of the system.
    text, code = str(error), next(filter(None, map(_code, _chain(error))), 0)
    if code in (401, 403) or names & _REFUSED or text.startswith("Forbidden"):
        return PermissionError
    if code == 404 or "NoSuchBucket" in text:
        return FileNotFoundError
    if code in (408, 429) or code >= 500 or (not code and names & _UNREACHED):
        return ConnectionError
    # How the array writer reports them.
    if text.startswith(_STATUS_REFUSED):
        return PermissionError
    if text.startswith(_STATUS_UNREACHED):
        return ConnectionError
    return None


def _code(error: BaseException) -> int:
    """The HTTP status that an error of a client is about; 0 where there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # of botocore
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    code = getattr(error, "code", None)
    return int(code) if isinstance(code, (int, str)) and str(code).isdigit() else 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
