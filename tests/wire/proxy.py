"""A bad road to a good server: a loopback HTTP proxy that injects faults, seeded and counted.

It stands between a client and the S3 server of tests (:mod:`tests.object_store`). Requests are passed on untouched,
``Host`` included, so signatures hold: the client signs the proxy's address, and the server sees the same.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

# How a store is away: nobody listens; a connection is taken and never read; a request is read and never answered; an
# answer (an upload) stops in the middle.
Away = Literal["refused", "connect", "head", "answer's body", "upload's body"]

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_BLOCK = 64 * 1024


@dataclass
class Faults:
    """What happens to requests for which ``only(method, target)`` holds. Rates are of 1."""

    slow_down: float = 0.0  # 503 with S3's XML, the upload's body read and dropped
    reset_answer: float = 0.0  # RST in the middle of the answer's body
    reset_upload: float = 0.0  # RST in the middle of the request's body
    latency_s: float = 0.0  # before each answer
    bytes_per_s: float = 0.0  # of each body, both ways; 0: no limit
    only: Callable[[str, str], bool] = field(default=lambda method, target: True)


class _ClosedError(Exception):
    """A side hung up, or is hung up on."""


class FaultProxy:
    """Listens at ``url`` while it is open (a context manager). ``faults`` may be changed at any time.

    ``counts``: requests ("requests"), and each injected fault by its name in :class:`Faults` or :data:`Away`.
    """

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname
        assert parts.port
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        self._upstream = (parts.hostname, parts.port)
        self._random = random.Random(seed)
        self._places: dict[str, tuple[int, int]] = {}
        self._away: Away | None = None
        self.gone_at = 0.0  # on the monotonic clock
        self._trigger: tuple[Callable[[str, str], bool], Away] | None = None
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._port = 0
        self._listen()
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()

    @property
    def up(self) -> bool:
        """False while the store is away."""
        return self._away is None

    @contextlib.contextmanager
    def away(self, how: Away) -> Iterator[None]:
        """The store is away, and back at the end; connections of before and of meanwhile are reset."""
        self.go(how)
        try:
            yield
        finally:
            self.back()

    def go_at(self, request: Callable[[str, str], bool], how: Away) -> None:
        """The store goes away with the first request for which ``request(method, target)`` holds."""
        self._trigger = (request, how)

    def go(self, how: Away) -> None:
        self._away, self._trigger, self.gone_at = how, None, time.monotonic()
        if how == "refused":
            self._hang_up()

    def back(self) -> None:
        self._hang_up()
        self._away = self._trigger = None
        self._listen()

    # --- connections --------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        listener.listen(128)
        self._listener, self._port = listener, listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if listener is not self._listener:
                    _reset(client)
                    return
                self._sockets.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _hang_up(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            sockets, self._sockets = self._sockets, set()
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()
        for each in sockets:
            _reset(each)

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        try:
            if self._away == "connect":
                self._hold("connect", client)
            server = socket.create_connection(self._upstream)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets.add(server)
            up, down = _Wire(client), _Wire(server)
            while self._exchange(up, down):
                pass
        except (OSError, _ClosedError):
            pass
        finally:
            for each in (client, server):
                if each is not None:
                    _reset(each)
                    with self._lock:
                        self._sockets.discard(each)

    def _hold(self, name: Away, client: socket.socket) -> None:
        """Never another byte, until the client or the proxy hangs up."""
        self._count(name)
        while name != "upload's body" and client.recv(_BLOCK):
            pass
        while client.fileno() >= 0 and self._away == name:  # a client that isn't read isn't heard hanging up either
            time.sleep(0.05)
        raise _ClosedError

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _hit(self, kind: str, rate: float) -> bool:
        """For one of each ``1 / rate`` requests, at a random place among them: so few requests are hit as well."""
        if not rate:
            return False
        with self._lock:
            place, chosen = self._places.get(kind, (0, 0))
            if place == 0:
                chosen = self._random.randrange(max(1, round(1 / rate)))
            self._places[kind] = ((place + 1) % max(1, round(1 / rate)), chosen)
            return place == chosen

    # --- one request and its answer -----------------------------------------------------------------------------

    def _exchange(self, client: _Wire, server: _Wire) -> bool:
        """True: the connection may carry another."""
        head = client.head()
        method, target = head.split(b" ", 2)[:2]
        self._count("requests")
        faults = self.faults
        concerned = faults.only(method.decode(), target.decode())
        if self._trigger and self._trigger[0](method.decode(), target.decode()):
            self.go(self._trigger[1])
        if self._away == "head" and concerned:
            self._hold("head", client.socket)
        body = _body_of(head, request=True)
        slow_down = concerned and self._hit("slow_down", faults.slow_down)
        cut = body.size > 1 and concerned and self._hit("reset_upload", faults.reset_upload)
        stall = body.size > 1 and concerned and self._away == "upload's body"
        if slow_down:
            self._count("slow_down")
            # With the body unread, closing would be a reset that may overtake the answer.
            if _expects(head):
                client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            for _ in client.body(body):
                pass
            client.send(_answer(_SLOW_DOWN if method != b"HEAD" else b"", len(_SLOW_DOWN)))
            return True
        server.send(head)
        if _expects(head):
            interim = server.head()
            client.send(interim)
            if b" 100 " not in interim.split(b"\r\n", 1)[0]:
                self._pass_body(server, client, _body_of(interim, request=False), faults)
                return False
        half = body.size // 2 if cut or stall else None
        self._pass_body(client, server, body, faults, half)
        if stall:
            self._hold("upload's body", client.socket)
        if cut:
            self._count("reset_upload")
            return False
        answer = server.head()
        while b" 100 " in answer.split(b"\r\n", 1)[0]:
            answer = server.head()
        if faults.latency_s and concerned:
            self._count("latency")
            time.sleep(faults.latency_s)
        body = _body_of(answer, request=False, method=method)
        cut = body.size > 1 and concerned and self._hit("reset_answer", faults.reset_answer)
        stall = body.size > 1 and concerned and self._away == "answer's body"
        client.send(answer)
        self._pass_body(server, client, body, faults, body.size // 2 if cut or stall else None)
        if stall:
            self._hold("answer's body", client.socket)
        if cut:
            self._count("reset_answer")
            time.sleep(0.005)  # a reset takes back what the other side's kernel hasn't given its program
            return False
        return not body.until_close and b"connection: close" not in answer.lower()

    def _pass_body(self, source: _Wire, target: _Wire, body: _Body, faults: Faults, most: int | None = None) -> None:
        """All of a body, or its first ``most`` bytes."""
        passed = 0
        for block in source.body(body):
            if most is not None and passed + len(block) >= most:
                target.send(block[: most - passed])
                return
            target.send(block)
            passed += len(block)
            if faults.bytes_per_s:
                self._count("rate limit")
                time.sleep(len(block) / faults.bytes_per_s)


@dataclass(frozen=True)
class _Body:
    size: int = 0  # of a chunked one or one until the close, which isn't known: "large"
    chunked: bool = False
    until_close: bool = False


_UNKNOWN = 2**16


def _body_of(head: bytes, *, request: bool, method: bytes = b"") -> _Body:
    first, *lines = head.lower().split(b"\r\n")
    if not request and (method == b"HEAD" or first.split(b" ")[1] in (b"204", b"304")):
        return _Body()
    headers = dict(line.split(b":", 1) for line in lines if b":" in line)
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        return _Body(_UNKNOWN, chunked=True)
    if b"content-length" in headers:
        return _Body(int(headers[b"content-length"]))
    return _Body() if request else _Body(_UNKNOWN, until_close=True)


def _expects(head: bytes) -> bool:
    return b"\r\nexpect: 100-continue\r\n" in head.lower()


def _answer(content: bytes, length: int) -> bytes:
    head = "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nx-amz-request-id: faults\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode() + content


def _reset(connection: socket.socket) -> None:
    """RST, not FIN: what was sent and not yet read is lost with it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # A thread may be waiting in recv(), which keeps the socket open; half-closed, it wakes.
        connection.shutdown(socket.SHUT_RD)
    connection.close()


