"""All families that are tested."""
from __future__ import annotations

from tests.families.decoders import DECODERS
from tests.families.encoders import ENCODERS
from tests.families.family import Form

FAMILIES = {**ENCODERS, **DECODERS}


def models() -> list[tuple[str, Form]]:
    """Every family in each of its forms."""
    return [(name, form) for name, family in FAMILIES.items() for form in family.forms]
