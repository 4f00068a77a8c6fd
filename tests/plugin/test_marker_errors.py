"""A wrong marker argument is one sentence with file and line, and exit code 4."""

from __future__ import annotations

import pytest

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


def test_right_markers_pass_strictly(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.ipvs_nodes(role="worker", selector="a=b", names=["n"], kernel=">=5.9")
        @pytest.mark.ipvs_phase("before")
        @pytest.mark.ipvs_check("TB-01")
        def test_it(): pass
        """
    )
    pytester.runpytest_inprocess("--strict-markers").assert_outcomes(passed=1)
