"""The intermediate representation: graphs, types, ops, text, verifier, reference interpreter, the Q8 format."""
from __future__ import annotations

from q8c.ir.graph import Array, Graph, Node, Value, clone
from q8c.ir.interpret import interpret
from q8c.ir.parse import parse_graph
from q8c.ir.text import constant_data, print_graph
from q8c.ir.types import DType, TensorType
from q8c.ir.verify import verify

__all__ = ["Array", "DType", "Graph", "Node", "TensorType", "Value", "clone", "constant_data", "interpret",
           "parse_graph", "print_graph", "verify"]
