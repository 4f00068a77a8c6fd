"""Keys for reaching the lab's nodes by ssh, made with the host's own tools."""

from __future__ import annotations

import base64
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pytest_ipvs.lab.machine import LabError

__all__ = ["HostKey", "generate_host_key", "generate_identity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """A node's ssh host key: ``private`` for the hand, ``public`` for known_hosts."""

    private: str
    """Dropbear's key file, base64."""
    public: str
    """"ssh-ed25519 AAAA…", without a comment."""


def _run(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LabError(
            f"{argv[0]} is not installed: run `python -m pytest_ipvs.lab install`"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"{argv[0]} failed with status {done.returncode}: {said}")
    return done.stdout


def generate_host_key(path: Path) -> HostKey:
    """Reads the dropbear host key at ``path``, or makes it there."""
    if not path.exists():
        _run("dropbearkey", "-t", "ed25519", "-f", str(path))
    text = _run("dropbearkey", "-y", "-f", str(path))
    for line in text.splitlines():
        if line.startswith("ssh-"):
            kind, key = line.split()[:2]
            return HostKey(
                private=base64.b64encode(path.read_bytes()).decode(), public=f"{kind} {key}"
            )
    raise LabError(f"dropbearkey printed no public key for {path}")


def generate_identity(path: Path) -> str:
    """Makes an OpenSSH ed25519 identity at ``path`` unless it is there; the public key's line."""
    if not path.exists():
        _run(
            "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pytest-ipvs-lab", "-f", str(path)
        )
    return path.with_name(path.name + ".pub").read_text().strip()
