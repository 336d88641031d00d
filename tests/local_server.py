"""A local web server whose faults the tests choose: broken connections, missing features, errors."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files`; the other attributes choose its faults. `seen` lists the requests, (path, Range, If-Range)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, tuple[str, dict]] = {}  # path -> (target, headers)
        self.etag: str | None = '"version-1"'
        self.knows_ranges = True
        self.states_length = True  # False: only the end of the connection ends the response
        self.statuses: list[int] = []  # of the next responses, in place of the file
        self.cuts: list[int] = []  # the next responses break off after this many bytes
        self.promise = 0  # bytes by which Content-Length exceeds the body
        self.half_way = lambda: None  # called when half of a response has been sent
        self.seen: list[tuple[str, str | None, str | None]] = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests: print nothing."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server: Server = self.server
        server.seen.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if server.statuses:
            return self.answer(server.statuses.pop(0), b"sorry")
        if self.path in server.redirects:
            where, headers = server.redirects[self.path]
            return self.answer(302, b"", {"Location": where} | headers)
        if self.path not in server.files:
            return self.answer(404, b"no such file")
        content, status, headers = server.files[self.path], 200, {}
        if server.etag:
            headers["ETag"] = server.etag
        asked = self.headers.get("Range")
        if asked and server.knows_ranges and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        self.answer(status, content, headers, server.cuts.pop(0) if server.cuts else None)

    def answer(self, status: int, content: bytes, headers: dict | None = None, cut: int | None = None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.server.states_length:
            self.send_header("Content-Length", str(len(content) + self.server.promise))
        self.end_headers()
        content = content[:cut]
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.server.half_way()
        self.wfile.write(content[len(content) // 2 :])
