"""The API client against recorded answers: pages, versions, retries, errors as one sentence."""

import json
import threading
from pathlib import Path

import pytest
from cluster_fakes import Answer, FakeServer, replay, state, wait_for

from pytest_ipvs.cluster import Api, ApiError, ClusterError
from pytest_ipvs.cluster.requests import Requests
from pytest_ipvs.lab.api import Server
from pytest_ipvs.settings import resolve

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


@pytest.fixture
def connect(serve, settings_for):
    apis = []

    def make(answer):
        server = serve(answer)
        apis.append(Api.connect(settings_for(server.url)))
        api = apis[-1]
        api._requests.pause = lambda seconds: None
        return api, server

    yield make
    for api in apis:
        api.close()


def recorded_body(recorded, name):
    return next(json.loads(a["body"]) for a in recorded["answers"] if a["name"].startswith(name))


def test_version_and_token(connect, current):
    api, server = connect(replay(current))
    assert api.version == "v1.36.2"
    assert api.context == "lab"
    assert (
        server.headers[0][
            "authorization" if "authorization" in server.headers[0] else "Authorization"
        ]
        == "Bearer s3cr3t-t0ken"
    )


def test_pages_are_one_list(connect, any_version):
    first = recorded_body(any_version, "042")
    last = recorded_body(any_version, "043")
    token = first["metadata"]["continue"]
    answers = []

    def extra(method, path, query, body):
        if path != "/api/v1/namespaces/demo/services":
            return None
        answers.append(query)
        if query.get("continue") != token:
            return Answer(200, first)
        # The recorded second page is not the last one.
        last["metadata"].pop("continue", None)
        return Answer(200, last)

    api, _ = connect(replay(any_version, extra))
    names = [
        item["metadata"]["name"] for item in api.items("/api/v1/namespaces/demo/services", limit=2)
    ]
    assert len(names) == len(first["items"]) + len(last["items"])
    assert answers == [{"limit": "2"}, {"limit": "2", "continue": token}]


def test_a_list_that_expired_between_pages_starts_again(connect, current):
    gone = recorded_body(current, "914")
    first = recorded_body(current, "042")
    seen = []

    def extra(method, path, query, body):
        if path != "/api/v1/namespaces/demo/services":
            return None
        seen.append(query)
        if "continue" in query:
            return Answer(410, gone)
        if "limit" in query:
            return Answer(200, first)
        return Answer(200, {"metadata": {"resourceVersion": "7"}, "items": [{"a": 1}]})

    api, _ = connect(replay(current, extra))
    found = api.list("/api/v1/namespaces/demo/services", limit=2)
    assert found["items"] == [{"a": 1}]
    assert len(seen) == 7  # three times a page and its refused follower, then everything at once


def test_slices_of_a_current_server(connect, current):
    api, _ = connect(replay(current))
    slices = api.endpoint_slices()
    assert {s.service for s in slices} >= {"web", "kubernetes"}
    assert api.endpoint_slices_path() == SLICES
    assert any(e.node_name == "node-2" for s in slices for e in s.endpoints)


def test_slices_of_an_old_server(connect, oldest):
    api, _ = connect(replay(oldest))
    assert api.endpoint_slices_path() == "/apis/discovery.k8s.io/v1beta1/endpointslices"
    assert any(e.node_name == "node-2" for s in api.endpoint_slices() for e in s.endpoints)


def test_slices_of_a_server_that_has_endpoints_only(connect, oldest):
    def extra(method, path, query, body):
        return Answer(404, "404 page not found", {}) if "discovery" in path else None

    api, _ = connect(replay(oldest, extra))
    assert api.endpoint_slices_path() == "/api/v1/endpoints"
    slices = api.endpoint_slices()
    assert {s.service for s in slices} >= {"web", "kubernetes"}


def test_a_malformed_object_is_one_sentence(connect, current):
    def extra(method, path, query, body):
        item = {"metadata": {"name": "x", "namespace": "y"}, "addressType": "IPv9"}
        return Answer(200, {"metadata": {}, "items": [item]}) if path == SLICES else None

    api, _ = connect(replay(current, extra))
    with pytest.raises(ClusterError, match=r"can't be read: EndpointSlice y/x.*addressType"):
        api.endpoint_slices()


