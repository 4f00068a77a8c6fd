"""Which fixes a kernel has, by its release."""

from __future__ import annotations

import string

import pytest
from any_text import any_text
from hypothesis import example, given
from hypothesis import strategies as st
from ipvs_recorded import KERNELS, captured, vs_settings

from pytest_ipvs.ipvs.kernel import FIXES, KernelRelease, fixes, why_absent

YES, NO, OPEN = True, False, None
DEBIAN = "#1 SMP PREEMPT_DYNAMIC Debian {}-1 (2026-11-16)"


@pytest.mark.parametrize(
    ("release", "version", "number", "b", "c", "d"),
    [
        # Debian's release has the number of its ABI, the true one is in the version text.
        ("6.1.0-56-amd64", DEBIAN.format("6.1.192"), (6, 1, 192), YES, YES, YES),
        ("5.10.0-9-amd64", DEBIAN.format("5.10.70"), (5, 10, 70), YES, YES, NO),
        ("5.10.0-32-cloud-amd64", DEBIAN.format("5.10.223"), (5, 10, 223), YES, YES, YES),
        ("5.10.0-9-amd64", "", (5, 10, 0), YES, YES, OPEN),
        ("4.19.0-10-amd64", DEBIAN.format("4.19.132"), (4, 19, 132), NO, NO, NO),
        ("4.19.0-16-amd64", DEBIAN.format("4.19.181"), (4, 19, 181), YES, NO, NO),
        ("4.19.0-27-amd64", DEBIAN.format("4.19.316"), (4, 19, 316), YES, NO, YES),
        # Who builds stable releases is believed.
        ("5.15.5-100.fc34.x86_64", "", (5, 15, 5), YES, YES, NO),
        ("5.15.6-100.fc34.x86_64", "", (5, 15, 6), YES, YES, YES),
        ("5.4.58-27.104.amzn2.x86_64", "", (5, 4, 58), NO, NO, NO),
        ("5.4.100-1.el7.elrepo.x86_64", "", (5, 4, 100), OPEN, NO, NO),
        ("5.4.163", "", (5, 4, 163), YES, NO, YES),
        ("5.8.1", "", (5, 8, 1), NO, NO, NO),
        ("5.8.2", "", (5, 8, 2), YES, NO, NO),
        ("5.7.16", "", (5, 7, 16), YES, NO, NO),
        ("4.14.194", "", (4, 14, 194), YES, NO, NO),
        ("4.14.300", "", (4, 14, 300), YES, NO, OPEN),
        ("5.16.0", "", (5, 16, 0), YES, YES, YES),
        ("7.2.13+deb14-cloud-amd64", DEBIAN.format("7.2.13"), (7, 2, 13), YES, YES, YES),
        # Vendors that port back: what the number lacks is open.
        ("4.18.0-513.el8.x86_64", "", (4, 18, 0), OPEN, OPEN, OPEN),
        ("3.10.0-1160.el7.x86_64", "", (3, 10, 0), OPEN, OPEN, OPEN),
        ("5.14.0-362.el9.x86_64", "", (5, 14, 0), YES, YES, OPEN),
        ("5.15.0-91-generic", "#101-Ubuntu SMP", (5, 15, 0), YES, YES, OPEN),
        ("4.19.91-26.al7.x86_64", "", (4, 19, 91), OPEN, OPEN, OPEN),
        ("5.4.119-19.0009.28-tlinux", "", (5, 4, 119), OPEN, OPEN, OPEN),
        ("5.10.50-some-vendor", "", (5, 10, 50), YES, YES, OPEN),
    ],
)
def test_fixes_by_release(
    release: str,
    version: str,
    number: tuple[int, int, int],
    b: bool | None,
    c: bool | None,
    d: bool | None,
) -> None:
    kernel = KernelRelease.parse(release, version)
    assert kernel.number == number
    assert fixes(kernel) == {"b": b, "c": c, "d": d}


@pytest.mark.parametrize("kernel", KERNELS)
def test_captured_kernels_have_all_fixes(kernel: str) -> None:
    first = captured(kernel, "uname").splitlines()[0]
    release, version = first.split(" ", 3)[2:]
    assert release == kernel
    assert set(fixes(KernelRelease.parse(release, version)).values()) == {True}


def test_the_first_override_that_names_a_fix_decides_it() -> None:
    kernel = KernelRelease.parse("4.18.0-513.el8.x86_64")
    overrides = (
        (r"\.el7", {"b": False}),
        (r"\.el8", {"b": True}),
        (r"^4\.18", {"b": False, "d": True}),
    )
    assert fixes(kernel, overrides) == {"b": True, "c": None, "d": True}


