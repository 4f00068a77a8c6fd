"""Taking one section of the facts script's output, or saying why it is not there."""

from __future__ import annotations

from collections.abc import Container

from pytest_ipvs.cluster.script import Frame, Section

CUT_OFF = "the node's answer ended before it was told"
TIME_LIMIT = "the time limit on the node ended the reading"


def take(
    frame: Frame, name: str, unread: dict[str, str], *, good: Container[str] = ("0",)
) -> Section:
    """One section; where its status is none of the good ones, say why and hand on an empty one."""
    section = frame.sections.get(name)
    if section is None or section.status == "":
        unread[name] = CUT_OFF
    elif section.status in good:
        return section
    elif section.status in ("124", "143"):
        # Old busybox tells the signal with which it ended the program instead.
        unread[name] = TIME_LIMIT
    else:
        unread[name] = last_line(section.text) or f"exit status {section.status}"
    return Section(text="", status="unread")


def last_line(text: str) -> str:
    """The last line that is not empty, short and printable, or ""."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "".join(c if c.isprintable() else " " for c in lines[-1])[:160] if lines else ""