def test_busy_answers_are_retried_and_retry_after_is_obeyed(connect, current):
    left = [429, 503]
    pauses = []

    def extra(method, path, query, body):
        if path == SERVICES and left:
            return Answer(left.pop(0), {"message": "busy"}, {"Retry-After": "3"})
        return None

    api, server = connect(state(current, extra))
    api._requests.pause = pauses.append
    assert len(api.list(SERVICES)["items"]) == len(current["state"]["services"]["items"])
    assert pauses == [3.0, 3.0]
    assert server.count(SERVICES) == 3


def test_retries_are_bounded(connect, current):
    def extra(method, path, query, body):
        return (
            Answer(503, {"message": "sick", "reason": "ServiceUnavailable"})
            if path == SERVICES
            else None
        )

    api, server = connect(state(current, extra))
    with pytest.raises(ApiError, match="503 ServiceUnavailable: sick"):
        api.get(SERVICES)
    assert server.count(SERVICES) == 4


def test_an_unreasonable_retry_after_does_not_hang_the_run(connect, current):
    pauses = []

    def extra(method, path, query, body):
        return Answer(429, {}, {"Retry-After": "86400"}) if path == SERVICES else None

    api, _ = connect(state(current, extra))
    api._requests.pause = pauses.append
    with pytest.raises(ApiError):
        api.get(SERVICES)
    assert sum(pauses) <= 30


def test_writes_are_not_repeated_after_a_failure_that_may_have_done_them(connect, current):
    def extra(method, path, query, body):
        return Answer(500, {"message": "oops"}) if method == "POST" else None

    api, server = connect(state(current, extra))
    with pytest.raises(ApiError, match="oops"):
        api.create("/api/v1/namespaces", {"kind": "Namespace"})
    assert server.count("/api/v1/namespaces") == 1


def test_a_write_whose_connection_dies_is_not_repeated(connect, current):
    calls = []

    def answer(method, path, query, body):
        if method == "POST":
            calls.append(path)
            return None
        return state(current)(method, path, query, body)

    api, _ = connect(answer)
    with pytest.raises(ClusterError, match=r"can't be reached: it (closed|reset) the connection"):
        api.create("/api/v1/namespaces", {"kind": "Namespace"})
    assert len(calls) == 1


def test_a_read_whose_connection_dies_is_repeated(connect, current):
    left = [1]

    def answer(method, path, query, body):
        if path == SERVICES and left:
            left.pop()
            return None
        return state(current)(method, path, query, body)

    api, _ = connect(answer)
    assert api.list(SERVICES)["items"]


@pytest.mark.parametrize(
    ("kind", "content_type"),
    [
        ("merge", "application/merge-patch+json"),
        ("strategic", "application/strategic-merge-patch+json"),
        ("json", "application/json-patch+json"),
        ("apply", "application/apply-patch+yaml"),
    ],
)
def test_kinds_of_patch(connect, current, kind, content_type):
    def extra(method, path, query, body):
        return Answer(200, {"kind": "Deployment"}) if method == "PATCH" else None

    api, server = connect(state(current, extra))
    body = {"spec": {"replicas": 2}}
    answer = api.patch(
        "/apis/apps/v1/namespaces/demo/deployments/web", body, kind=kind, dryRun="All"
    )
    assert answer == {"kind": "Deployment"}
    method, _, query, sent = server.requests[-1]
    assert (method, query, sent) == ("PATCH", {"dryRun": "All"}, body)
    assert server.headers[-1]["Content-Type"] == content_type


def test_conflicts_and_validation_keep_the_server_s_words(connect, current):
    conflict = recorded_body(current, "072")

    def extra(method, path, query, body):
        return Answer(409, conflict) if method == "POST" else None

    api, _ = connect(state(current, extra))
    with pytest.raises(ApiError) as error:
        api.create("/apis/apps/v1/namespaces/rec/deployments", {})
    assert (error.value.status, error.value.reason) == (409, "AlreadyExists")
    assert error.value.message == conflict["message"]