@pytest.mark.parametrize("release", ["", "linux", "v6.1"])
def test_no_number_is_an_error(release: str) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        KernelRelease.parse(release)


def test_text_shows_the_true_number() -> None:
    kernel = KernelRelease.parse("6.1.0-56-amd64", DEBIAN.format("6.1.192"))
    assert str(kernel) == "6.1.0-56-amd64 (6.1.192)"
    assert kernel.release_number == (6, 1)
    assert str(KernelRelease.parse("6.12.107+deb13-amd64")) == "6.12.107+deb13-amd64"


# Texts near what kernels say, and any others.
WORDS = st.one_of(
    any_text(40),
    st.text(alphabet=string.digits + ".-+ \n", max_size=20),
    st.builds("{}.{}{}".format, st.integers(0, 10**7), st.integers(0, 10**7), any_text(20)),
)


@given(release=WORDS, version=st.one_of(any_text(60), WORDS.map("#1 SMP Debian {}".format)))
@example(release="6.1.0-56-amd64", version="Debian 99999.1")
@example(release="\u0666.\u0661.\u0660", version="")
def test_any_text_is_a_kernel_or_a_value_error(release: str, version: str) -> None:
    try:
        kernel = KernelRelease.parse(release, version)
    except ValueError:
        return
    assert kernel.release == release.strip()
    assert len(kernel.number) == 3
    assert kernel.release in str(kernel)
    answers = fixes(kernel)
    assert tuple(answers) == FIXES
    # A fix is known to be absent only where the number of a stable release says so.
    assert kernel.tracks_stable or False not in answers.values()


@given(major=st.integers(3, 9), minor=st.integers(0, 30), patch=st.integers(0, 400))
def test_a_later_release_of_a_branch_keeps_its_fixes(major: int, minor: int, patch: int) -> None:
    older = fixes(KernelRelease.parse(f"{major}.{minor}.{patch}"))
    newer = fixes(KernelRelease.parse(f"{major}.{minor}.{patch + 1}"))
    assert all(newer[fix] for fix in FIXES if older[fix])


@pytest.mark.parametrize(
    ("release", "vendor"),
    [
        ("5.15.0-1057-aws", "ubuntu"),
        ("6.8.0-1012-nvidia-64k", "ubuntu"),
        ("6.8.12-4-pve", "proxmox"),
        ("6.1.10-11.ph5", "photon"),
        ("4.19.90-2107.6.0.0100.oe1.bclinux.x86_64", "openeuler"),
        ("4.19.90-52.22.v2207.ky10.x86_64", "kylin"),
        ("6.6.54-0-virt", "alpine"),
        ("6.11.2-arch1-1", "arch"),
        ("6.6.31+rpt-rpi-v8", "raspberrypi"),
        ("5.15.153.1-microsoft-standard-WSL2", "microsoft"),
        ("6.10.14-linuxkit", "linuxkit"),
        ("6.12.107", ""),
    ],
)
def test_vendors_by_release(release: str, vendor: str) -> None:
    assert KernelRelease.parse(release).vendor == vendor


def test_absent_settings_are_explained() -> None:
    old = KernelRelease.parse("6.1.0-56-amd64", DEBIAN.format("6.1.192"))
    key = "net.ipv4.vs.conn_max"
    assert why_absent(key, old) == (
        "kernel 6.1.0-56-amd64 (6.1.192) is older than 7.2, the first that has it"
    )
    assert why_absent(key, old, ip_vs_loaded=False) == "the module ip_vs is not loaded"
    assert why_absent(key, None) == "the module ip_vs of this kernel does not have it"
    bridge = "net.bridge.bridge-nf-call-iptables"
    assert why_absent(bridge, old) == "the module br_netfilter is not loaded"
    assert why_absent("net.netfilter.nf_conntrack_max", old) == (
        "the module nf_conntrack is not loaded"
    )
    assert "does not have it" in why_absent("net.ipv4.tcp_tw_reuse_delay", old)


@pytest.mark.parametrize("release", KERNELS)
def test_what_is_said_of_absent_settings_is_true_of_real_kernels(release: str) -> None:
    kernel = KernelRelease.parse(release)
    settings = vs_settings(release)
    newest = vs_settings(KERNELS[-1])
    for key in newest.keys() | settings.keys():
        too_old = "is older than" in why_absent(key, kernel)
        assert too_old == (key not in settings), key
