"""The API server: raw JSON lists in pages, watches, writes, and the slices of any version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pytest_ipvs.cluster.errors import ApiError, ClusterError
from pytest_ipvs.cluster.kubeconfig import Access, connect
from pytest_ipvs.cluster.requests import Requests
from pytest_ipvs.cluster.watch import Watch
from pytest_ipvs.ipvs.objects import EndpointSlice, endpoint_slices_from_endpoints

if TYPE_CHECKING:
    from pytest_ipvs.settings import Settings

PatchKind = Literal["merge", "strategic", "json", "apply"]

_PATCH_TYPES: Mapping[str, str] = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
_SLICES = (
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/apis/discovery.k8s.io/v1beta1/endpointslices",
)
STREAM_SECONDS = 75.0
_ENDPOINTS = "/api/v1/endpoints"


class Api:
    """One API server. ``client`` is the kubernetes ``ApiClient`` whose credentials it uses."""

    def __init__(self, access: Access) -> None:
        self._requests = Requests(access)
        self.client = access.client
        self.server = access.server
        self.context = access.context
        self._version: str | None = None
        self._slices_path: str | None = None

    @classmethod
    def connect(cls, settings: Settings) -> Api:
        """Connect to the cluster of the settings and ask its version. Raises `ClusterError`."""
        api = cls(connect(settings))
        try:
            # Two attempts: somebody waits at a prompt, and a wrong address stays wrong.
            api._version = api._read_version(attempts=2)
        except BaseException:
            api.close()
            raise
        return api

    @property
    def version(self) -> str:
        """The server's version ("v1.36.2"), read once."""
        if self._version is None:
            self._version = self._read_version()
        return self._version

    def _read_version(self, **options: Any) -> str:
        document = self._requests.send("GET", "/version", **options)
        version = document.get("gitVersion") if isinstance(document, dict) else None
        if not isinstance(version, str) or not version:
            raise ClusterError(f"{self.server}/version tells no version: is it an API server?")
        return version

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """GET one object or list as decoded JSON; query names are the API's (labelSelector=…)."""
        return self._document(self._requests.send("GET", path, query=query), path)

    def list(self, path: str, *, limit: int = 500, **query: Any) -> dict[str, Any]:
        """GET a whole list in pages of ``limit``: {"metadata": …, "items": [...]}.

        The pages are one consistent state; when the server has dropped that state (410), the
        list starts again.
        """
        for restart in range(4):
            # The last try takes all at once: no page can expire.
            size = limit if restart < 3 else 0
            try:
                return self._pages(path, size, query)
            except ApiError as error:
                if error.status != 410 or restart == 3:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    def _pages(self, path: str, limit: int, query: Mapping[str, Any]) -> dict[str, Any]:
        items: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            page = self.get(path, **query, limit=limit or None, **{"continue": token})
            found = page.get("items") or []
            if not isinstance(found, list):
                raise ClusterError(f"{path}: the API server answers without a list of items")
            items += found
            metadata = page.get("metadata") or {}
            token = metadata.get("continue") or None
            if token is None:
                return {"metadata": metadata, "items": items}

    def items(self, path: str, *, limit: int = 500, **query: Any) -> Iterator[dict[str, Any]]:
        """The items of `list`, one by one."""
        yield from self.list(path, limit=limit, **query)["items"]

    def stream(self, path: str, **query: Any) -> Iterator[bytes]:
        """The pieces of an answer that is no JSON and may go on for long, such as a log.

        It ends when the server ends it. Raises `ClusterError`; a minute and more without a byte
        is an error too.
        """
        from urllib3.exceptions import HTTPError

        response = None
        try:
            response = self._requests.open("GET", path, query=query, read_seconds=STREAM_SECONDS)
            if response.status >= 400:
                raise self._requests.error("GET", path, response.status, response.data)
            yield from response.stream(65536, decode_content=True)
        except (HTTPError, OSError) as error:
            raise self._requests.no_answer(error) from None
        finally:
            if response is not None:
                response.close()

    def watch(self, path: str, *, resource_version: str | None = None, **query: Any) -> Watch:
        """Events of a list's path. Without a version it begins with a LISTED event."""
        return Watch(
            self._requests, path, lambda: self.list(path, **query), resource_version, query
        )

    def create(self, path: str, body: Mapping[str, Any], **query: Any) -> dict[str, Any]:
        """POST an object (or a subresource such as an eviction)."""
        return self._document(self._requests.send("POST", path, query=query, body=body), path)

    def replace(self, path: str, body: Mapping[str, Any], **query: Any) -> dict[str, Any]:
        """PUT an object; with its resourceVersion this fails with 409 if somebody was faster."""
        return self._document(self._requests.send("PUT", path, query=query, body=body), path)

    def patch(
        self, path: str, body: object, *, kind: PatchKind = "merge", **query: Any
    ) -> dict[str, Any]:
        """PATCH an object with one of the API's four kinds of patch."""
        answer = self._requests.send(
            "PATCH", path, query=query, body=body, content_type=_PATCH_TYPES[kind]
        )
        return self._document(answer, path)

    def delete(
        self, path: str, *, body: Mapping[str, Any] | None = None, **query: Any
    ) -> dict[str, Any]:
        """DELETE an object; ``body`` is DeleteOptions (grace period, preconditions)."""
        return self._document(self._requests.send("DELETE", path, query=query, body=body), path)

    def endpoint_slices_path(self) -> str:
        """Path of the slices (or Endpoints) of all namespaces that this server has."""
        if self._slices_path is None:
            for path in _SLICES:
                try:
                    self.get(path, limit=1)
                except ApiError as error:
                    if error.status != 404:
                        raise
                else:
                    self._slices_path = path
                    break
            else:
                self._slices_path = _ENDPOINTS
        return self._slices_path

    def endpoint_slices(self) -> tuple[EndpointSlice, ...]:
        """All EndpointSlices; on servers without them, made from Endpoints."""
        path = self.endpoint_slices_path()
        return tuple(part for item in self.items(path) for part in self.slices_of(item))

    def slices_of(self, item: Mapping[str, Any]) -> tuple[EndpointSlice, ...]:
        """Slices of one object of `endpoint_slices_path`. Raises `ClusterError` if malformed."""
        try:
            if self.endpoint_slices_path() == _ENDPOINTS:
                return endpoint_slices_from_endpoints(item)
            return (EndpointSlice.from_api(item),)
        except ValueError as error:
            raise ClusterError(
                f"the API server sent an object that can't be read: {error}"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _document(self, answer: Any, path: str) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise ClusterError(f"{self.server}{path} answers with no object: is it an API server?")
        return answer
