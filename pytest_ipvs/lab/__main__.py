"""The lab's command line: ``python -m pytest_ipvs.lab``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace

from pytest_ipvs.lab.machine import LabError
from pytest_ipvs.lab.options import LabOptions
from pytest_ipvs.lab.state import StateDirectory

EXIT_CODES = """\
exit codes: 0 done; 1 it failed, for the reason printed; 2 wrong usage; 3 (status) no lab is up;
130 interrupted"""


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m pytest_ipvs.lab",
        description="A one-machine cluster on a real kernel's IPVS.",
        epilog=EXIT_CODES,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--name", default="default", help="Name of the lab, to have several (default: %(default)s)"
    )
    install = commands.add_parser("install", help="Install what the lab needs")
    install.add_argument(
        "--kernel", action="append", metavar="SERIES", help="Kernel series to fetch, e.g. 6.1"
    )
    install.add_argument(
        "--tests", action="store_true", help="Install what the lab's own tests use, too"
    )
    up = commands.add_parser("up", parents=[common], help="Start a lab, or find it up")
    up.add_argument(
        "--backend",
        choices=("auto", "vm", "namespace"),
        default="auto",
        help="Where the nodes live (default: %(default)s)",
    )
    up.add_argument("--kernel", metavar="SERIES", help="Kernel series of the machine, e.g. 6.1")
    up.add_argument(
        "--processors",
        type=int,
        default=LabOptions().processors,
        metavar="N",
        help="How many processors a virtual machine has (default: %(default)s)",
    )
    up.add_argument("--nodes", type=int, default=3, help="How many nodes (default: %(default)s)")
    up.add_argument(
        "--version",
        default=LabOptions().version,
        help="Kubernetes version to claim (default: %(default)s)",
    )
    up.add_argument(
        "--sweep-period",
        type=float,
        default=LabOptions().sweep_period,
        metavar="SECONDS",
        help="How often drained real servers are looked at; kube-proxy's own is 60"
        " (default: %(default)s)",
    )
    up.add_argument(
        "--program",
        action="append",
        default=[],
        metavar="NAME",
        help="A program of this machine to have on nodes and clients, too",
    )
    up.add_argument("--foreground", action="store_true", help="Stay, and end the lab with Ctrl-C")
    commands.add_parser("down", parents=[common], help="End a lab and remove its files")
    status = commands.add_parser(
        "status", parents=[common], help="Say whether a lab is up, and how"
    )
    status.add_argument("--json", action="store_true", help="Print one JSON object")
    shell = commands.add_parser("shell", parents=[common], help="Open a shell on a node or client")
    shell.add_argument("node", metavar="NODE", help="node-1, client, …")
    shell.add_argument("arguments", nargs="*", metavar="COMMAND", help="Command to run instead")
    fault = commands.add_parser("fault", parents=[common], help="Put a fault in, or take it out")
    fault.add_argument("fault", metavar="NAME", help="One that `faults` lists")
    fault.add_argument("--node", help="Only on this node")
    fault.add_argument(
        "--service",
        default="demo/web",
        metavar="NAMESPACE/NAME",
        help="Service whose virtual server it concerns (default: %(default)s)",
    )
    fault.add_argument("--clear", action="store_true", help="Take it out")
    commands.add_parser("clear", parents=[common], help="Take all faults out")
    commands.add_parser("faults", help="List the faults: what each does, where, and what it trips")
    serve = commands.add_parser("_serve")
    serve.add_argument("arguments")
    return top


def _up(options: argparse.Namespace) -> int:
    if not 1 <= options.nodes <= 9:
        raise LabError(f"--nodes is {options.nodes}, expected 1 to 9")
    if not 1 <= options.processors <= 9:
        raise LabError(f"--processors is {options.processors}, expected 1 to 9")
    lab_options = LabOptions(
        name=options.name,
        backend=options.backend,
        kernel=options.kernel,
        nodes=options.nodes,
        processors=options.processors,
        version=options.version.removeprefix("v"),
        sweep_period=options.sweep_period,
        programs=tuple(options.program),
    )
    if options.foreground:
        return _foreground(lab_options)
    from pytest_ipvs.lab.launch import start

    values = {name: getattr(lab_options, name) for name in LabOptions.__dataclass_fields__}
    handle = start(**values, progress=_say)
    if not handle.owned:
        _say(f"the lab {handle.name!r} is up already, with kernel {handle.kernel}")
    _say(_how_to_use(StateDirectory.of(handle.name)))
    return 0


def _foreground(options: LabOptions) -> int:
    from pytest_ipvs.lab.assembly import Lab
    from pytest_ipvs.lab.daemon import Stop, serve

    def ready(lab: Lab) -> None:
        _say(_how_to_use(lab.directory))
        _say("Ctrl-C ends the lab")

    try:
        serve(replace(options), progress=_say, ready=ready)
    except Stop:
        return 130
    return 0


def _how_to_use(directory: StateDirectory) -> str:
    return (
        f"  kubectl --kubeconfig {directory.kubeconfig} get pods -A -o wide\n"
        f"  ssh -F {directory.ssh_config} node-1 ipvsadm -Ln\n"
        f"  pytest --pyargs pytest_ipvs.conformance --ipvs-kubeconfig {directory.kubeconfig}"
        f" --ipvs-connect 'ssh://root@{{name}}' --ipvs-ssh-config {directory.ssh_config}"
    )


def _down(options: argparse.Namespace) -> int:
    existed = StateDirectory.of(options.name).end()
    _say(f"the lab {options.name!r} {'is down' if existed else 'was not up'}")
    return 0


def _status(options: argparse.Namespace) -> int:
    directory = StateDirectory.of(options.name)
    if directory.owner() is None:
        if options.json:
            _say(json.dumps({"name": options.name, "alive": False}))
        else:
            _say(f"the lab {options.name!r} is not up")
        return 3
    if directory.read() is None:
        _say(f"the lab {options.name!r} is starting")
        return 3
    status = directory.ask("status")
    if options.json:
        _say(json.dumps(status, indent=2))
        return 0
    _say(f"name        {status['name']}")
    _say(f"machine     {status['kind']}, kernel {status['kernel']}, up {status['uptime']:.0f} s")
    _say(f"kubernetes  {status['version']} (stand-ins)")
    for name, node in status["nodes"].items():
        _say(f"node        {name}  {node['address']}  ssh port {node['ssh'][1]}")
    for name, client in status["clients"].items():
        _say(f"client      {name}  ssh port {client['ssh'][1]}")
    for fault in status["faults"]:
        _say(f"fault       {fault['name']} on {', '.join(fault['nodes'])} ({fault['service']})")
    _say(f"kubeconfig  {status['kubeconfig']}")
    _say(f"ssh config  {status['ssh_config']}")
    return 0


def _shell(options: argparse.Namespace) -> int:
    directory = StateDirectory.of(options.name)
    record = directory.read()
    if directory.owner() is None or record is None:
        raise LabError(f"the lab {options.name!r} is not up")
    known = [*record["nodes"], *record["clients"]]
    if options.node not in known:
        raise LabError(f"{options.node!r} is not one of {', '.join(known)}")
    ssh = shutil.which("ssh")
    if ssh is None:
        raise LabError("ssh is not installed: run `python -m pytest_ipvs.lab install`")
    argv = [ssh, "-F", str(directory.ssh_config), options.node, *options.arguments]
    sys.stdout.flush()
    os.execv(ssh, argv)


def _fault(options: argparse.Namespace) -> int:
    directory = StateDirectory.of(options.name)
    if options.clear:
        _clear(options)
        return 0
    answer = directory.ask(
        "fault", 120, name=options.fault, node=options.node, service=options.service
    )
    _say(f"{answer['name']} is in force on {', '.join(answer['nodes'])}")
    return 0


def _clear(options: argparse.Namespace) -> int:
    name = getattr(options, "fault", None)
    node = getattr(options, "node", None)
    answer = StateDirectory.of(options.name).ask("clear", 120, name=name, node=node)
    for fault in answer["cleared"]:
        _say(f"{fault['name']} is cleared on {', '.join(fault['nodes'])}")
    if not answer["cleared"]:
        _say("there was nothing to clear")
    return 0


def _faults(_options: argparse.Namespace) -> int:
    from pytest_ipvs.lab.faults import FAULTS

    for fault in FAULTS.values():
        where = "all nodes" if fault.everywhere else "node-2"
        trips = ", ".join(fault.checks) or "the run's own error for that node"
        _say(f"{fault.name}\n    {fault.text}\n    on {where}; trips {trips}; clear: {fault.undo}")
    return 0


def _install(options: argparse.Namespace) -> int:
    from pytest_ipvs.lab.install import DEFAULT_SERIES, install

    install(_say, series=tuple(options.kernel or (DEFAULT_SERIES,)), tests=options.tests)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from pytest_ipvs.lab.daemon import serve_detached

    return serve_detached(json.loads(options.arguments), sys.stdout)


def _say(text: str) -> None:
    print(text, flush=True)


COMMANDS = {
    "install": _install,
    "up": _up,
    "down": _down,
    "status": _status,
    "shell": _shell,
    "fault": _fault,
    "clear": _clear,
    "faults": _faults,
    "_serve": _serve,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = parser().parse_args(argv)
    try:
        return COMMANDS[options.command](options)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
