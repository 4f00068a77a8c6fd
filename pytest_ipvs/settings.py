"""The one resolver: option > environment > ini > policy file > default, into a frozen `Settings`.

What belongs here: the table of options (`OPTIONS`, the only place where an option is named) and
how a value is found, converted and blamed. What doesn't: what the values are used for.
Imported at each start of pytest, so this module imports nothing but the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from typing import Self

Kind = Literal["text", "flag", "count", "seconds", "number", "list", "choice"]


class SettingsError(Exception):
    """A setting has a value that can't be used; the text is one sentence that names its origin."""


# A NamedTuple and a plain class below, where the other rooms have dataclasses: each dataclass
# costs about a millisecond of every pytest start, with or without a cluster.
class Option(NamedTuple):
    """One setting: its names on every way in, its type, default and help."""

    name: str
    kind: Kind
    default: Any
    help: str
    group: str = "cluster"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    minimum: float = 0.0

    @property
    def attribute(self) -> str:
        """Name on `Settings` ("in_cluster")."""
        return self.name.replace("-", "_")

    @property
    def flag(self) -> str:
        """Name on the command line ("--ipvs-in-cluster")."""
        return f"--ipvs-{self.name}"

    @property
    def ini(self) -> str:
        """Ini key, also the ``dest`` of the command-line option ("ipvs_in_cluster")."""
        return f"ipvs_{self.attribute}"

    @property
    def environment(self) -> str:
        """Environment variable ("PYTEST_IPVS_IN_CLUSTER")."""
        return f"PYTEST_IPVS_{self.attribute.upper()}"

    def addoption(self) -> dict[str, Any]:
        """Keyword arguments for pytest's ``addoption``; an option not given is ``None``."""
        arguments: dict[str, Any] = {"dest": self.ini, "default": None, "help": self.help_text}
        if self.kind == "flag":
            return arguments | {"action": "store_true"}
        if self.kind == "list":
            arguments["action"] = "append"
        return arguments | {"metavar": self.metavar or self.attribute.upper()}

    def addini(self) -> dict[str, Any]:
        """Keyword arguments for pytest's ``addini``; a key not given is ``None``."""
        kind = "linelist" if self.kind == "list" else "string"
        return {"name": self.ini, "help": self.help_text, "type": kind, "default": None}

    @property
    def help_text(self) -> str:
        """Help with the default and the choices; % is doubled for argparse."""
        notes = []
        if self.choices:
            notes.append("one of " + ", ".join(self.choices))
        if self.default not in (None, False, ()):
            notes.append(f"default: {self.default}")
        text = f"{self.help} ({'; '.join(notes)})" if notes else self.help
        return text.replace("%", "%%")