@pytest.mark.parametrize(
    ("name", "path", "sentence"),
    [
        (
            "060",
            SLICES,
            (
                "user viewer may not list endpointslices at the cluster scope (403 Forbidden), "
                'expected a ClusterRole with the rule {apiGroups: ["discovery.k8s.io"], resources: '
                "[endpointslices], verbs: [get, list, watch]}"
            ),
        ),
        (
            "063",
            "/api/v1/namespaces/demo/pods",
            (
                "user system:serviceaccount:demo:limited may not list pods in namespace demo "
                '(403 Forbidden), expected a Role with the rule {apiGroups: [""], '
                "resources: [pods], "
                "verbs: [get, list, watch]}"
            ),
        ),
        (
            "064",
            "/api/v1/nodes/node-1",
            (
                "user system:serviceaccount:demo:limited may not get nodes at the cluster scope "
                '(403 Forbidden), expected a ClusterRole with the rule {apiGroups: [""], '
                "resources: "
                "[nodes], verbs: [get, list, watch]}"
            ),
        ),
    ],
)
def test_forbidden_names_the_rule_that_is_missing(connect, current, name, path, sentence):
    refusal = recorded_body(current, name)

    def extra(method, asked, query, body):
        return Answer(403, refusal) if asked == path else None

    api, _ = connect(replay(current, extra))
    with pytest.raises(ApiError) as error:
        api.get(path)
    assert str(error.value) == sentence


def test_forbidden_write_names_its_verb(connect, current):
    def extra(method, path, query, body):
        return Answer(403, {"message": 'User "u" cannot'}) if method != "GET" else None

    api, _ = connect(state(current, extra))
    with pytest.raises(
        ApiError, match=r"u may not patch deployments/scale in namespace demo .*\[patch\]"
    ):
        api.patch("/apis/apps/v1/namespaces/demo/deployments/web/scale", {})
    with pytest.raises(
        ApiError, match=r"u may not delete namespaces at the cluster scope .*\[delete\]"
    ):
        api.delete("/api/v1/namespaces/demo")


def test_refused_credentials_are_one_sentence_without_the_token(serve, settings_for, current):
    body = next(a for a in current["answers"] if a["name"].startswith("047"))["body"]
    server = serve(lambda *_: Answer(401, body))
    with pytest.raises(ApiError) as error:
        Api.connect(settings_for(server.url))
    assert str(error.value) == (
        f"the API server {server.url} refuses the credentials of context 'lab' (401 Unauthorized)"
    )


@pytest.fixture
def _no_pauses(monkeypatch):
    monkeypatch.setattr(Requests, "pause", staticmethod(lambda seconds: None))


@pytest.mark.usefixtures("_no_pauses")
def test_an_unreachable_server_is_one_sentence(serve, settings_for):
    server = FakeServer(lambda *_: Answer())
    server.close()
    with pytest.raises(ClusterError) as error:
        Api.connect(settings_for(server.url))
    assert str(error.value) == (
        f"the API server {server.url} of context 'lab' can't be reached: connection refused"
    )


def test_a_name_that_does_not_resolve(settings_for):
    with pytest.raises(ClusterError, match=r"can't be reached: its name does not resolve$"):
        Api.connect(settings_for("https://no-such-host.invalid:6443"))


@pytest.mark.usefixtures("_no_pauses")
def test_tls_on_a_plain_port_is_one_sentence(serve, settings_for):
    server = serve(lambda *_: Answer())
    with pytest.raises(ClusterError, match=r"can't be reached: TLS fails \(\S+: .*\)$") as error:
        Api.connect(settings_for(server.url.replace("http", "https")))
    assert "\n" not in str(error.value)


@pytest.fixture
def real_server():
    """The embedded API server, which speaks TLS with a certificate that nobody knows."""
    with Server(token="s3cr3t-t0ken") as running:
        yield running


