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
        ("local://?sudo=True", "local://?sudo=True"),
        ("ssh://root:p%40w@{name}:22", "ssh://root:p%40w@node-1:22"),
        ("ssh://root@{name}:", "ssh://root@node-1:"),
        ("ssh://{name}:65535/?timeout=5&controlpersist=0&ssh_config=/a@b", None),
        ("safe-ssh://[fd00::7%25eth0]:22?sudo=false&sudo_user={name}", None),
        ("ssh://{name}.nodes.example.com", "ssh://node-1.nodes.example.com"),
        ("docker://0:0@{name}", "docker://0:0@node-1"),
        ("kubectl://agent-{name}?container=a&kubeconfig=/k&context=c", None),
        ("openshift://agent-{name}?namespace=a", None),
        ("lxc://remote:{name}", "lxc://remote:node-1"),
    ],
)
def test_good_templates(text, uri):
    assert Template.parse(text).uri(NODE) == (uri or text.format(name="node-1"))


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


PORT = "expected a port from 1 to 65535 after the host"
HOST = "expected a plain host name or address, an IPv6 address in brackets"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://root@{name}:abc", PORT),
        ("ssh://{name}:0", PORT),
        ("ssh://{name}:99999", PORT),
        ("ssh://{name}:2²", PORT),
        ("ssh://{name}:-1", PORT),
        ("safe-ssh://[fd00::1]:x", PORT),
        ("ssh:///{name}", "expected a host after ssh://"),
        ("docker:///{name}", "expected a host after docker://"),
        ("ssh://?sudo=true", "expected a host after ssh://"),
        ("ssh://root@", HOST),
        ("ssh://root@-{name}", HOST),
        ("ssh://{name},other", HOST),
        ("ssh://[fd00::1]22", HOST),
        ("ssh://[{internal_ip}]", "expected a "),
        ("ssh://[{name}", "expected a host, or an IPv6 address in brackets, "),
        ("ssh://fd00::1", PORT),
        ("ssh://{name}/tmp", "expected nothing but ? and its options after the host"),
        ("ssh://{name}#x", "expected nothing but ? and its options after the host"),
        ("kubectl://deploy/{name}", "expected nothing but ? and its options after the host"),
        ("docker://{name}:22", "expected a plain name after docker://"),
        ("kubectl://root@{name}", "expected a plain name after kubectl://"),
        ("lxc://-{name}", "expected a plain name after lxc://"),
        ("ssh://{name}?timeout=x", "expected whole seconds for timeout"),
        ("ssh://{name}?controlpersist=1.5", "expected whole seconds for controlpersist"),
        ("ssh://{name}?sudo=yes", "expected true or false for sudo"),
        ("ssh://{name}?sudo", "expected true or false for sudo"),
        ("local://?sudo=1", "expected true or false for sudo"),
        ("docker://{name}?sudo_user=", "expected a value for sudo_user"),
        ("docker://{name}?timeout=5", "expected only sudo, sudo_user after the ?"),
        ("ssh://{name}?sudoo=true", "expected only sudo, sudo_user, ssh_config, "),
    ],
)
def test_what_no_node_could_be_reached_by(text, expected):
    with pytest.raises(ClusterError) as error:
        Template.parse(text, "PYTEST_IPVS_CONNECT")
    assert str(error.value).startswith(f"PYTEST_IPVS_CONNECT is {text!r}, {expected}")


@pytest.mark.parametrize("sign", [*"@/?#[]:{}!% \n", "{{", "}}", "@{", "{0}", "{0!r}"])
@pytest.mark.parametrize("rest", ["{name}", "{name}:abc", "{name}?timeout=x", "{nmae}"])
def test_no_part_of_a_password_is_shown(sign, rest):
    text = f"ssh://root:se{sign}cret@{rest}"
    try:
        Template.parse(text)
    except ClusterError as error:
        shown = str(error)
        assert "ssh://root:…@" in shown
        assert "cret" not in shown
        assert "se" + sign not in shown.replace("seconds", "")
        assert "{0" not in shown
    assert redacted(text) == f"ssh://root:…@{rest}"


def test_signs_that_end_a_host_are_asked_for_in_percent():
    with pytest.raises(ClusterError, match="before the @ as %2F %23 %3F"):
        Template.parse("ssh://root:pass/word@{name}")


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
