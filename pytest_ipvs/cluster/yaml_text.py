"""YAML that others wrote: kubeconfigs and ConfigMaps."""

from __future__ import annotations

from typing import Any


class YamlError(ValueError):
    """A text that is no YAML. ``line`` counts from 1, ``None`` where it is not known."""

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem)
        self.line = line


def read_yaml(text: str) -> Any:
    """The one document of a text, in plain types. Raises `YamlError`."""
    import yaml

    # libyaml takes a tenth of the time and a bounded depth; not every build of PyYAML has it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=loader)
    # The others are of dates such as 2026-99-99, of deep nesting, and of tags that don't fit.
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise YamlError(str(error), mark.line + 1 if mark else None) from None
