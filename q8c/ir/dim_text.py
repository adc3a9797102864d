"""Sizes from text, as `str` writes them."""
from __future__ import annotations

import ast
from collections.abc import Callable

from q8c.ir.dims import Dim, dim_max, dim_min, floordiv, mod, sym

TEXT_LIMIT = 20_000  # characters of an expression; models stay below a hundred
_BINARY: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b, ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: floordiv, ast.Mod: mod}


def parse_dim(text: str) -> Dim:
    """The inverse of `str`: integers, symbols, + - * // %, max(...), min(...). Raises ValueError for anything else."""
    if len(text) > TEXT_LIMIT:
        raise ValueError(f"a dimension expression is longer than {TEXT_LIMIT} characters")
    try:
        return _from_ast(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError, ZeroDivisionError) as error:
        raise ValueError(f"not a dimension expression: {text!r}") from error


def _from_ast(node: ast.expr) -> Dim:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return sym(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _from_ast(node.operand) * -1
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_from_ast(node.left), _from_ast(node.right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args and not node.keywords:
        function = {"max": dim_max, "min": dim_min}.get(node.func.id)
        if function is not None:
            return function(*map(_from_ast, node.args))
    raise ValueError(f"not a dimension expression: {ast.unparse(node)!r}")
