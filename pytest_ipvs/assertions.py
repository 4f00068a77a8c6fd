"""Assertions for tests of your own; each raises AssertionError with the full explanation.

They judge by the same rules as the ready-made suite, so their texts name node, object, observed,
expected, reason and remedy.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_ipvs.cluster.cluster import Cluster
    from pytest_ipvs.cluster.handle import NodeHandle, SysctlValue
    from pytest_ipvs.rollout import Result, Rollout
    from pytest_ipvs.traffic import Results

SAMPLES_SHOWN = 5
_EQUAL_TABLES = ("TB-01", "TB-02", "TB-03", "TB-05", "TB-06", "TB-08", "TB-10", "TB-12")


class InconclusiveError(AssertionError):
    """Nothing was found, but it proves nothing either; fails a test with a word of its own."""


__all__ = [
    "InconclusiveError",
    "assert_affinity_follows_endpoints",
    "assert_balanced",
    "assert_no_connection_failures",
    "assert_no_slow_connects",
    "assert_no_stale_real_servers",
    "assert_sysctl",
    "assert_tables_match_api",
]


def assert_sysctl(node: NodeHandle, key: str, expected: int | str | Iterable[int | str]) -> None:
    """Assert the value of a sysctl on one node; several values mean "one of these".

    ``key`` is the full dotted key. A key that does not exist on the node, or was not read, fails.
    """
    __tracebackhide__ = True
    from pytest_ipvs.cluster.errors import ClusterError

    observed, unread = None, ""
    try:
        observed = node.sysctl[key]
    except KeyError:
        pass
    except ClusterError as error:
        unread = str(error)
    if problem := sysctl_problem(key, observed, expected, unread):
        raise AssertionError(f"{node.name}: {problem}")


def assert_tables_match_api(cluster: Cluster) -> None:
    """Assert that every node's IPVS table is what the API asks for, once it had time to follow.

    Judges like TB-01, TB-02, TB-03, TB-05, TB-06, TB-08, TB-10 and TB-12: virtual servers, real
    servers and their weights.
    """
    __tracebackhide__ = True
    _judge_cluster(cluster, _EQUAL_TABLES)


def assert_no_stale_real_servers(
    subject: Cluster | Rollout | Result, *, after: float | None = None
) -> None:
    """Assert that no real server without an endpoint takes connections.

    For a cluster: now, by the rules of TB-03, TB-04 and TB-06. For a rollout: none was left in a
    table ``after`` seconds after its endpoint had gone (default: the drain budget of the policy).
    """
    __tracebackhide__ = True
    if hasattr(subject, "stale_real_servers"):
        budget = {} if after is None else {"after": after}
        from pytest_ipvs.rollout.result import NotObservedError

        try:
            stale = tuple(subject.stale_real_servers(**budget))
        except NotObservedError as error:
            raise InconclusiveError(f"not measured: {error}") from None
        if stale:
            shown = "".join(f"\n  {server}" for server in stale[:SAMPLES_SHOWN])
            raise AssertionError(
                f"{len(stale)} old real servers stayed in the nodes' tables, expected none{shown}"
            )
        return
    _judge_cluster(subject, ("TB-03", "TB-04", "TB-06"))


def assert_no_connection_failures(measured: Rollout | Result | Results) -> None:
    """Assert that every connection was answered, and that this proves something.

    An inconclusive rollout fails too: zero failures of a client that re-used no tuple, ran out of
    ports or missed its schedule say nothing.
    """
    __tracebackhide__ = True
    from pytest_ipvs.traffic.results import spell

    result = _result(measured)
    failures = _counted(result.failures)
    problems = _weakness(result)
    if not failures and not problems:
        return
    lines = []
    if failures:
        number = sum(failures.values())
        lines.append(f"{number} of {_connections(result)} connections failed: {spell(failures)}")
        lines += [f"  {line}" for line in _samples(result, "failed")]
        lines += _cause(result)
    lines += [f"inconclusive: {problem}" for problem in problems]
    raise _kind(found=bool(failures))("\n".join(lines))


def assert_no_slow_connects(
    measured: Rollout | Result | Results, *, allowed: int | None = None
) -> None:
    """Assert that no connect needed a second SYN, by the kernel's own count (TCP_INFO).

    ``allowed`` is how many may (default: none).
    """
    __tracebackhide__ = True
    from pytest_ipvs.traffic.results import spell

    result = _result(measured)
    results = getattr(result, "results", result)
    resent, limit = int(results.resent), allowed or 0
    problems = _weakness(result)
    if resent <= limit and not problems:
        return
    lines = []
    if resent > limit:
        lines.append(
            f"{resent} of {_connections(result)} connects needed a resent SYN, "
            f"expected {'none' if not limit else f'at most {limit}'}"
        )
        if after := _counted(results.resent_after):
            lines.append(f"  by how the tuple's last connection had ended: {spell(after)}")
            if any("rst" in name for name in after):
                lines.append(
                    "  remedy: let the application end its connections with FIN; after an RST the "
                    "re-used port meets a conntrack entry that is still in use"
                )
        lines += [f"  {line}" for line in _samples(result, "slow_connects")]
    lines += [f"inconclusive: {problem}" for problem in problems]
    raise _kind(found=resent > limit)("\n".join(lines))


def assert_balanced(run: Rollout | Result, *, min_share: float | None = None) -> None:
    """Assert that pods added by a rollout get connections, by the rules of DP-06.

    ``min_share`` is the least part of its fair share that new pods must get, 0 to 1 (default: the
    policy's ``min_new_pod_share``).
    """
    __tracebackhide__ = True
    _judge_rollout(run, "DP-06", min_share)


def assert_affinity_follows_endpoints(run: Rollout | Result) -> None:
    """Assert that clients with session affinity moved to a live pod, by the rules of PS-02."""
    __tracebackhide__ = True
    _judge_rollout(run, "PS-02")


def sysctl_problem(key: str, observed: str | None, expected: object, unread: str = "") -> str:
    """What is wrong with a sysctl's value in one sentence, or ""; whitespace does not count."""
    accepted = (
        [expected] if isinstance(expected, (int, str)) else list(expected)  # type: ignore[call-overload]
    )
    texts = [" ".join(str(value).split()) for value in accepted]
    wanted = " or ".join(texts)
    if observed is None:
        why = f"was not read: {unread}" if unread else "does not exist there"
        return f"{key} {why}, expected {wanted}"
    if " ".join(observed.split()) in texts:
        return ""
    return f"{key} is {observed.strip()}, expected {wanted}; {_set_it(key, texts[0])}"


def explain_sysctl(op: str, left: object, right: object) -> list[str] | None:
    """Lines for pytest's explanation where a plain comparison with ``node.sysctl[key]`` failed.

    ``None`` leaves it to pytest's own.
    """
    from pytest_ipvs.cluster.handle import SysctlValue

    if op in ("==", "!=") and not isinstance(left, SysctlValue):
        left, right = right, left
    if not isinstance(left, SysctlValue):
        return None
    told = f"{left.key} on {left.node} is {left or 'empty'}"
    if isinstance(right, SysctlValue) and op in ("==", "!="):
        wanted = "the same" if op == "==" else "another"
        return [f"{told}, expected {wanted} as {right.key} on {right.node}, which is {right}"]
    if op == "==":
        return _expected(left, told, [right])
    if op == "in" and isinstance(right, (list, tuple, set, frozenset, range)):
        return _expected(left, told, list(right))
    words = {"!=": "anything but", "not in": "none of"}
    return [f"{told}, expected {words[op]} {right!r}"] if op in words else None


def _expected(value: SysctlValue, told: str, accepted: list[Any]) -> list[str]:
    # True is an int to Python, so it compares as 1, but a kernel takes no such word.
    texts = [str(int(one) if isinstance(one, bool) else one) for one in accepted]
    shown = " or ".join(texts[:SAMPLES_SHOWN]) or "nothing"
    more = len(texts) - SAMPLES_SHOWN
    lines = [f"{told}, expected {shown}" + (f" or one of {more} more" if more > 0 else "")]
    if any(value == one for one in accepted):
        lines.append("a set does not find a number among texts: use a tuple or a list")
    elif any(value == " ".join(text.split()) for text in texts):
        lines.append("white space between numbers is one space here")
    elif accepted and isinstance(accepted[0], (int, str)):
        lines.append(_set_it(value.key, texts[0]))
    return lines


def _set_it(key: str, value: str) -> str:
    return f"to set it: sysctl -w {key}={shlex.quote(value)}"


def _judge_cluster(cluster: Cluster, ids: Iterable[str]) -> None:
    __tracebackhide__ = True
    from pytest_ipvs.checks import CATALOGUE, Evidence, run_check
    from pytest_ipvs.report.findings import explain

    snapshots = cluster.observe()
    evidence = Evidence(snapshots=snapshots, policy=cluster.policy)
    texts = [f"{node} did not answer: {why}" for node, why in snapshots[-1].unreachable.items()]
    for check in ids:
        outcome = run_check(check, evidence)
        findings = [finding for finding in outcome.findings if finding.severity == "fail"]
        if findings or outcome.not_measured:
            texts.append(explain(check, CATALOGUE[check].title, findings, outcome.not_measured))
    if texts:
        raise AssertionError("\n\n".join(texts))


def _judge_rollout(run: Any, check: str, min_share: float | None = None) -> None:
    __tracebackhide__ = True
    from pytest_ipvs.checks import CATALOGUE, judge_rollout
    from pytest_ipvs.judged import judged
    from pytest_ipvs.report.findings import explain

    outcome = judge_rollout(check, judged(_result(run), check), min_new_pod_share=min_share)
    findings = [finding for finding in outcome.findings if finding.severity != "info"]
    if findings or outcome.not_measured:
        title = CATALOGUE[check].title
        text = explain(check, title, findings, outcome.not_measured)
        raise _kind(found=bool(findings))(text)


def _kind(*, found: bool) -> type[AssertionError]:
    return AssertionError if found else InconclusiveError


def _result(measured: Any) -> Any:
    """The result of a rollout whose block ended, or what was given."""
    return getattr(measured, "result", measured)


def _counted(failures: Any) -> Mapping[str, int]:
    return {name: number for name, number in dict(failures).items() if number}


def _connections(result: Any) -> int:
    return int(getattr(result, "results", result).connections)


def _weakness(result: Any) -> list[str]:
    """Why zero failures would prove nothing; empty where they do."""
    if getattr(result, "verdict", "") == "inconclusive":
        return list(result.reasons)
    from pytest_ipvs.rollout.power import own_limit_share
    from pytest_ipvs.rollout.verdict import client_reasons

    # A rollout's verdict has judged its client by the policy already.
    judged = hasattr(result, "verdict")
    share = 1.0 if judged else own_limit_share(None)
    return client_reasons(getattr(result, "results", result), share)


def _samples(result: Any, name: str) -> list[str]:
    samples = tuple(getattr(getattr(result, "results", result), name, ()))
    return [
        f"{sample.tuple_text}: {sample.name.replace('_', ' ')}"
        + (f" ({sample.errno})" if sample.errno else "")
        + (f", answered last by {sample.previous_pod}" if sample.previous_pod else "")
        for sample in samples[:SAMPLES_SHOWN]
    ]


def _cause(result: Any) -> list[str]:
    """What the rollout found out about the cause, as lines."""
    cause = getattr(result, "cause", None)
    if cause is None:
        return []
    return ["", *str(getattr(cause, "text", cause)).splitlines()]
