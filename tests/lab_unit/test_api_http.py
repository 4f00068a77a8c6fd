"""The sockets of the embedded API: keep-alive, TLS beside plain HTTP, broken input, stopping."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pytest_ipvs.lab.api import Server, object_routes
from pytest_ipvs.lab.api.certificates import make_certificate


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(token="secret") as running:
        yield running


def plain(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*server.address, timeout=20)


def get(connection: http.client.HTTPConnection, path: str, **headers: str) -> tuple[int, bytes]:
    connection.request("GET", path, headers={"Authorization": "Bearer secret", **headers})
    response = connection.getresponse()
    return response.status, response.read()


def raw(server: Server, data: bytes) -> bytes:
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        return answer


def test_one_connection_carries_many_requests(server: Server) -> None:
    connection = plain(server)
    for _ in range(3):
        assert get(connection, "/healthz") == (200, b"ok")
        assert get(connection, "/api/v1/nodes")[0] == 200
        assert get(connection, "/nothing/here")[0] == 404
    connection.close()


def test_tls_and_plain_share_the_port(server: Server) -> None:
    cluster = yaml.safe_load(server.kubeconfig())["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    # What newer Pythons ask of a certificate by default.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for _ in range(2):
        secure = http.client.HTTPSConnection(*server.address, timeout=20, context=context)
        assert get(secure, "/version")[0] == 200
        secure.close()
    connection = plain(server)
    assert get(connection, "/version")[0] == 200
    connection.close()


def test_a_client_that_distrusts_the_certificate_harms_nobody(server: Server) -> None:
    secure = http.client.HTTPSConnection(
        *server.address, timeout=20, context=ssl.create_default_context()
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        secure.request("GET", "/version")
    secure.close()
    connection = plain(server)
    assert get(connection, "/version")[0] == 200
    connection.close()


def test_a_certificate_is_for_its_host_only(tmp_path: Path) -> None:
    made = make_certificate("192.0.2.7")
    assert "BEGIN EC PRIVATE KEY" in made.key
    authority = ssl.create_default_context(cadata=made.authority)
    assert authority.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}
    path = tmp_path / "server.pem"
    path.write_text(made.certificate + made.key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/3\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(server: Server, data: bytes) -> None:
    assert raw(server, data).startswith(b"HTTP/1.1 400 ")


def test_a_chunked_body_is_read(server: Server) -> None:
    body = json.dumps({"metadata": {"name": "c"}, "data": {"k": "v"}}).encode()
    half = len(body) // 2
    connection = plain(server)
    connection.request(
        "POST",
        "/api/v1/namespaces/default/configmaps",
        body=iter([body[:half], body[half:]]),
        headers={"Authorization": "Bearer secret", "Content-Type": "application/json"},
        encode_chunked=True,
    )
    response = connection.getresponse()
    assert response.status == 201
    assert json.loads(response.read())["data"] == {"k": "v"}
    connection.close()


def test_head_has_no_body(server: Server) -> None:
    connection = plain(server)
    connection.request("HEAD", "/version")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    assert get(connection, "/healthz") == (200, b"ok")
    connection.close()


def test_stop_ends_watches_and_threads_and_frees_the_port() -> None:
    before = set(threading.enumerate())
    server = Server(token="secret")
    host, port = server.start()
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request("GET", "/api/v1/pods?watch=1", headers={"Authorization": "Bearer secret"})
    response = connection.getresponse()
    idle = plain(server)
    assert get(idle, "/healthz")[0] == 200
    server.stop()
    server.stop()
    try:
        rest = response.read()
    except http.client.IncompleteRead as cut_off:
        # On a busy machine the connection may go before the last chunk's mark.
        rest = cut_off.partial
    response.close()
    connection.close()
    idle.close()
    assert rest == b""
    ours = set(threading.enumerate()) - before
    for thread in ours:
        thread.join(timeout=20)
    assert [thread.name for thread in ours if thread.is_alive()] == []
    with socket.create_server((host, port)):
        pass


def test_without_the_ssl_module_there_is_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ssl", None)
    with Server(token="secret") as server:
        cluster = yaml.safe_load(server.kubeconfig())["clusters"][0]["cluster"]
        assert cluster == {"server": server.url}
        connection = plain(server)
        assert get(connection, "/version")[0] == 200
        connection.close()
        # A client that speaks TLS all the same is cut off.
        with socket.create_connection(server.address, timeout=20) as client:
            client.sendall(b"\x16")
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""


def test_starting_needs_neither_ssl_nor_anything_installed() -> None:
    code = (
        "import sys; from pytest_ipvs.lab.api import Server\n"
        "server = Server(); server.start()\n"
        "assert not {'yaml', 'kubernetes', 'pytest', 'requests'} & set(sys.modules)\n"
        "server.stop()"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_address_before_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        Server().url  # noqa: B018


def test_a_version_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'latest': expected a Kubernetes version"):
        Server(version="latest")


def test_a_log_is_followed_until_its_pod_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_routes, "FOLLOW_SECONDS", 0.01)
    said = ["one\n"]
    with Server(token="secret", log_reader=lambda pod, query: "".join(said)) as running:
        path = "/api/v1/namespaces/default/pods"
        writer, follower = plain(running), plain(running)

        def send(method: str, path: str, body: object = None) -> None:
            headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
            writer.request(method, path, json.dumps(body) if body else None, headers)
            response = writer.getresponse()
            answer = response.read()
            assert response.status < 300, answer

        pod = {
            "metadata": {"name": "talker"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }
        send("POST", path, pod)
        headers = {"Authorization": "Bearer secret"}
        follower.request("GET", f"{path}/talker/log?follow=true", headers=headers)
        stream = follower.getresponse()
        assert stream.readline() == b"one\n"
        said.append("two\n")
        assert stream.readline() == b"two\n"
        said.append("three\n")
        send("DELETE", f"{path}/talker?gracePeriodSeconds=0")
        assert stream.read() == b"three\n"
        writer.close()
        follower.close()
