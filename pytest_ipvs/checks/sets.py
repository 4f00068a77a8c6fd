"""TB-09 and TB-11: addresses of kube-ipvs0 and members of ipsets against the Services."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pytest_ipvs.checks.detailed import Moment, moment, not_settled
from pytest_ipvs.checks.findings import Finding, NotMeasured, Severity
from pytest_ipvs.checks.model import Check, Evidence, Said
from pytest_ipvs.checks.nodes import (
    RESTART_PROXY,
    NodeView,
    detail,
    rules_of,
    silent_nodes,
    views,
    why_unread,
)
from pytest_ipvs.cluster.expectation import budgets_of, node_of
from pytest_ipvs.cluster.model import NodeFacts, Snapshot
from pytest_ipvs.ipvs.compare import Difference, is_foreign
from pytest_ipvs.ipvs.expected import DUMMY_INTERFACE
from pytest_ipvs.ipvs.netfilter import IpSet
from pytest_ipvs.ipvs.overtime import Sample, Tracker
from pytest_ipvs.ipvs.proxy import ProxyRules
from pytest_ipvs.ipvs.proxy_chains import set_name
from pytest_ipvs.ipvs.proxy_sets import (
    VIRTUAL_ADDRESSES,
    ExpectedSet,
    expected_sets,
    used_families,
    virtual_addresses,
)
from pytest_ipvs.ipvs.tables import ServiceKey

_UNBOUND = "the node does not take packets to this address for its own, so IPVS never sees them"
_BOUND = "the node keeps packets to this address to itself, although no Service has it"


def addresses(evidence: Evidence) -> Said:
    """kube-ipvs0 has the virtual addresses and no other, and so has KUBE-IPVS-IPS.

    The device is in every reading, so that time decides: a difference must outlast the time that
    kube-proxy may lag. The set is among the details, see ``checks.detailed``; from 1.27 on
    kube-proxy makes it for certain, so that a set that lacks is a fault.
    """
    check = "TB-09"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        wrong: set[str] = set()
        for said in _device(check, evidence, view, wrong):
            yield said
            if isinstance(said, NotMeasured) and said.fact != "a later reading":
                break
        else:
            yield from _address_set(check, evidence, view, wrong)


def _device(check: str, evidence: Evidence, view: NodeView, wrong: set[str]) -> Said:
    """What is wrong with kube-ipvs0; its addresses are put into ``wrong``."""
    rules = rules_of(check, view.facts, view.node, evidence.last.server_version)
    if isinstance(rules, NotMeasured):
        yield rules
        return
    if not view.facts.addresses:
        reason = why_unread(view.facts, "addresses", "the node's addresses were not read")
        yield NotMeasured(check=check, node=view.name, fact="addresses", reason=reason)
        return
    budgets = budgets_of(view.policy, rules)
    tracker = Tracker(budgets)
    for snapshot in evidence.snapshots:
        facts = snapshot.facts.get(view.name)
        if facts is not None and facts.addresses:
            found = tuple(_address_differences(snapshot, facts, rules, view))
            tracker.add(Sample(taken_at=facts.taken_at, differences=found))
    judged = tracker.judge()
    wrong.update(item.difference.key.address for item in judged)
    decided = [item.difference for item in judged if item.decided]
    missing = [item for item in decided if item.kind == "missing-virtual-server"]
    if missing and DUMMY_INTERFACE not in dict(view.facts.addresses):
        yield Finding(
            check=check,
            severity="fail",
            node=view.name,
            object=DUMMY_INTERFACE,
            observed="no address",
            expected="the addresses of all Services",
            reason=_UNBOUND.replace("this address", "virtual addresses"),
            remedy=RESTART_PROXY,
            evidence=f"{len(missing)} addresses lacking, such as {missing[0].key.address}",
        )
        decided = [item for item in decided if item.kind != "missing-virtual-server"]
    for item in decided:
        lacks = item.kind == "missing-virtual-server"
        address = item.key.address
        yield Finding(
            check=check,
            severity="fail",
            node=view.name,
            object=f"{DUMMY_INTERFACE} {address}",
            observed=item.observed,
            expected=item.expected,
            reason=_UNBOUND if lacks else _BOUND,
            remedy=f"look into kube-proxy's log for this address, then {RESTART_PROXY}"
            if lacks
            else f"on the node: ip addr del {address} dev {DUMMY_INTERFACE}, or name it in the "
            "policy file under foreign_virtual_servers if another program owns it",
            evidence=f"Service {item.service}" if item.service else "",
        )
    undecided = [item for item in judged if not item.decided]
    if undecided:
        first = undecided[0]
        more = f" (and {len(undecided) - 1} more)" if len(undecided) > 1 else ""
        yield NotMeasured(
            check=check,
            node=view.name,
            fact="a later reading",
            reason=f"{first.difference.key.address} is {first.difference.observed} on "
            f"{DUMMY_INTERFACE}, expected {first.difference.expected}: not judged yet, seen for "
            f"{first.age:.0f} s of the {budgets.converge:.0f} s that it may last{more}",
        )


def _address_differences(
    snapshot: Snapshot, facts: NodeFacts, rules: ProxyRules, view: NodeView
) -> Iterator[Difference]:
    there = {
        text.partition("/")[0].partition("%")[0]
        for interface, text in facts.addresses
        if interface == DUMMY_INTERFACE
    }
    for family in used_families(snapshot.services, rules, node_of(snapshot, facts.node)):
        should = virtual_addresses(snapshot.services, facts.addresses, rules, family)
        for address, service in should.required.items():
            if address not in there:
                moving = service in snapshot.moving
                yield Difference(
                    kind="moving" if moving else "missing-virtual-server",
                    key=ServiceKey("", address, 0),
                    real_server=None,
                    observed="absent",
                    expected="bound",
                    service=service,
                )
        known = should.required.keys() | should.allowed.keys()
        for address in sorted(there - known):
            if (":" in address) != (family == "IPv6") or address.startswith("fe80:"):
                continue
            if _foreign_address(address, facts, rules, view.policy.foreign_virtual_servers):
                continue
            yield Difference(
                kind="moving" if snapshot.moving else "unexplained-virtual-server",
                key=ServiceKey("", address, 0),
                real_server=None,
                observed="bound",
                expected="absent: no Service has this address",
                service="",
            )


def _foreign_address(
    address: str, facts: NodeFacts, rules: ProxyRules, patterns: Collection[str]
) -> bool:
    """Whether another program answers for the address: by itself or by a virtual server on it."""
    keys = [ServiceKey("TCP", address, 0)]
    if facts.table is not None:
        keys += [one.key for one in facts.table.virtual_servers if one.address == address]
    return any(is_foreign(key, patterns, rules.exclude_cidrs) for key in keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SetFault:
    set: str
    member: str
    service: str
    there: bool

    @property
    def place(self) -> str:
        """The address or port that a difference of the table would have."""
        return self.member.partition(",")[0]


def _faults(should: ExpectedSet, actual: IpSet) -> Iterator[_SetFault]:
    for member in sorted(should.required.keys() - actual.members):
        service = should.required[member]
        yield _SetFault(set=should.name, member=member, service=service, there=False)
    for member in sorted(actual.members - should.required.keys() - should.allowed.keys()):
        yield _SetFault(set=should.name, member=member, service="", there=True)


def _wanted(evidence: Evidence, view: NodeView, found: Moment) -> tuple[ExpectedSet, ...]:
    """The sets of all families in use; computed once for both checks."""
    memo: dict[str, tuple[ExpectedSet, ...]] = evidence.memo.setdefault("ipsets", {})
    if view.name not in memo:
        memo[view.name] = tuple(
            one
            for family in found.families
            for one in expected_sets(
                services=found.snapshot.services,
                slices=found.snapshot.endpoint_slices,
                node=found.node,
                addresses=found.facts.addresses,
                rules=found.rules,
                family=family,
            )
        )
    return memo[view.name]


def _judge_faults(
    check: str, view: NodeView, found: Moment, faults: list[_SetFault], severity: Severity
) -> Said:
    """Findings for what is certain, one answer for what may be lag."""
    doubts = []
    for fault in faults:
        if fault.there and is_foreign(
            ServiceKey("TCP", fault.place, 0),
            view.policy.foreign_virtual_servers,
            found.rules.exclude_cidrs if fault.set.endswith("IPVS-IPS") else (),
        ):
            continue
        doubt = found.doubt(fault.service, fault.place)
        if doubt is not None:
            doubts.append((fault, doubt))
            continue
        yield Finding(
            check=check,
            severity=severity,
            node=view.name,
            object=f"ipset {fault.set} {fault.member}",
            observed="present" if fault.there else "absent",
            expected="absent: no Service asks for it" if fault.there else "present",
            reason="kube-proxy's rules match on this set: traffic to this member is masqueraded, "
            "accepted or refused otherwise than its Service asks",
            remedy=f"on the node: ipset {'del' if fault.there else 'add'} {fault.set} "
            f"{fault.member}; it comes back with the next sync if kube-proxy caused it: "
            f"{RESTART_PROXY}",
            evidence=f"Service {fault.service}" if fault.service else "",
        )
    if doubts:
        fault, doubt = doubts[0]
        state = "present" if fault.there else "absent"
        what = f"{fault.member} is {state} in ipset {fault.set}"
        yield not_settled(check, view.name, what, doubt, len(doubts) - 1)


def _details(
    check: str, evidence: Evidence, view: NodeView
) -> tuple[Moment, Mapping[str, IpSet]] | NotMeasured:
    found = moment(check, evidence, view)
    if isinstance(found, NotMeasured):
        return found
    sets = detail(check, evidence, view, "ipsets")
    return sets if isinstance(sets, NotMeasured) else (found, sets)


def _address_set(check: str, evidence: Evidence, view: NodeView, wrong: set[str]) -> Said:
    read = _details(check, evidence, view)
    if isinstance(read, NotMeasured):
        yield read
        return
    found, sets = read
    wanted = [one for one in _wanted(evidence, view, found) if one.name in _ADDRESS_SETS]
    yield from _absent(check, view, found, wanted, sets, "fail")
    faults = [
        fault
        for should in wanted
        if should.judged and _is_there(should, sets)
        for fault in _faults(should, sets[should.name])
        # One fault of the device is told once.
        if fault.member not in wrong
    ]
    yield from _judge_faults(check, view, found, faults, "fail")


_ADDRESS_SETS = tuple(set_name(VIRTUAL_ADDRESSES, family) for family in ("IPv4", "IPv6"))


def members(evidence: Evidence) -> Said:
    """Every ipset of kube-proxy is there, of its kind, and has the members of its Services.

    Judged at the one moment at which the details were read, and only where nothing was about to
    change: see ``checks.detailed``. KUBE-IPVS-IPS is TB-09's.
    """
    check = "TB-11"
    yield from silent_nodes(check, evidence)
    for view in views(evidence):
        read = _details(check, evidence, view)
        if isinstance(read, NotMeasured):
            yield read
            continue
        found, sets = read
        wanted = [one for one in _wanted(evidence, view, found) if one.name not in _ADDRESS_SETS]
        if any(one.required for one in wanted if not one.judged):
            why = why_unread(found.facts, "addresses", "the node's addresses were not read")
            yield NotMeasured(check=check, node=view.name, fact="addresses", reason=why)
        yield from _absent(check, view, found, wanted, sets, "warn")
        faults = [
            fault
            for should in wanted
            if should.judged and _is_there(should, sets)
            for fault in _faults(should, sets[should.name])
        ]
        yield from _judge_faults(check, view, found, faults, "warn")


def _is_there(should: ExpectedSet, sets: Mapping[str, IpSet]) -> bool:
    """Whether the set exists and is of its kind: else its members can't be compared."""
    return should.name in sets and sets[should.name].kind == should.kind


