"""Which errors of a store pass by themselves, and the back-off with which they are tried again."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final

import tenacity

log = logging.getLogger(__name__)

# A store that is away for a minute is waited for; one that stays away ends the operation, and so the shard's try.
GIVE_UP_AFTER_SECONDS: Final = 180.0  # no attempt begins later
LONGEST_WAIT_SECONDS: Final = 20.0  # between two attempts

# Of one request; see :mod:`asymvae.storage.clients`.
CONNECT_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 20.0  # without a byte of the answer
REQUEST_SECONDS: Final = 60.0  # until the answer's head (GCS: its end); an upload's body is at most 16 MiB
REQUEST_TRIES: Final = 3  # by S3's client, of what is refused, reset or answered by 5xx: within 3 s. Not of silence.

_TRANSIENT_CODES: Final = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "TooManyRequests",
        "OperationAborted",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "408",
        "409",
        "429",
        "500",
        "502",
        "503",
        "504",
    }
)
_TRANSIENT_STATUS: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_TRANSIENT_ERRNO: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,  # s3fs: SlowDown, 503, 409
        errno.EREMOTEIO,  # s3fs: InternalError, 500
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ESTALE,  # NFS
    }
)
_counting = threading.Lock()
_waits = 0
# The clients' own network errors, by name, so that no client need be installed: most are no OSError at all.
_TRANSIENT_NAMES: Final = frozenset(
    {
        "HTTPClientError",
        "ConnectionError",  # not the builtin alone: botocore's, of EndpointConnectionError
        "ClientConnectionError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ResponseParserError",
        "IncompleteRead",
        "IncompleteReadError",
        "FSTimeoutError",
        "TransportError",
    }
)
# Where a server did answer, what it said decides; else these never pass by themselves.
_PERMANENT: Final = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it was raised from: s3fs keeps the server's answer there."""
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        yield step
        step = step.__cause__


def server_answer(error: BaseException) -> tuple[int | None, str] | None:
    """``(HTTP status or None, code or "")`` of the answer behind an error; None if no server answered."""
    for step in causes(error):
        response: Any = getattr(step, "response", None)
        if isinstance(response, dict):  # botocore.exceptions.ClientError
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
        # Each client's own attribute alone: aiohttp's errors warn when they are asked for gcsfs's.
        attribute = {"HttpError": "code", "ClientResponseError": "status"}.get(type(step).__name__, "")
        code: Any = getattr(step, attribute, None) if attribute else None
        if isinstance(code, int):
            return code, ""
    return None


def is_transient(error: BaseException) -> bool:
    """True for what a later attempt may find gone: connections, time-outs, 5xx, SlowDown, 409, 429.

    Not for 403, 404, 412, a full disk or wrong arguments: those stay.
    """
    answer = server_answer(error)
    if answer is not None:
        return answer[0] in _TRANSIENT_STATUS or answer[1] in _TRANSIENT_CODES
    if isinstance(error, _PERMANENT):
        return False
    for step in causes(error):
        if isinstance(step, ConnectionError | TimeoutError | socket.gaierror):
            return True
        if isinstance(step, OSError) and step.errno in _TRANSIENT_ERRNO:
            return True
        if any(base.__name__ in _TRANSIENT_NAMES for base in type(step).__mro__):
            return True
    return False


def waits() -> int:
    """How often this process has waited for a store, so far."""
    return _waits


def _log_wait(state: tenacity.RetryCallState) -> None:
    global _waits
    with _counting:
        _waits += 1
    error = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    # The text of a store's error may hold a signed URL: its class is enough here.
    log.warning("storage: %s; attempt %d, again in %.1f s", type(error).__name__, state.attempt_number, wait)


def _give_up(state: tenacity.RetryCallState) -> None:
    """Raises the last error; fsspec's time-out, which has no words, in those of its cause."""
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    if isinstance(error, TimeoutError) and not str(error):
        words = next(filter(None, map(str, causes(error))), "the store stopped in the middle of an answer")
        raise TimeoutError(words) from error
    raise error


def longest_hold() -> float:
    """Seconds that a store which stays away can hold one operation, and with it one try of a shard.

    The last attempt begins before :data:`GIVE_UP_AFTER_SECONDS`. At worst it is a piece of an upload, which the store
    doesn't read, and then the request that aborts the upload, which it doesn't answer. A job tries a shard
    ``1 + ray.attempts`` times, and where OUT is away it gives up once more, on the record of the failure.

    gcsfs tries a silent store 6 times by itself, which can't be set: there an attempt may take 160 s.
    """
    return GIVE_UP_AFTER_SECONDS + REQUEST_SECONDS + SILENCE_SECONDS


def retrying() -> tenacity.Retrying:
    """Back-off for one operation: ``retrying()(function)``.

    The last error is raised as it is where the next attempt would begin after :data:`GIVE_UP_AFTER_SECONDS`;
    ``tenacity.TryAgain`` asks for another attempt.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_SECONDS),
        stop=tenacity.stop_before_delay(GIVE_UP_AFTER_SECONDS),
        before_sleep=_log_wait,
        retry_error_callback=_give_up,
    )