OPTIONS: tuple[Option, ...] = (
    Option("kubeconfig", "text", None, "Kubeconfig file of the cluster under test", metavar="FILE"),
    Option("context", "text", None, "Context of the kubeconfig to use", metavar="NAME"),
    Option("in-cluster", "flag", False, "Use the service account of the pod that runs pytest"),
    Option(
        "connect",
        "text",
        None,
        "How nodes are reached: a testinfra URI with {name}, {internal_ip}, {external_ip} or "
        "{hostname}, such as ssh://root@{internal_ip}",
        metavar="URI",
    ),
    Option("ssh-config", "text", None, "OpenSSH client configuration for nodes", metavar="FILE"),
    Option("nodes", "list", (), "Names of the nodes to test, comma separated", metavar="NAMES"),
    Option("node-selector", "text", None, "Label selector of the nodes to test", metavar="LABELS"),
    Option("jobs", "count", 8, "Nodes that are read at the same time", minimum=1, metavar="N"),
    Option("timeout", "seconds", 20.0, "Time limit for reading one node", metavar="SECONDS"),
    Option(
        "converge-timeout",
        "seconds",
        60.0,
        "Time that tables have to follow the API before a difference counts",
        metavar="SECONDS",
    ),
    Option(
        "drain-budget",
        "seconds",
        210.0,
        "Time that a real server may stay at weight 0 before it counts as never draining",
        metavar="SECONDS",
    ),
    Option("policy", "text", None, "Policy file (ipvs.yaml)", group="verdict", metavar="FILE"),
    Option("strict", "flag", False, "Let warnings fail the run too", group="verdict"),
    Option(
        "checks",
        "list",
        (),
        "Checks to run, as ids or patterns such as SY-*, comma separated",
        group="verdict",
        metavar="IDS",
    ),
    Option(
        "allow-disruption",
        "flag",
        False,
        "Allow tests that create workloads, restart or delete pods",
        group="traffic",
    ),
    Option(
        "client",
        "text",
        "node",
        "Where test traffic starts: local, node, node:NAME, a testinfra URI, or job:N for N pods",
        group="traffic",
        metavar="WHERE",
    ),
    Option("rate", "number", 20.0, "New connections per second", group="traffic", metavar="N"),
    Option(
        "source-ports",
        "count",
        # At the default rate a port is back after 7.5 s. IPVS forgets a tuple that ended with RST
        # after 10 s, so a larger window would step over what DP-04 looks for.
        150,
        "Source ports that test traffic rotates over",
        group="traffic",
        minimum=1,
        metavar="N",
    ),
    Option(
        "baseline",
        "seconds",
        10.0,
        "Traffic before a disruption",
        group="traffic",
        metavar="SECONDS",
    ),
    Option(
        "settle", "seconds", 60.0, "Traffic after a disruption", group="traffic", metavar="SECONDS"
    ),
    Option(
        "pre-stop",
        "seconds",
        10.0,
        "Time that a pod of the throw-away workload serves on after its deletion",
        group="traffic",
        metavar="SECONDS",
    ),
    Option(
        "image",
        "text",
        "python:3.11-slim",
        "Image of the throw-away workload and of clients in pods; needs Python 3.8 or newer",
        group="traffic",
        metavar="IMAGE",
    ),
    Option(
        "load-balancer",
        "text",
        None,
        "Test through a load balancer too: auto, or the address to ask it for",
        group="traffic",
        metavar="ADDRESS",
    ),
    Option("lab", "flag", False, "Boot the one-machine lab and test it", group="lab"),
    Option(
        "lab-fault",
        "list",
        (),
        "Fault to put into the lab, NAME or NAME@NODE, comma separated",
        group="lab",
        metavar="NAME",
    ),
    Option("lab-kernel", "text", None, "Kernel release of the lab", group="lab", metavar="RELEASE"),
    Option(
        "lab-backend",
        "choice",
        "auto",
        "Where the lab's nodes live",
        group="lab",
        choices=("auto", "vm", "namespace"),
        metavar="KIND",
    ),
    Option("lab-name", "text", "default", "Name of the lab", group="lab", metavar="NAME"),
)