class _Wire:
    """One side's bytes, with what was read too far."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._ahead = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> bytes:
        """Through the empty line."""
        return self._through(b"\r\n\r\n")

    def body(self, body: _Body) -> Iterator[bytes]:
        """As it is on the wire, chunks' frames included."""
        if body.chunked:
            while True:
                line = self._through(b"\r\n")
                size = int(line.split(b";")[0], 16)
                yield line
                if size == 0:
                    break
                yield from self._exactly(size + 2)
            while (line := self._through(b"\r\n")) != b"\r\n":  # trailers
                yield line
            yield line
        elif body.until_close:
            with contextlib.suppress(_ClosedError):
                while True:
                    yield self._some(_BLOCK)
        else:
            yield from self._exactly(body.size)

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            block = self._some(min(size, _BLOCK))
            size -= len(block)
            yield block

    def _some(self, most: int) -> bytes:
        data = self._ahead or self.socket.recv(_BLOCK)
        if not data:
            raise _ClosedError
        self._ahead = data[most:]
        return data[:most]

    def _through(self, end: bytes) -> bytes:
        while end not in self._ahead:
            data = self.socket.recv(_BLOCK)
            if not data:
                raise _ClosedError
            self._ahead += data
        found, _, self._ahead = self._ahead.partition(end)
        return found + end
