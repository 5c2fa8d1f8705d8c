"""``python moto_server.py PORT``: moto's S3 on loopback, one request at a time.

moto looks for the object and then stores it, in two steps: of two PUTs with If-None-Match at once both may succeed, by
threads. One after another it keeps the condition, for PutObject and for CompleteMultipartUpload.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.threaded_moto_server import MotoRequestHandler, make_server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app


def serve(port: int) -> None:
    answer, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with turn:
            return list(answer(environ, start_response))

    make_server("127.0.0.1", port, app, True, request_handler=MotoRequestHandler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
