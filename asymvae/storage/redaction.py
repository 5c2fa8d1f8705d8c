"""URLs without what nobody else may read."""

from __future__ import annotations

import re
from typing import Final

_KEYS_IN_BUCKET: Final = re.compile(r"\b(s3a?|gcs|gs)://(?!arn:)[^/]*[:@]")


def redact(url: str) -> str:
    """The URL without credentials, query string and fragment: for records, logs and errors.

    A ``?`` that is a wildcard or part of a key stays, unless the URL is http(s) or a ``name=`` follows it.
    """
    if "://" not in url:
        return url
    # A secret key may have a slash in it, a bucket's name has no colon.
    url = re.sub(r"(\b(?:s3a?|gcs|gs)://)(?!arn:)[^/@:]*:[^@]*@", r"\1", url)
    url = re.sub(r"://[^/]*@", "://", url)
    if re.search(r"https?://", url):
        return re.split(r"[?#]", url, maxsplit=1)[0]
    return re.split(r"\?[^/?]*=|#[^/]*=", url, maxsplit=1)[0]


def redact_text(text: str) -> str:
    """A text in which every URL is redacted."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+", lambda match: redact(match[0]), text)


def refuse_credentials(url: str) -> None:
    """ValueError for credentials in the URL of a bucket: the clients would take them for its name, and say so aloud."""
    if _KEYS_IN_BUCKET.search(url):
        raise ValueError(
            f"{redact(url)} had credentials in it, which no client of a bucket reads there: set them in the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), in a profile, or in fsspec's configuration"
        )
