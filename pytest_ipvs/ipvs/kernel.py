"""Which IPVS fixes a kernel carries, as far as its release tells.

Three commits change the advice. b (f0a5e4d7a594): a reused port whose conntrack entry is new is
rescheduled at once, instead of dropping its first SYN. c (35dfb013149f): deleting a real server
expires its connections, and a packet for it is rescheduled. d (c95c07836fa4): with
expire_nodest_conn=1 a real server at weight 0 gets no reused connection, whatever conn_reuse_mode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Fix = Literal["b", "c", "d"]
FIXES: tuple[Fix, ...] = ("b", "c", "d")
# kube-proxy itself decides by these numbers of `uname -r`.
FIRST_WITH_REUSE_MODE = (4, 1)
FIRST_LEFT_ALONE_BY_PROXY = (5, 9)
# From here on conn_tab_bits is an upper bound only: the table grows with its entries.
FIRST_WITH_RESIZABLE_TABLES = (7, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRelease:
    """A kernel. ``number`` is (major, minor, patch) of the stable release it is built from.

    ``vendor`` is "debian", "ubuntu", "rhel", …, "" where the text tells none. ``tracks_stable``
    tells whether a fix that the number lacks is truly absent: vendors that port fixes back to an
    old number leave that open.
    """

    release: str
    number: tuple[int, int, int]
    vendor: str
    tracks_stable: bool

    @property
    def release_number(self) -> tuple[int, int]:
        """(major, minor) of ``uname -r``: what kube-proxy decides by."""
        return self.number[:2]

    def __str__(self) -> str:
        number = ".".join(map(str, self.number))
        return self.release if self.release.startswith(number) else f"{self.release} ({number})"

    @classmethod
    @lru_cache(maxsize=256)
    def parse(cls, release: str, version_text: str = "") -> KernelRelease:
        """Read ``uname -r`` and ``uname -v``. Raises ``ValueError`` where no number is found.

        Debian's release names its ABI ("6.1.0-56-amd64"); the true number is in the version
        text ("#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)").
        """
        found = _RELEASE.match(release.strip())
        if not found:
            raise ValueError(
                f"kernel release {release!r}: expected a number such as 6.1.0-13-amd64"
            )
        number = (int(found[1]), int(found[2]), int(found[3] or 0))
        vendor = next(
            (
                name
                for name, pattern in _VENDORS
                if re.search(pattern, release) or re.search(pattern, version_text)
            ),
            "",
        )
        suffix = release.strip()[found.end() :]
        tracks = vendor in _TRACKS_STABLE or (not vendor and not suffix.strip("+"))
        if vendor == "debian":
            true = _DEBIAN_VERSION.search(version_text)
            if true:
                number = (int(true[1]), int(true[2]), int(true[3] or 0))
            elif number[2] == 0:
                # "6.1.0-56-amd64" without the version text: the patch level is not known.
                tracks = False
        return cls(release=release.strip(), number=number, vendor=vendor, tracks_stable=tracks)


def fixes(
    kernel: KernelRelease, overrides: Iterable[tuple[str, Mapping[str, bool]]] = ()
) -> dict[Fix, bool | None]:
    """Which fixes the kernel has: ``True``, ``False``, or ``None`` where its number can't tell.

    ``overrides`` are (regular expression searched in ``uname -r``, {"b": True, …}): the first
    that matches and names a fix decides it.
    """
    answers: dict[Fix, bool | None] = {}
    listed = [(pattern, dict(known)) for pattern, known in overrides]
    for fix in FIXES:
        decided = next(
            (known[fix] for pattern, known in listed if fix in known and _matches(pattern, kernel)),
            None,
        )
        answers[fix] = _by_number(kernel, fix) if decided is None else decided
    return answers


def _matches(pattern: str, kernel: KernelRelease) -> bool:
    return re.search(pattern, kernel.release) is not None


def _by_number(kernel: KernelRelease, fix: Fix) -> bool | None:
    major, minor, patch = kernel.number
    if (major, minor) >= _FIRST_MAINLINE[fix]:
        return True
    has, perhaps = _STABLE[fix].get((major, minor), (None, None))
    if has is not None and patch >= has:
        return True
    if not kernel.tracks_stable or (perhaps is not None and patch >= perhaps):
        return None
    return False


# The kernel of the stable release on the right is the first that has the key; a vendor may have
# ported it back, so this explains an absent key and never says that a key must be there.
_FIRST_WITH_KEY: Mapping[str, tuple[int, int]] = {
    "net.ipv4.vs.conn_reuse_mode": FIRST_WITH_REUSE_MODE,
    "net.ipv4.vs.run_estimation": (5, 17),
    "net.ipv4.vs.est_cpulist": (6, 2),
    "net.ipv4.vs.est_nice": (6, 2),
    "net.ipv4.vs.conn_lfactor": FIRST_WITH_RESIZABLE_TABLES,
    "net.ipv4.vs.svc_lfactor": FIRST_WITH_RESIZABLE_TABLES,
    "net.ipv4.vs.conn_max": (7, 2),
}
# Which module makes the keys below a prefix.
_MODULE_OF_KEYS = {
    "net.ipv4.vs.": "ip_vs",
    "net.bridge.": "br_netfilter",
    "net.netfilter.nf_conntrack_": "nf_conntrack",
}
MACHINE_KEYS = frozenset(
    f"net.ipv4.vs.{name}"
    for name in ("sync_qlen_max", "est_cpulist", "amemthresh", "conn_lfactor", "svc_lfactor")
)
"""Settings whose default the kernel takes from memory and processors, so that like nodes differ."""


def why_absent(key: str, kernel: KernelRelease | None, *, ip_vs_loaded: bool = True) -> str:
    """Why a sysctl does not exist: an older kernel, or a module that is not loaded.

    ``kernel`` is ``None`` where it is not known. Sources: Linux ipvs-sysctl.rst of several
    releases, and the settings of kernels 5.10, 6.1, 6.12, 7.1 and 7.2.
    """
    module = next((m for prefix, m in _MODULE_OF_KEYS.items() if key.startswith(prefix)), "")
    if module and (module != "ip_vs" or not ip_vs_loaded):
        return f"the module {module} is not loaded"
    first = _FIRST_WITH_KEY.get(key)
    if first is not None and kernel is not None and kernel.release_number < first:
        return f"kernel {kernel} is older than {first[0]}.{first[1]}, the first that has it"
    if module:
        return f"the module {module} of this kernel does not have it"
    return "this kernel does not have it, or it was not asked for"


_RELEASE = re.compile(r"(\d{1,4})\.(\d{1,5})(?:\.(\d{1,6}))?")
_DEBIAN_VERSION = re.compile(r"\bDebian (\d{1,4})\.(\d{1,5})(?:\.(\d{1,6}))?")
# Order matters: elrepo builds stable kernels for RHEL's releases.
_VENDORS = (
    ("elrepo", r"\.elrepo\b"),
    ("amazon", r"\.amzn\d"),
    ("oracle", r"\.el\d+uek"),
    ("rhel", r"\.el\d+"),
    ("fedora", r"\.fc\d+"),
    ("tencent", r"tlinux|\.tl\d|tencent"),
    ("alibaba", r"\.al\d|\.an\d|\.alnx"),
    ("openeuler", r"\.oe\d|\.oe\b"),
    ("suse", r"-default$|-azure-suse|\bSUSE\b"),
    (
        "ubuntu",
        r"-Ubuntu\b|-(?:generic|lowlatency|aws|azure|gcp|gke|oracle|ibm|raspi|nvidia|kvm)(?:-\w+)?$",
    ),
    ("proxmox", r"-pve$"),
    ("photon", r"\.ph\d"),
    ("euleros", r"\.euleros|\.hce\d"),
    ("kylin", r"\.ky\d"),
    ("arch", r"-arch\d"),
    ("gentoo", r"-gentoo"),
    ("linuxkit", r"-linuxkit$"),
    ("raspberrypi", r"\+rpt-rpi|-v[678]l?\+$"),
    ("microsoft", r"-microsoft-standard"),
    ("flatcar", r"-flatcar$|-coreos"),
    ("talos", r"-talos$"),
    ("azurelinux", r"\.cm\d|\.azl\d"),
    ("alpine", r"-\d+-(?:lts|virt)$"),
    ("debian", r"\bDebian\b|\+deb\d|-\d+(?:-cloud|-rt)?-(?:amd64|arm64|686(?:-pae)?|armmp)$"),
)
_TRACKS_STABLE = frozenset(
    {
        "debian",
        "elrepo",
        "amazon",
        "fedora",
        "flatcar",
        "talos",
        "azurelinux",
        "alpine",
        "photon",
        "arch",
        "gentoo",
        "linuxkit",
        "raspberrypi",
        "microsoft",
    }
)
_FIRST_MAINLINE: Mapping[Fix, tuple[int, int]] = {"b": (5, 9), "c": (5, 9), "d": (5, 16)}
# Per stable branch: (first release that has the fix, first that may have it); None = none known.
_STABLE: Mapping[Fix, Mapping[tuple[int, int], tuple[int | None, int | None]]] = {
    "b": {
        (4, 14): (194, None),
        (4, 19): (140, None),
        # Announced in the same batch as the others, seen for certain only later.
        (5, 4): (163, 59),
        (5, 7): (16, None),
        (5, 8): (2, None),
    },
    "c": {},
    "d": {
        # Queued for these in December 2021; their release numbers are not confirmed.
        (4, 4): (None, 290),
        (4, 9): (None, 290),
        (4, 14): (None, 255),
        (4, 19): (219, None),
        (5, 4): (163, None),
        (5, 10): (83, None),
        (5, 15): (6, None),
    },
}
