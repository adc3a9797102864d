"""Mixtures of experts as exporters write them whose weights are gathered for every token."""
from __future__ import annotations

_TAIL = """
      %b: f32[{n}, {h}] = {last}
      %s: f32[{n}, 1] = reshape(%score) {{shape = ({n}, 1)}}
      %m: f32[{n}, {h}] = mul(%b, %s)
      %r: f32[t, {k}, {h}] = reshape(%m) {{shape = (t, {k}, {h})}}
      %y: f32[t, {h}] = reduce_sum(%r) {{axes = (1), keepdims = false}}
      return %y
    }}"""
_COLUMNS = """
    graph @g(%x: f32[t, {h}], %id: i64[t, {k}], %score: f32[t, {k}]) {{
      const %up: f32[{e}, 2*{i}, {h}] = @up
      const %down: f32[{e}, {h}, {i}] = @down
      %i: i64[{n}] = reshape(%id) {{shape = ({n})}}
      %apart: f32[t, 1, {h}] = reshape(%x) {{shape = (t, 1, {h})}}
      %twice: f32[t, {k}, {h}] = broadcast_to(%apart) {{shape = (t, {k}, {h})}}
      %column: f32[{n}, {h}, 1] = reshape(%twice) {{shape = ({n}, {h}, 1)}}
      %w: f32[{n}, 2*{i}, {h}] = gather(%up, %i) {{axis = 0}}
      %p: f32[{n}, 2*{i}, 1] = matmul(%w, %column)
      %q: f32[{n}, 2*{i}] = reshape(%p) {{shape = ({n}, 2*{i})}}
      %gate: f32[{n}, {i}] = slice(%q) {{starts = (0, 0), sizes = ({n}, {i}), steps = (1, 1)}}
      %u: f32[{n}, {i}] = slice(%q) {{starts = (0, {i}), sizes = ({n}, {i}), steps = (1, 1)}}
      %a: f32[{n}, {i}] = silu(%gate)
      %o: f32[{n}, {i}] = mul(%a, %u)
      %oc: f32[{n}, {i}, 1] = reshape(%o) {{shape = ({n}, {i}, 1)}}
      %v: f32[{n}, {h}, {i}] = gather(%down, %i) {{axis = 0}}
      %d: f32[{n}, {h}, 1] = matmul(%v, %oc)""" + _TAIL
_ROWS = """
    graph @g(%x: f32[t, {h}], %id: i64[t, {k}], %score: f32[t, {k}]) {{
      const %up: f32[{e}, {h}, {i}] = @up
      const %shift: f32[{e}, {i}] = @shift
      const %down: f32[{e}, {i}, {h}] = @down
      const %bias: f32[{e}, {h}] = @bias
      %i: i64[{n}, 1] = reshape(%id) {{shape = ({n}, 1)}}
      %apart: f32[t, 1, {h}] = reshape(%x) {{shape = (t, 1, {h})}}
      %twice: f32[t, {k}, {h}] = broadcast_to(%apart) {{shape = (t, {k}, {h})}}
      %row: f32[{n}, 1, {h}] = reshape(%twice) {{shape = ({n}, 1, {h})}}
      %w: f32[{n}, {h}, {i}] = gather_nd(%up, %i)
      %p: f32[{n}, 1, {i}] = matmul(%row, %w)
      %q: f32[{n}, {i}] = reshape(%p) {{shape = ({n}, {i})}}
      %by: f32[{n}, {i}] = gather_nd(%shift, %i)
      %z: f32[{n}, {i}] = add(%q, %by)
      %o: f32[{n}, {i}] = tanh(%z)
      %or: f32[{n}, 1, {i}] = reshape(%o) {{shape = ({n}, 1, {i})}}
      %v: f32[{n}, {i}, {h}] = gather_nd(%down, %i)
      %d: f32[{n}, 1, {h}] = matmul(%or, %v)
      %c: f32[{n}, {h}] = gather_nd(%bias, %i)
      %e: f32[{n}, {h}] = reshape(%d) {{shape = ({n}, {h})}}""" + _TAIL


def mixture(form: str, hidden: int, inner: int, experts: int, chosen: int) -> str:
    """A graph of x f32[t, hidden], id i64[t, chosen] and score f32[t, chosen]: SwiGLU with weights times columns
    (`columns`), or tanh and biases with rows times weights (`rows`)."""
    sizes = {"h": hidden, "k": chosen, "e": experts, "i": inner, "n": f"{chosen}*t"}
    if form == "rows":
        return _ROWS.format(**sizes, last="add(%e, %c)")
    return _COLUMNS.format(**sizes, last=f"reshape(%d) {{shape = ({chosen}*t, {hidden})}}")
