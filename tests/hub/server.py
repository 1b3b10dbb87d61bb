"""The sockets of the loopback Hub: reads requests, breaks those that a test wants broken, keeps a record of all."""

import contextlib
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from .api import Account, Answer, Hub, HubError, content_bytes, error_answer
from .faults import Fault
from .repository import Repository


@dataclass
class Request:
    """One request; `status` is 0 where the connection was cut before an answer began."""

    method: str
    path: str  # unquoted, without the query
    query: str
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    content_in: int = 0  # bytes of files, without what is around them
    file: tuple[str, str, str] | None = None


class HubServer:
    """A Hub of its own on 127.0.0.1 at a free port, from construction to `close()`."""

    def __init__(self):
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []  # tracebacks of this server's own mistakes
        self.lock = threading.Lock()
        self._http = _Sockets(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.hub = Hub(self.url)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._http.connections):
            with contextlib.suppress(OSError):  # closed in the meantime
                connection.shutdown(socket.SHUT_RDWR)

    def add_user(self, name: str, token: str, role: str = "write", orgs=(), scopes=()) -> None:
        """Another token of a user; `scopes` such as `("repo.write",)` are those of `role="fineGrained"`."""
        self.hub.accounts[token] = Account(name, role, tuple(orgs), tuple(scopes))

    def create_repo(self, type: str, id: str, private: bool = False, files: dict | None = None) -> Repository:
        """A repository with one commit of these files."""
        with self.lock:
            sdk = "gradio" if type == "space" else None
            return self.hub.add(Repository(type, id, private, sdk), files or {})

    def repo(self, type: str, id: str) -> Repository:
        return self.hub.repositories[type, id]

    def uploaded_bytes(self) -> int:
        """Bytes of file content that came in since `requests` was cleared, whether or not they were kept."""
        return sum(request.content_in for request in self.requests)

    def downloads(self) -> list[tuple[str, str, str]]:
        """(repository type, id, path) for each GET that sent content of a file, parts of files too."""
        return [request.file for request in self.requests if request.file is not None]

    def fail(self, method: str, path_regex: str, **what) -> Fault:
        """Break the next `times` requests of this kind.

        Args:
            status: answer so, with `headers`, and do nothing.
            cut_after: break the connection after that many bytes: of the request's body where there is one, else of
                the answer's.
            delay_s: wait so long first; alone, the request then succeeds.
            after_commit: do what is asked, then break the connection instead of answering.
        """
        self.faults.append(Fault(method, path_regex, **what))
        return self.faults[-1]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.hits(method, path):
                    fault.times -= 1
                    return fault
        return None


class _Sockets(ThreadingHTTPServer):
    """Knows its open connections, as clients keep theirs for another request."""

    daemon_threads = True

    def __init__(self, *arguments):
        self.connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def get_request(self):
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    server_: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    def handle_request(self) -> None:
        server = self.server_
        path, _, query = self.path.partition("?")
        request = Request(self.command, unquote(path), query)
        server.requests.append(request)
        fault = server.take_fault(request.method, request.path)
        if fault is not None and fault.delay_s is not None:
            time.sleep(fault.delay_s)
        has_body = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        limit = fault.cut_after if fault is not None and has_body else None
        try:
            body = self.read_body(limit)
        except ConnectionError:
            self.close_connection = True
            return
        request.bytes_in = len(body)
        request.content_in = content_bytes(request.method, path, body)
        if limit is not None:
            self.reset()
            return
        refused = fault is not None and fault.status is not None
        answer = fault.answer() if refused else self.answer(path, query, body)
        if fault is not None and fault.after_commit:
            self.reset()
            return
        request.status = answer.status
        self.send(request, answer, None if fault is None else fault.cut_after)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def answer(self, path: str, query: str, body: bytes) -> Answer:
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            with self.server_.lock:
                return self.server_.hub.answer(self.command, path, query, headers, body)
        except Exception:
            self.server_.errors.append(traceback.format_exc())
            print(self.server_.errors[-1], file=sys.stderr)
            return error_answer(HubError(500, "a mistake of the test server"))

    def send(self, request: Request, answer: Answer, cut_after: int | None) -> None:
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        body = answer.body[:cut_after] if self.command != "HEAD" else b""
        if body and answer.file is not None:
            request.file = answer.file
        request.bytes_out = len(body)
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except ConnectionError:
            self.close_connection = True
        if cut_after is not None:
            self.close_connection = True

    def reset(self) -> None:
        """Break the connection as a crashed machine would: no last word, what is under way is lost."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())
        self.close_connection = True

    def read_body(self, limit: int | None) -> bytes:
        body = bytearray()
        for piece in self.pieces():
            body += piece
            if limit is not None and len(body) >= limit:
                return bytes(body[:limit])
        return bytes(body)

    def pieces(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            left = int(self.headers.get("Content-Length", 0))
            while left:
                piece = self.rfile.read1(min(left, 1 << 16))
                if not piece:
                    raise ConnectionError("the client went away")
                left -= len(piece)
                yield piece
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def log_message(self, *_) -> None:
        pass
