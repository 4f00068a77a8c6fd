"""One HTTP request to the API server: bounded retries, and failures as one sentence.

Goes through the connection pool of the kubernetes client (its certificates, proxy and tokens),
but keeps JSON raw: typed models cost many times what the whole rest of a reading costs.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from pytest_ipvs.cluster.errors import ApiError, ClusterError
from pytest_ipvs.cluster.kubeconfig import Access

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
ATTEMPTS = 4
# Seconds that all pauses of one request may take together.
PATIENCE = 30.0
_BUSY = frozenset({429, 500, 502, 503, 504})


class Requests:
    """Sends requests for one `Access`; safe to use from several threads."""

    pause: Callable[[float], None] = staticmethod(time.sleep)

    def __init__(self, access: Access) -> None:
        self.access = access
        self._pool = access.client.rest_client.pool_manager
        if not access.client.configuration.verify_ssl:
            _accept_unverified(self._pool)
        self._auth_lock = threading.Lock()

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: object = None,
        content_type: str = "application/json",
        attempts: int = ATTEMPTS,
    ) -> Any:
        """Send a request, retry while it is safe, and return the decoded JSON.

        Raises `ApiError` for an error answer and `ClusterError` where there is no answer.
        """
        spent = 0.0
        for attempt in range(1, attempts + 1):
            failure: ClusterError
            wait = 0.2 * 4 ** (attempt - 1)
            try:
                response = self.open(
                    method, path, query=query, body=body, content_type=content_type
                )
                data = response.data
                if response.status < 400:
                    return self._decode(data, path)
                failure = self.error(method, path, response.status, data)
                # A write that was refused for load was not carried out; other 5xx may have been.
                again = response.status == 429 or (response.status in _BUSY and method == "GET")
                wait = max(wait, _retry_after(response.headers.get("Retry-After")))
            except _http_errors() as error:
                failure = self.no_answer(error)
                again = method == "GET" or _never_sent(error)
            spent += wait
            if not again or attempt == attempts or spent > PATIENCE:
                raise failure from None
            self.pause(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: object = None,
        content_type: str = "application/json",
        read_seconds: float = READ_SECONDS,
    ) -> Any:
        """Send one request without retry and return the urllib3 response, body unread."""
        from urllib3.util import Timeout

        headers = {"Accept": "application/json", "User-Agent": "pytest-ipvs"} | self._auth()
        encoded = None
        if body is not None:
            encoded = json.dumps(body).encode()
            headers["Content-Type"] = content_type
        url = self.access.client.configuration.host + quote(path, safe="/:@,;=+!$&'()*~-._")
        if query:
            url += "?" + urlencode({k: _text(v) for k, v in query.items() if v is not None})
        return self._pool.request(
            method,
            url,
            body=encoded,
            headers=headers,
            preload_content=False,
            retries=False,
            redirect=False,
            timeout=Timeout(connect=CONNECT_SECONDS, read=read_seconds),
        )

    def _auth(self) -> dict[str, str]:
        # The hook that refreshes an expired token is not safe for threads.
        with self._auth_lock:
            settings = self.access.client.configuration.auth_settings()
        return {
            str(entry["key"]): str(entry["value"])
            for entry in settings.values()
            if entry.get("in") == "header" and entry.get("value")
        }

    def _decode(self, data: bytes, path: str) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise ClusterError(
                f"{self.access.server}{path} answers with something that is not JSON: "
                "is it an API server?"
            ) from None

    def error(self, method: str, path: str, status: int, data: bytes) -> ApiError:
        """The error for an answer with a failure status."""
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        details = document if isinstance(document, dict) else {}
        message = str(details.get("message") or data[:200].decode(errors="replace")).strip()
        reason = str(details.get("reason") or "")
        sentence = None
        if status == 401:
            sentence = (
                f"the API server {self.access.server} refuses the credentials of context "
                f"{self.access.context!r} (401 Unauthorized)"
            )
        elif status == 403:
            sentence = _forbidden(method, path, message)
        return ApiError(status, reason, message, path, sentence=sentence)

    def no_answer(self, error: Exception) -> ClusterError:
        """The error for a request that got no answer."""
        return ClusterError(
            f"the API server {self.access.server} of context {self.access.context!r} "
            f"can't be reached: {_why(error)}"
        )


def _accept_unverified(manager: Any) -> None:
    """Let a pool manager connect without verification and without a warning for each request.

    The kubeconfig asks for it by ``insecure-skip-tls-verify``, and with ``-W error`` a warning
    ends the run. A filter would not do: pytest sets its own ones for each test, and to change
    them is not safe for threads.
    """
    pools = manager.pool_classes_by_scheme
    pool = pools["https"]
    verified = property(lambda connection: True, lambda connection, value: None)
    connection = type("AcceptedConnection", (pool.ConnectionCls,), {"is_verified": verified})
    accepting = type("AcceptingPool", (pool,), {"ConnectionCls": connection})
    manager.pool_classes_by_scheme = {**pools, "https": accepting}


def _http_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError

    return (HTTPError, OSError)


def _never_sent(error: Exception) -> bool:
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    return isinstance(error, (ConnectTimeoutError, NewConnectionError))


def _why(error: Exception) -> str:
    from urllib3 import exceptions

    cause: BaseException = error
    while isinstance(cause, exceptions.MaxRetryError) and cause.reason is not None:
        cause = cause.reason
    text = str(cause).lower()
    if isinstance(cause, exceptions.SSLError) or "ssl" in type(cause).__name__.lower():
        if "certificate verify failed" in text:
            return "its certificate is not trusted by the kubeconfig's certificate authority"
        return f"TLS fails ({_short(cause)})"
    if isinstance(cause, exceptions.ProxyError):
        return f"its proxy fails ({_short(cause)})"
    # A refused connection is a subclass of a timed-out one there.
    timed_out = not isinstance(cause, exceptions.NewConnectionError)
    if timed_out and isinstance(cause, exceptions.ConnectTimeoutError):
        return f"no answer within {CONNECT_SECONDS:g} s"
    if timed_out and isinstance(cause, exceptions.TimeoutError):
        return f"it accepts the connection, but does not answer within {READ_SECONDS:g} s"
    for words, phrase in (
        ("connection refused", "connection refused"),
        ("name or service not known", "its name does not resolve"),
        ("failed to resolve", "its name does not resolve"),
        ("temporary failure in name resolution", "its name does not resolve"),
        ("no route to host", "no route to host"),
        ("network is unreachable", "network is unreachable"),
        ("connection aborted", "it closed the connection"),
        ("connection reset", "it reset the connection"),
    ):
        if words in text:
            return phrase
    return _short(cause)


def _short(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _retry_after(header: str | None) -> float:
    try:
        return min(10.0, max(0.0, float(header or 0)))
    except ValueError:
        # The other legal form, a date, is not used by API servers.
        return 0.0


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def _forbidden(method: str, path: str, message: str) -> str:
    """Say who may not do what, and which rule of a ClusterRole allows it."""
    parts = path.strip("/").split("/")
    group = parts[1] if parts[:1] == ["apis"] and len(parts) > 2 else ""
    rest = parts[3:] if group else parts[2:]
    where = "at the cluster scope"
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        where = f"in namespace {rest[1]}"
        rest = rest[2:]
    if parts[0] not in ("api", "apis") or not rest:
        return f"{path}: the API server forbids it (403): {message}"
    resource = rest[0] + (f"/{rest[2]}" if len(rest) > 2 else "")
    verb = _VERBS.get(method) or ("get" if len(rest) > 1 else "list")
    # What lists also watches and gets: naming all three at once saves two further failures.
    verbs = "[get, list, watch]" if method == "GET" else f"[{verb}]"
    who = message.partition('User "')[2].partition('"')[0]
    return (
        f"user {who or 'unknown'} may not {verb} {resource} {where} (403 Forbidden), expected a "
        f"{'ClusterRole' if where.startswith('at') else 'Role'} with the rule {{apiGroups: "
        f'["{group}"], resources: [{resource}], verbs: {verbs}}}'
    )
