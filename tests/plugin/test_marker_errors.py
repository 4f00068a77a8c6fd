"""A wrong marker argument is one sentence with file and line, and exit code 4."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_ipvs.markers import MODES

WRONG = (
    (
        "ipvs_nodes(rol='x')",
        "marker ipvs_nodes got the unknown argument 'rol', expected role, selector, names or *",
    ),
    (
        "ipvs_nodes('node-1')",
        "marker ipvs_nodes got 'node-1' without a name, expected role, selector, names or kernel",
    ),
    ("ipvs_nodes(kernel='5.9')", "marker ipvs_nodes got kernel='5.9', expected comparisons *"),
    ("ipvs_nodes(names=3)", "marker ipvs_nodes got names=3, expected a node name or a list *"),
    ("ipvs_nodes(selector='a b')", "marker ipvs_nodes got selector='a b', expected a label *"),
    ("ipvs_requires(mod='ipvs')", "marker ipvs_requires got the unknown argument 'mod', *"),
    ("ipvs_requires(affinity=1)", "marker ipvs_requires got affinity=1, expected True or *"),
    ("ipvs_sysctl()", "marker ipvs_sysctl got nothing, expected one mapping such as *"),
    ("ipvs_sysctl('a.b')", "marker ipvs_sysctl got 'a.b', expected one mapping such as *"),
    ("ipvs_sysctl({'conntrack': 1})", "marker ipvs_sysctl got the key 'conntrack', *"),
    ("ipvs_sysctl({'a.b': True})", "marker ipvs_sysctl got a.b=True, expected a number *"),
    ("ipvs_disruptive('yes')", "marker ipvs_disruptive got 'yes', expected no argument"),
    ("ipvs_phase('later')", "marker ipvs_phase got 'later', expected one of before, during, *"),
    ("ipvs_check(1)", "marker ipvs_check got something else than one text, *"),
    (
        "ipvs_requires(mode='ipv')",
        "marker ipvs_requires got mode='ipv', expected one of ipvs, iptables, nftables, *",
    ),
    (
        "ipvs_check('ZZ-99')",
        "marker ipvs_check got 'ZZ-99', expected an id that --ipvs-list-checks shows, *",
    ),
    ("ipvs_group(name='ZZ')", "marker ipvs_group got name='ZZ', expected one of SY, *"),
)


@pytest.mark.parametrize("options", [(), ("--collect-only", "-p", "no:cacheprovider")])
def test_wrong_arguments(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    tests = [f"@pytest.mark.{marker}\ndef test_{n}(): pass" for n, (marker, _) in enumerate(WRONG)]
    pytester.makepyfile(test_it="\n".join(["import pytest", *tests]))
    result = pytester.runpytest_inprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            f"ERROR: test_it.py:{2 + 2 * n}: {sentence.replace('[', '[[]')}"
            for n, (_, sentence) in enumerate(WRONG)
        ]
    )
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_every_wrong_marker_is_named_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.ipvs_nodes(a=1)
        @pytest.mark.parametrize("number", [1, 2])
        def test_one(number): pass

        @pytest.mark.ipvs_phase()
        def test_two(): pass
        """
    )
    result = pytester.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert len([line for line in result.errlines if line.startswith("ERROR: ")]) == 2


@pytest.mark.parametrize("marker", ["ipvs_check()", "ipvs_check('ZZ-99')"])
def test_wrong_check_is_refused_before_checks_are_chosen(
    cluster_run: Callable[..., pytest.RunResult], marker: str
) -> None:
    result = cluster_run(
        f"import pytest\n@pytest.mark.{marker}\ndef test_it(): pass", "--ipvs-checks", "TB"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: test_it.py:2: marker ipvs_check got *"])


def test_every_mode_of_kube_proxy_may_be_required(pytester: pytest.Pytester) -> None:
    marks = "\n".join(f"@pytest.mark.ipvs_requires(mode={mode!r})" for mode in MODES)
    pytester.makepyfile(f"import pytest\n{marks}\ndef test_it(): pass")
    result = pytester.runpytest_inprocess("--collect-only")
    assert result.ret == 0


def test_right_markers_pass_strictly(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.ipvs_nodes(role="worker", selector="a=b", names=["n"], kernel=">=5.9")
        @pytest.mark.ipvs_phase("before")
        @pytest.mark.ipvs_check("TB-01")
        @pytest.mark.ipvs_group(name="TB")
        def test_it(): pass
        """
    )
    pytester.runpytest_inprocess("--strict-markers").assert_outcomes(passed=1)
