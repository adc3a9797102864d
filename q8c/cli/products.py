"""Lines about a model's matrix products, for `compile` and `explain`."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from q8c.cli.common import count

if TYPE_CHECKING:
    from q8c.products import Product

_SHOWN = 3  # names in a line, unless all are asked for


def product_lines(products: Sequence[Product], kernels: int, verbose: bool) -> list[str]:
    """How many matrix products became int8, and why others did not, a line for each reason."""
    if not products:
        return ["no matrix products"]
    floats = [p for p in products if p.form != "int8"]
    made = f", in {count(kernels, 'kernel')}" if kernels else ""
    lines = [f"{len(products) - len(floats)} of {len(products)} matrix products are int8{made}"]
    for reason, members in _by_reason(floats).items():
        shown = members if verbose else members[:_SHOWN]
        more = "" if len(shown) == len(members) else f" and {len(members) - len(shown)} more"
        lines.append(f"  {len(members)} float: {reason} ({', '.join(shown)}{more})")
    return lines


def _by_reason(products: list[Product]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for product in products:
        found.setdefault(product.reason, []).append(product.name)
    return found
