"""A proxy between a client and an S3 server that makes faults: `python proxy.py PORT SERVER_PORT FAULTS.json SEED`.

FAULTS.json is read again whenever it changes. Its entries are shares of requests, unless said otherwise:

    unavailable     503 SlowDown
    reset           the connection is cut before the server sees the request
    stall           the answer waits for stall_s seconds
    cut_body        the answer to GET ends in the middle
    lost_answer     PUT is done and its answer is lost
    doubled         PUT reaches the server twice
    late_s          seconds for which GET and HEAD of a new object answer 404
    refuse          {"code": 403, "error": "QuotaExceeded", "method": "PUT", "key": "old"}: an answer for every such request;
                    method and key (the access key) may be left out
    away            true: no answer at all
    first           whole number: only so many requests are spoilt, the rest pass

Counts of requests and faults since the last change of FAULTS.json are written to FAULTS.json.counts each second.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import random
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import Counter
from pathlib import Path


class Faults:
    """The faults that are asked for at the moment, and how many were made."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.random, self.lock = path, random.Random(seed), threading.Lock()
        self.counts: Counter[str] = Counter()
        self.written_s: dict[str, float] = {}
        self._wanted: dict = {}
        self._stamp = -1

    def wanted(self) -> dict:
        with self.lock, contextlib.suppress(OSError, ValueError):  # ValueError: it is being written
            stamp = os.stat(self.path).st_mtime_ns
            if stamp != self._stamp:
                self._wanted, self._stamp = json.loads(self.path.read_text()), stamp
                self.counts.clear()
        return self._wanted

    def count(self, name: str) -> None:
        with self.lock:
            self.counts[name] += 1

    def hits(self, name: str) -> bool:
        """Whether this request gets the fault."""
        wanted = self.wanted()
        with self.lock:
            n_spoilt = sum(n for key, n in self.counts.items() if key in FAULTS)
            is_hit = self.random.random() < wanted.get(name, 0) and n_spoilt < wanted.get("first", float("inf"))
            self.counts[name] += is_hit
        return is_hit

    def write_counts(self) -> None:
        while True:
            time.sleep(1)
            with contextlib.suppress(OSError):
                Path(f"{self.path}.new").write_text(json.dumps(self.counts))
                os.replace(f"{self.path}.new", f"{self.path}.counts")


FAULTS = {"unavailable", "reset", "stall", "cut_body", "lost_answer", "doubled"}
_OWN_HEADERS = ("connection", "expect", "transfer-encoding", "content-length")


class Handler(http.server.BaseHTTPRequestHandler):
    """Passes requests on, and spoils some."""

    protocol_version = "HTTP/1.1"
    faults: Faults
    server_port: int

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._answer()

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        faults, wanted = self.faults, self.faults.wanted()
        faults.count("requests")
        faults.count(self.command)
        if wanted.get("away"):
            return self._hang_up()
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self._body()
        if faults.hits("reset"):
            return self._hang_up()
        if faults.hits("unavailable"):
            return self._refuse(503, "SlowDown")
        if faults.hits("stall"):
            time.sleep(wanted.get("stall_s", 10))
        refuse = wanted.get("refuse")
        key = f"Credential={refuse['key']}/" if refuse and "key" in refuse else ""
        if (
            refuse
            and refuse.get("method", self.command) == self.command
            and key in self.headers.get("Authorization", "")
        ):
            faults.count("refused")
            return self._refuse(refuse["code"], refuse["error"])
        name = self.path.split("?")[0]
        late_s = wanted.get("late_s", 0)
        is_new = late_s and time.monotonic() - faults.written_s.get(name, -1e9) < late_s
        if is_new and self.command in ("GET", "HEAD") and "list-type" not in self.path:
            faults.count("late")
            return self._refuse(404, "NoSuchKey")
        try:
            if self.command == "PUT":
                faults.written_s.setdefault(name, time.monotonic())
                if faults.hits("doubled"):
                    self._pass_on(body)
            status, headers, content = self._pass_on(body)
        except OSError:
            return self._hang_up()
        if self.command == "PUT" and faults.hits("lost_answer"):
            return self._hang_up()
        is_cut = self.command == "GET" and status in (200, 206) and len(content) > 1 and faults.hits("cut_body")
        return self._send(status, headers, content, is_cut)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while n := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(n)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OWN_HEADERS}
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body=body or None, headers=headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.getheaders(), content

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, is_cut: bool) -> None:
        length = next((v for k, v in headers if k.lower() == "content-length"), str(len(content)))
        self.send_response_only(status)
        for key, value in headers:
            if key.lower() not in _OWN_HEADERS:
                self.send_header(key, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
            self.wfile.flush()
        if is_cut:
            self._hang_up()

    def _refuse(self, status: int, error: str) -> None:
        body = f'<?xml version="1.0"?><Error><Code>{error}</Code><Message>{error}</Message></Error>'.encode()
        self._send(status, [("Content-Type", "application/xml")], body, False)

    def _hang_up(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


class Proxy(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """One thread per connection."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256


if __name__ == "__main__":
    Handler.server_port = int(sys.argv[2])
    Handler.faults = Faults(Path(sys.argv[3]), int(sys.argv[4]))
    threading.Thread(target=Handler.faults.write_counts, daemon=True).start()
    Proxy(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