class Settings:
    """Every setting, resolved and frozen; `origin` tells where a value came from."""

    __slots__ = (*(option.attribute for option in OPTIONS), "_origins")

    kubeconfig: str | None
    context: str | None
    in_cluster: bool
    connect: str | None
    ssh_config: str | None
    nodes: tuple[str, ...]
    node_selector: str | None
    jobs: int
    timeout: float
    converge_timeout: float
    drain_budget: float
    policy: str | None
    strict: bool
    checks: tuple[str, ...]
    allow_disruption: bool
    client: str
    rate: float
    source_ports: int
    baseline: float
    settle: float
    pre_stop: float
    image: str
    load_balancer: str | None
    lab: bool
    lab_fault: tuple[str, ...]
    lab_kernel: str | None
    lab_backend: str
    lab_name: str
    _origins: Mapping[str, str]

    def __init__(self, values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> None:
        for option in OPTIONS:
            value = values.get(option.attribute, option.default)
            # Lists come back from JSON (settings cross to xdist workers).
            object.__setattr__(
                self, option.attribute, tuple(value) if isinstance(value, list) else value
            )
        object.__setattr__(self, "_origins", MappingProxyType(dict(origins or {})))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are frozen: use replaced() to set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings are frozen: {name} can't be deleted")

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, str]]:
        return self.values(), dict(self._origins)

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, str]]) -> None:
        Settings.__init__(self, *state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self.values() == other.values()

    def __hash__(self) -> int:
        return hash(tuple(self.values().values()))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._origins)
        return f"Settings({given})"

    @property
    def active(self) -> bool:
        """Whether a cluster (or the lab) was named, without which the plugin is inert."""
        return bool(self.kubeconfig or self.context or self.in_cluster or self.connect or self.lab)

    def values(self) -> dict[str, Any]:
        """All values by attribute name: plain types that survive JSON (tuples as lists)."""
        return {option.attribute: getattr(self, option.attribute) for option in OPTIONS}

    def origin(self, name: str) -> str:
        """Where the value of one setting came from, for error sentences ("--ipvs-jobs")."""
        attribute = name.replace("-", "_")
        return self._origins.get(attribute, f"the default of {BY_ATTRIBUTE[attribute].flag}")

    def replaced(self, origin: str, **values: Any) -> Self:
        """A copy with other values, all from one origin ("the lab")."""
        unknown = sorted(values.keys() - BY_ATTRIBUTE.keys())
        if unknown:
            raise TypeError(f"no such setting: {', '.join(unknown)}")
        origins = {**self._origins, **dict.fromkeys(values, origin)}
        return type(self)({**self.values(), **values}, origins)


BY_ATTRIBUTE: Mapping[str, Option] = {option.attribute: option for option in OPTIONS}


def resolve(
    cli: Mapping[str, Any],
    env: Mapping[str, str],
    ini: Mapping[str, Any],
    policy_file: Mapping[str, Any],
    *,
    policy_name: str = "ipvs.yaml",
) -> Settings:
    """Find every setting; the first source that gives it wins.

    ``cli`` and ``ini`` are keyed by `Option.ini` ("ipvs_jobs"; ``None`` = not given), ``env`` by
    `Option.environment`, ``policy_file`` is the ``settings:`` section of the policy file, keyed
    by name ("in-cluster" or "in_cluster"). Raises `SettingsError`.
    """
    section = _section(policy_file, policy_name)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in OPTIONS:
        for origin, given in _sources(option, cli, env, ini, section, policy_name):
            values[option.attribute] = _convert(option, given, origin)
            origins[option.attribute] = origin
            break
    settings = Settings(values, origins)
    _reject_contradictions(settings)
    return settings


def policy_path(
    cli: Mapping[str, Any], env: Mapping[str, str], ini: Mapping[str, Any]
) -> str | None:
    """The policy file to load before `resolve`, by the same order of precedence."""
    option = BY_ATTRIBUTE["policy"]
    for origin, given in _sources(option, cli, env, ini, {}, ""):
        return str(_convert(option, given, origin))
    return None


def any_given(cli: Mapping[str, Any], env: Mapping[str, str], ini: Mapping[str, Any]) -> bool:
    """Whether any setting is given at all: a cheap test before the policy file is looked for."""
    return any(True for option in OPTIONS for _ in _sources(option, cli, env, ini, {}, ""))


def _sources(
    option: Option,
    cli: Mapping[str, Any],
    env: Mapping[str, str],
    ini: Mapping[str, Any],
    section: Mapping[str, Any],
    policy_name: str,
) -> Iterator[tuple[str, Any]]:
    if (given := cli.get(option.ini)) is not None:
        yield option.flag, given
    # An empty variable or ini key is "not given": that is how CI systems unset one.
    if given := env.get(option.environment):
        yield option.environment, given
    if (given := ini.get(option.ini)) not in (None, "", []):
        yield f"ini key {option.ini}", given
    if (given := section.get(option.attribute)) is not None:
        yield f"{policy_name}: settings.{option.name}", given


def _section(policy_file: Mapping[str, Any], policy_name: str) -> dict[str, Any]:
    if not isinstance(policy_file, Mapping):
        raise SettingsError(
            f"{policy_name}: settings is {policy_file!r}, expected a mapping of setting to value"
        )
    section: dict[str, Any] = {}
    for name, value in policy_file.items():
        attribute = str(name).replace("-", "_")
        if attribute not in BY_ATTRIBUTE or attribute == "policy":
            known = ", ".join(o.name for o in OPTIONS if o.name != "policy")
            raise SettingsError(
                f"{policy_name}: settings.{name} is not a setting, expected one of {known}"
            )
        section[attribute] = value
    return section


