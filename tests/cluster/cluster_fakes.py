"""Fakes for reaching a cluster: an API server that replays, a node's files, kube-proxy's ports."""

from __future__ import annotations

import json
import lzma
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

DATA = Path(__file__).parent.parent / "data" / "cluster"


def recording(version):
    """What was recorded of one version of Kubernetes: answers, state, node."""
    return json.loads(lzma.decompress((DATA / f"{version}.json.xz").read_bytes()))


class Answer:
    """One scripted answer. A list of bodies is sent as chunks, of a watch for instance."""

    def __init__(self, status=200, body="{}", headers=None, hold=None):
        self.status = status
        self.body = body if isinstance(body, (str, list)) else json.dumps(body)
        self.headers = headers or {"Content-Type": "application/json"}
        # An Event: the answer's end waits for it, as a watch waits for changes.
        self.hold = hold


class FakeServer:
    """An HTTP server on loopback. ``answer(method, path, query, body) -> Answer``."""

    def __init__(self, answer, address="127.0.0.1"):
        self.requests: list[tuple[str, str, dict[str, str], object]] = []
        self.headers: list[dict[str, str]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Else head and body are two packets, and the second waits for a delayed ACK.
            wbufsize = 65536
            disable_nagle_algorithm = True

            def _serve(self):
                url = urlsplit(self.path)
                query = dict(parse_qsl(url.query))
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                fake.requests.append((self.command, url.path, query, body))
                fake.headers.append(dict(self.headers))
                found = answer(self.command, url.path, query, body)
                if found is None:
                    # The server dies in the middle.
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(found.status)
                for name, value in found.headers.items():
                    self.send_header(name, value)
                if isinstance(found.body, list):
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for part in found.body:
                        if part is None:
                            # A disconnect without the last chunk.
                            self.close_connection = True
                            return
                        data = part.encode()
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                        self.wfile.flush()
                    if found.hold is not None:
                        found.hold.wait(20)
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    data = found.body.encode()
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                # A client that goes away in the middle is part of some tests.
                pass

        self._server = Server((address, 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://{address}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,))
        self._thread.start()

    def count(self, path):
        return sum(1 for _, seen, _, _ in self.requests if seen == path)

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


NOT_FOUND = {"kind": "Status", "reason": "NotFound", "message": "not found", "code": 404}


def replay(recorded, extra=None):
    """Answers of a recording by path and query; ``extra(method, path, query, body)`` first."""
    by_path = {}
    for answer in recorded["answers"]:
        url = urlsplit(answer["path"])
        query = tuple(sorted(parse_qsl(url.query)))
        by_path.setdefault((answer["method"], url.path, query), answer)

    def answer(method, path, query, body):
        if extra is not None and (found := extra(method, path, query, body)) is not None:
            return found
        for wanted in (query, {k: v for k, v in query.items() if k != "limit"}):
            if found := by_path.get((method, path, tuple(sorted(wanted.items())))):
                return Answer(found["status"], found["body"], found["headers"])
        return Answer(404, NOT_FOUND)

    return answer


def state(recorded, extra=None):
    """Answers of a server at rest: the recorded Nodes, Services and slices of one moment."""
    lists = {
        "/version": json.loads(recorded["answers"][0]["body"]),
        "/api/v1/nodes": recorded["state"]["nodes"],
        "/api/v1/services": recorded["state"]["services"],
    }
    slices = recorded["state"]["endpointslices"]
    version = slices["apiVersion"].partition("/")[2]
    lists[f"/apis/discovery.k8s.io/{version}/endpointslices"] = slices

    def answer(method, path, query, body):
        if extra is not None and (found := extra(method, path, query, body)) is not None:
            return found
        return Answer(200, lists[path]) if path in lists else Answer(404, NOT_FOUND)

    return answer


def ip_program(recorded):
    """A fake ip whose ``-o addr`` tells what was recorded."""
    lines, interface = [], ""
    for line in recorded["ip_addr"].splitlines():
        words = line.split()
        if line[0].isdigit():
            interface = words[1].rstrip(":").partition("@")[0]
        elif words[0] == "inet":
            lines.append(f"1: {interface}    inet {words[1]} scope global {interface}")
    return "#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n"


def proxy_answers(recorded):
    """Answers of kube-proxy's ports (both in one)."""
    bodies = {key.partition("/")[2]: value for key, value in recorded["proxy"].items()}
    # :10249/healthz is always "ok" and must not be what is read.
    bodies["healthz"] = recorded["proxy"][":10256/healthz"]

    def answer(_method, path, _query, _body):
        found = bodies.get(path.strip("/"))
        if found is None:
            return Answer(404, "404 page not found\n", {"Content-Type": "text/plain"})
        return Answer(found["status"], found["body"], {"Content-Type": "text/plain"})

    return answer


def wait_for(condition, seconds=10.0):
    """Poll until a condition holds; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
