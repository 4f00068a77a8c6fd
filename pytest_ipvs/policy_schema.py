"""The JSON schema of ipvs.yaml, for editors: ``python -m pytest_ipvs.policy_schema`` writes it.

Made from the keys that `policy_file` reads, and kept beside this module, so that an editor can
read it without running anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_ipvs.policy_file import KEYS, properties
from pytest_ipvs.settings import OPTIONS

FILE = Path(__file__).with_name("ipvs.schema.json")


def schema() -> dict[str, Any]:
    """What a policy file may contain."""
    keys = properties(KEYS)
    keys["settings"] |= {
        "properties": {
            option.name: {"description": option.help}
            for option in OPTIONS
            if option.name != "policy"
        },
        # Underscores are as good as hyphens.
        "propertyNames": {
            "enum": sorted(
                {
                    name
                    for option in OPTIONS
                    for name in (option.name, option.attribute)
                    if option.name != "policy"
                }
            )
        },
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Policy file of pytest-ipvs",
        "type": "object",
        "properties": keys,
        "additionalProperties": False,
    }


def text() -> str:
    """The schema as the file has it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
