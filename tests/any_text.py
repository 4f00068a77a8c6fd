"""Any texts for properties. ``st.text()`` by itself first makes a table of all of Unicode."""

from __future__ import annotations

from hypothesis import strategies as st

# ASCII and Latin with their control characters, and of the rest one of each kind that programs
# stumble over: digits, spaces and ends of lines that are none, marks, and the last there is.
CHARACTERS = "".join(map(chr, range(0x250))) + (
    "\u0301\u0661\u0966\u200b\u200e\u2028\u2029\u3000\u65e5\ufeff\uff12\ufffd\uffff"
    "\U0001d7d8\U0001f600\U0010ffff"
)


def any_text(max_size: int, without: str = "") -> st.SearchStrategy[str]:
    """Texts of up to so many characters, of any but those."""
    return st.text("".join(c for c in CHARACTERS if c not in without), max_size=max_size)
