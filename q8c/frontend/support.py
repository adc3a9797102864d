"""Which ops can be imported since which opset, as the registry and ONNX's definitions of ops by others have it."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from q8c.frontend import ops  # noqa: F401  (registers the importers)
from q8c.frontend.control import CONTROL_OPS
from q8c.frontend.importer import OLDEST_OPSET
from q8c.frontend.registry import MICROSOFT, registered

STANDARD = "ai.onnx"
OWN, CONTROL, OTHERS = "importer", "written out", "other ops"
"""How an op is imported: by an importer, by writing its subgraphs out, by ONNX's definition of it by other ops."""


@dataclass(frozen=True)
class SupportedOp:
    """An op of a domain, since which opset of it q8c imports it (None: it does not), and how."""

    domain: str
    op: str
    since: int | None
    how: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def supported_ops() -> list[SupportedOp]:
    """All ops of the standard, imported or not, and those of com.microsoft that are imported, in order."""
    own, schemas = registered(), _schemas()
    found = {op: _standard(op, own, schemas, frozenset()) for op in schemas}
    contrib = {op: SupportedOp(MICROSOFT, op, since, OWN) for (domain, op), since in own.items()
               if domain == MICROSOFT or op not in found}  # ONNX Runtime puts some of its own in the default domain
    return [table[op] for table in (found, contrib) for op in sorted(table)]


def _schemas() -> dict[str, list[Any]]:
    """The versions of each op of the standard, oldest first; not those it has withdrawn."""
    import onnx

    versions: dict[str, list[Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, []).append(schema)
    ordered = {name: sorted(found, key=lambda s: int(s.since_version)) for name, found in versions.items()}
    return {name: found for name, found in ordered.items() if not found[-1].deprecated}


def _standard(op: str, own: dict[tuple[str, str], int], schemas: dict[str, list[Any]],
              open_ops: frozenset[str]) -> SupportedOp:
    """How an op is imported; `open_ops` are those whose definitions it is looked up for."""
    versions = schemas.get(op, [])
    first = max(OLDEST_OPSET, versions[0].since_version) if versions else OLDEST_OPSET
    if op in CONTROL_OPS:
        return SupportedOp(STANDARD, op, first, CONTROL)
    if ("", op) in own:
        return SupportedOp(STANDARD, op, max(first, own["", op]), OWN)
    for schema in versions:
        body = schema.function_body.node if schema.has_function else []
        if op not in open_ops and body and all(
                _standard(n.op_type, own, schemas, open_ops | {op}).since is not None for n in body):
            return SupportedOp(STANDARD, op, max(OLDEST_OPSET, schema.since_version), OTHERS)
        if schema.has_context_dependent_function and op not in _NEVER:
            return SupportedOp(STANDARD, op, max(OLDEST_OPSET, schema.since_version), OTHERS)
    return SupportedOp(STANDARD, op, None)


_NEVER = frozenset({"Bernoulli"})
"""Ops whose definition, made for each node, always has ops that are not imported."""
