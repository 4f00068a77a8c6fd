"""The URI template: what it accepts, what it makes of a node, and that values can't break out."""

import pytest

from pytest_ipvs.cluster.errors import ClusterError, NodeUnreachableError
from pytest_ipvs.cluster.template import Template, redacted
from pytest_ipvs.ipvs.objects import Node

NODE = Node(
    name="node-1",
    internal_ips=("10.0.0.1", "fd00::1"),
    external_ips=("203.0.113.5",),
    hostname="node-1.example.com",
)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("ssh://root@{internal_ip}", "ssh://root@10.0.0.1"),
        ("ssh://admin@{external_ip}:2222?sudo=true", "ssh://admin@203.0.113.5:2222?sudo=true"),
        ("ssh://{hostname}", "ssh://node-1.example.com"),
        ("docker://{name}", "docker://node-1"),
        ("kubectl://agent-{name}?namespace=ipvs", "kubectl://agent-node-1?namespace=ipvs"),
        ("local://", "local://"),
    ],
)
def test_good_templates(text, uri):
    assert Template.parse(text).uri(NODE) == uri


def test_ipv6_is_in_brackets_for_ssh():
    node = Node(name="n", internal_ips=("fd00::1",))
    assert Template.parse("ssh://root@{internal_ip}:22").uri(node) == "ssh://root@[fd00::1]:22"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ssh://{ip}", "but {ip} is not known, expected {name}, {internal_ip}, {external_ip}, "),
        ("ssh://{}", "but {} is not known"),
        ("ssh://{name!r}", "but {name!r} is not known"),
        ("ssh://{name:>9}", "but {name:>9} is not known"),
        ("ssh://{name.__class__}", "but {name.__class__} is not known"),
        ("ssh://{name[0]}", "but {name[0]} is not known"),
        ("ssh://{name", "expected braces in pairs: "),
        ("ssh://name}", "expected braces in pairs: "),
        ("paramiko://{name}", "expected a testinfra URI with one of ssh://, "),
        ("{name}", "expected a testinfra URI with one of ssh://, "),
        ("ssh:{name}", "expected a testinfra URI with one of ssh://, "),
        ("ssh://", "expected a host after ssh://"),
        ("ssh://{name} -v", "expected a URI without spaces"),
        ("ssh://{name}\n", "expected a URI without spaces"),
    ],
)
def test_bad_templates_are_one_sentence(text, sentence):
    with pytest.raises(ClusterError) as error:
        Template.parse(text, "PYTEST_IPVS_CONNECT")
    assert str(error.value).startswith(f"PYTEST_IPVS_CONNECT is {text!r}, {sentence}")


def test_a_node_without_the_address_is_named():
    with pytest.raises(NodeUnreachableError) as error:
        Template.parse("ssh://{external_ip}").uri(Node(name="node-2"))
    assert str(error.value) == (
        "node node-2 can't be reached: --ipvs-connect uses {external_ip}, "
        "which the API does not tell for this node"
    )


@pytest.mark.parametrize(
    "name",
    ["-oProxyCommand=x", "a b", "a;b", "$(id)", "a'b", "a/b", "a@b", "a?b=c", "a\n", "é", "%h"],
)
def test_values_that_could_break_out_are_refused(name):
    for template in ("ssh://{hostname}", "docker://{hostname}"):
        with pytest.raises(NodeUnreachableError, match="no plain host name"):
            Template.parse(template).uri(Node(name="n", hostname=name))


def test_passwords_are_hidden():
    assert redacted("ssh://root:pw@host") == "ssh://root:…@host"
    assert redacted("ssh://root:p@w@host") == "ssh://root:…@host"
    assert redacted("ssh://root@host") == "ssh://root@host"
    assert "pw" not in redacted("ssh://root:pw@[bad")
    with pytest.raises(ClusterError) as error:
        Template.parse("ssh://root:secret@{ip}")
    assert "secret" not in str(error.value)
