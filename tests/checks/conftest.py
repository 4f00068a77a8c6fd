"""The helpers that read recordings lie beside the tests of the IPVS model."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "ipvs"))