def check_setting(name: str, value: Any, policy_name: str) -> None:
    """Refuse one setting of a policy file by itself. Raises `SettingsError`."""
    for attribute, given in _section({name: value}, policy_name).items():
        option = BY_ATTRIBUTE[attribute]
        if given is not None:
            _convert(option, given, f"{policy_name}: settings.{option.name}")


def _convert(option: Option, given: Any, origin: str) -> Any:
    return _CONVERTERS[option.kind](option, given, origin)


def _fail(given: Any, origin: str, expected: str) -> SettingsError:
    shown = repr(given) if isinstance(given, str) else str(given)
    return SettingsError(f"{origin} is {shown}, expected {expected}")


def _text(option: Option, given: Any, origin: str) -> str:
    if not isinstance(given, str) or not given.strip():
        raise _fail(given, origin, "some text")
    text = given.strip()
    if option.name == "client" and text not in ("local", "node", "job"):
        prefix, _, rest = text.partition(":")
        job = prefix == "job" and rest.isdigit() and int(rest) > 0
        if not (job or (rest and ("://" in text or prefix == "node"))):
            raise _fail(given, origin, "local, node, node:NAME, job, job:N or a testinfra URI")
    return text


def _choice(option: Option, given: Any, origin: str) -> str:
    if given not in option.choices:
        raise _fail(given, origin, "one of " + ", ".join(option.choices))
    return str(given)


_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _flag(option: Option, given: Any, origin: str) -> bool:
    word = str(given).strip().lower()
    if word not in _TRUE | _FALSE:
        raise _fail(given, origin, "true or false")
    return word in _TRUE


def _count(option: Option, given: Any, origin: str) -> int:
    try:
        number = -1 if isinstance(given, (bool, float)) else int(given)
    except (TypeError, ValueError):
        number = -1
    if number < option.minimum:
        raise _fail(given, origin, f"a whole number of at least {option.minimum:g}")
    return number


def _number(option: Option, given: Any, origin: str) -> float:
    try:
        number = -1.0 if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        number = -1.0
    what = "a number of seconds" if option.kind == "seconds" else "a number"
    # Seconds of a phase may be 0 (leave it out); a limit or a rate of 0 would mean "never".
    zero_is_fine = option.name in ("baseline", "settle", "pre-stop")
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero_is_fine):
        raise _fail(given, origin, what + (" of at least 0" if zero_is_fine else " above 0"))
    return number


def _list(option: Option, given: Any, origin: str) -> tuple[str, ...]:
    parts = [given] if isinstance(given, str) else given
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, str) for p in parts):
        raise _fail(given, origin, "a list of words")
    words = (word for part in parts for word in part.replace(",", " ").split())
    unique = tuple(dict.fromkeys(words))
    if not unique:
        raise _fail(given, origin, "at least one word")
    return unique


_CONVERTERS: Mapping[str, Callable[[Option, Any, str], Any]] = {
    "text": _text,
    "choice": _choice,
    "flag": _flag,
    "count": _count,
    "seconds": _number,
    "number": _number,
    "list": _list,
}


def _reject_contradictions(settings: Settings) -> None:
    pairs = (
        ("in_cluster", "kubeconfig"),
        ("in_cluster", "context"),
        ("lab", "kubeconfig"),
        ("lab", "context"),
        ("lab", "in_cluster"),
        ("lab", "connect"),
    )
    for one, other in pairs:
        if getattr(settings, one) and getattr(settings, other):
            raise SettingsError(
                f"{settings.origin(one)} and {settings.origin(other)} contradict each other, "
                "expected only one of them"
            )
    if settings.lab_fault and not settings.lab:
        raise SettingsError(f"{settings.origin('lab_fault')} needs --ipvs-lab, which is not given")