def _absent(
    check: str,
    view: NodeView,
    found: Moment,
    wanted: Iterable[ExpectedSet],
    sets: Mapping[str, IpSet],
    severity: Severity,
) -> Said:
    """Sets that lack or are of another kind. kube-proxy makes all of them when it starts."""
    for should in wanted:
        actual = sets.get(should.name)
        if actual is None and should.optional:
            continue
        if _is_there(should, sets):
            continue
        observed = "no such set" if actual is None else actual.kind
        if found.restless is not None:
            what = f"ipset {should.name}: {observed}, expected {should.kind}"
            yield not_settled(check, view.name, what, found.restless)
            return
        yield Finding(
            check=check,
            severity=severity,
            node=view.name,
            object=f"ipset {should.name}",
            observed=observed,
            expected=should.kind,
            reason="kube-proxy's rules match on this set, and can't be written without it",
            remedy=RESTART_PROXY,
        )


_CHECK = Check(
    id="TB-09",
    title="kube-ipvs0 and KUBE-IPVS-IPS have the virtual addresses, and no other",
    group="TB",
    severity="fail",
    permission="node",
    needs=frozenset({"addresses", "details.ipsets", "proxy.version", "proxy.metrics"}),
    source="kube-proxy pkg/proxy/ipvs/proxier.go; kubernetes/kubernetes pull 115019",
    run=addresses,
)

CHECKS = (
    _CHECK,
    replace(
        _CHECK,
        id="TB-11",
        title="kube-proxy's ipsets have the members that the Services ask for",
        severity="warn",
        source="kube-proxy pkg/proxy/ipvs/proxier.go and pkg/proxy/ipvs/ipset.go",
        run=members,
    ),
)