def test_an_insecure_cluster_is_used_as_the_kubeconfig_asks(real_server, settings_for):
    url = real_server.url.replace("http", "https")
    settings = settings_for(url)
    path = Path(settings.kubeconfig)
    document = json.loads(path.read_text())
    document["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
    path.write_text(json.dumps(document))
    # A warning is an error here, as with -W error, which pytest sets anew for each test.
    api = Api.connect(settings)
    assert api.get(SERVICES)["kind"] == "ServiceList"
    # The client that tests get is as quiet.
    assert api.client.call_api("GET", f"{url}/version").status == 200
    api.close()


@pytest.mark.usefixtures("_no_pauses")
def test_other_clusters_are_verified_as_before(real_server, settings_for):
    with pytest.raises(ClusterError, match="its certificate is not trusted by the kubeconfig's"):
        Api.connect(settings_for(real_server.url.replace("http", "https")))


def test_something_else_than_an_api_server(serve, settings_for):
    server = serve(lambda *_: Answer(200, "<html>login</html>", {"Content-Type": "text/html"}))
    with pytest.raises(ClusterError, match=r"not JSON: is it an API server\?$"):
        Api.connect(settings_for(server.url))


def test_watch_begins_with_a_list_and_goes_on_from_its_version(connect, current):
    hold = threading.Event()
    events = recorded_body_lines(current, "109")

    def extra(method, path, query, body):
        if query.get("watch"):
            return Answer(200, ["".join(events)[:100], "".join(events)[100:]], hold=hold)
        return None

    api, server = connect(state(current, extra))
    watch = api.watch(SLICES)
    seen = []
    for event in watch:
        seen.append(event)
        if len(seen) == 1 + len(events):
            watch.close()
            hold.set()
    assert seen[0].type == "LISTED"
    assert seen[0].object["items"] == current["state"]["endpointslices"]["items"]
    assert {event.type for event in seen[1:]} == {"ADDED"}
    query = server.requests[-1][2]
    listed = current["state"]["endpointslices"]["metadata"]["resourceVersion"]
    assert (query["resourceVersion"], query["allowWatchBookmarks"]) == (listed, "true")


def recorded_body_lines(recorded, name):
    text = next(a["body"] for a in recorded["answers"] if a["name"].startswith(name))
    return [line + "\n" for line in text.splitlines() if line]


def one(kind, version, name="x"):
    metadata = {"resourceVersion": str(version), "name": name}
    return json.dumps({"type": kind, "object": {"metadata": metadata}}) + "\n"


def test_watch_survives_disconnects_bookmarks_and_both_kinds_of_410(connect, current):
    gone_in_stream = recorded_body_lines(current, "911")
    gone = recorded_body(current, "913")
    lists = [10, 20, 30]
    hold = threading.Event()
    watches = iter(
        [
            # Cut in the middle of an event, after a bookmark has moved the version on.
            Answer(200, [one("ADDED", 11), one("BOOKMARK", 15), one("ADDED", 16)[:20], None]),
            Answer(200, [one("MODIFIED", 16), *gone_in_stream]),
            Answer(410, gone),
            Answer(503, {"message": "busy"}),
            Answer(200, [one("DELETED", 31)], hold=hold),
        ]
    )

    def extra(method, path, query, body):
        if path != "/api/v1/pods":
            return None
        if query.get("watch"):
            return next(watches)
        return Answer(200, {"metadata": {"resourceVersion": str(lists.pop(0))}, "items": []})

    api, server = connect(state(current, extra))
    watch = api.watch("/api/v1/pods")
    seen = []
    for event in watch:
        seen.append((event.type, event.object["metadata"]["resourceVersion"]))
        if event.type == "DELETED":
            watch.close()
            hold.set()
    assert seen == [
        ("LISTED", "10"),
        ("ADDED", "11"),
        ("MODIFIED", "16"),
        ("LISTED", "20"),
        ("LISTED", "30"),
        ("DELETED", "31"),
    ]
    versions = [q["resourceVersion"] for _, _, q, _ in server.requests if q.get("watch")]
    assert versions == ["10", "15", "20", "30", "30"]


def test_watch_that_is_forbidden_does_not_go_on(connect, current):
    def extra(method, path, query, body):
        return Answer(403, {"message": 'User "u" cannot watch'}) if query.get("watch") else None

    api, _ = connect(state(current, extra))
    with pytest.raises(ApiError, match="u may not list services"):
        for _ in api.watch(SERVICES):
            pass


def test_close_wakes_a_watch_that_waits(connect, current):
    hold = threading.Event()

    def extra(method, path, query, body):
        return Answer(200, [one("BOOKMARK", 5)], hold=hold) if query.get("watch") else None

    api, _ = connect(state(current, extra))
    watch = api.watch(SERVICES, resource_version="1")
    done = threading.Event()

    def follow():
        for _ in watch:
            pass
        done.set()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        wait_for(lambda: watch._response is not None)
        watch.close()
        assert done.wait(10)
    finally:
        hold.set()
        thread.join()


def test_a_default_kubeconfig_is_not_read_unless_asked(connect, current, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClusterError, match=r"default place is '~/\.kube/config'|does not exist"):
        Api.connect(resolve({"ipvs_context": "x"}, {}, {}, {}))


def test_an_answer_that_is_no_json_comes_in_pieces(connect, current):
    def extra(method, path, query, body):
        if path.endswith("/log"):
            return Answer(200, "one\ntwo\n") if query.get("follow") == "true" else Answer(404, {})
        return None

    api, _ = connect(replay(current, extra))
    path = "/api/v1/namespaces/demo/pods/web/log"
    assert b"".join(api.stream(path, follow="true")) == b"one\ntwo\n"
    with pytest.raises(ApiError):
        list(api.stream(path))
