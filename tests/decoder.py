"""A small decoder with learned positions, written as the passes have it before attention is given a cache."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from q8c.codegen.constants import packed_constants
from q8c.codegen.generate import generate
from q8c.codegen.targets import TIERS, Tier
from q8c.describe import describe
from q8c.ir import Array, Graph, parse_graph, print_graph
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options, pipeline
from q8c.runtime.writer import Writer

TOKENS, HIDDEN, HEADS, KV_HEADS, LONGEST = 50, 32, 4, 2, 200
SIZES = {"k": 8, "v": 16}
"""Of a head's key and value."""
_LAYER = """
      %n@: f32[b, s, {h}] = rms_norm(%x@, %unit) {{epsilon = 1e-5}}
      %q@: f32[b, s, {h}] = matmul(%n@, %wq@)
      %k@: f32[b, s, {keys}] = matmul(%n@, %wk@)
      %v@: f32[b, s, {values}] = matmul(%n@, %wv@)
      %ks@: f32[b, s, {heads}, {k}] = reshape(%k@) {{shape = (b, s, {heads}, {k})}}
      %kt@: f32[b, {heads}, s, {k}] = transpose(%ks@) {{perm = (0, 2, 1, 3)}}
      %vs@: f32[b, s, {heads}, {v}] = reshape(%v@) {{shape = (b, s, {heads}, {v})}}
      %vt@: f32[b, {heads}, s, {v}] = transpose(%vs@) {{perm = (0, 2, 1, 3)}}
      %k@.present: f32[b, {heads}, past + s, {k}] = concat(%k@.past, %kt@) {{axis = 2}}
      %v@.present: f32[b, {heads}, past + s, {v}] = concat(%v@.past, %vt@) {{axis = 2}}
      %a@: f32[b, s, {out}] = attention(%q@, %k@.present, %v@.present, -, %attention_mask) {{
        heads = {all}, kv_heads = {heads}, head_size = {k}, value_size = {v}, scale = 0.35, causal = true,
        window = {window}}}
      %o@: f32[b, s, {h}] = matmul(%a@, %wo@)
      %x{next}: f32[b, s, {h}] = add(%x@, %o@)"""


_GIVEN = "%p: f32[b, s, {h}] = gather(%places, %position_ids) {{axis = 0}}"
_CUT = """%cut: f32[s, {h}] = slice(%places) {{starts = (past, 0), sizes = (s, {h}), steps = (1, 1)}}
      %p: f32[b, s, {h}] = broadcast_to(%cut) {{shape = (b, s, {h})}}"""


def decoder_graph(layers: int = 2, positions: bool = True, window: int = 0) -> Graph:
    """int64 input_ids [b, s], attention_mask [b, past + s], position_ids [b, s] and the cache to f32 logits; without
    `positions` they are cut from the table behind those of the cache. A `window` is how many keys a token sees."""
    names = [f"{part}{n}" for n in range(layers) for part in "kv"]
    pasts = "".join(f", %{n}.past: f32[b, {KV_HEADS}, past, {SIZES[n[0]]}]" for n in names)
    keys, values, out = KV_HEADS * SIZES["k"], KV_HEADS * SIZES["v"], HEADS * SIZES["v"]
    shapes = {"wq": (HIDDEN, HIDDEN), "wk": (HIDDEN, keys), "wv": (HIDDEN, values), "wo": (out, HIDDEN)}
    weights = {f"{n}{layer}": shape for layer in range(layers) for n, shape in shapes.items()}
    weights |= {"table": (TOKENS, HIDDEN), "places": (LONGEST, HIDDEN), "head": (HIDDEN, TOKENS)}
    sizes = {"h": HIDDEN, "keys": keys, "values": values, "out": out, "heads": KV_HEADS, "all": HEADS,
             "window": window, **SIZES}
    body = "".join(_LAYER.replace("@", str(n)).format(next=n + 1, **sizes) for n in range(layers))
    given = ", %position_ids: i64[b, s]" if positions else ""
    rng = np.random.default_rng(7)
    data: dict[str, Array] = {n: rng.normal(0, 0.4, shape).astype(np.float32) for n, shape in weights.items()}
    constants = "\n".join(f"      const %{n}: f32[{a}, {b}] = @{n}" for n, (a, b) in weights.items())
    return parse_graph(f"""
    graph @decoder(%input_ids: i64[b, s], %attention_mask: i64[b, past + s]{given}{pasts}) {{
{constants}
      const %unit: f32[{HIDDEN}] = 1.0
      %e: f32[b, s, {HIDDEN}] = gather(%table, %input_ids) {{axis = 0}}
      {(_GIVEN if positions else _CUT).format(h=HIDDEN)}
      %x0: f32[b, s, {HIDDEN}] = add(%e, %p){body}
      %logits: f32[b, s, {TOKENS}] = matmul(%x{layers}, %head)
      return %logits, {", ".join(f"%{n}.present" for n in names)}
    }}""", data)


def plain_feed(ids: Array, mask: Array | None = None, past: Mapping[str, Array] | None = None,
               layers: int = 2) -> dict[str, Array]:
    """Inputs for tokens [b, s] behind those of `past`, the present outputs of a run before; none if it is empty."""
    batch, seq = ids.shape
    kept = {f"{part}{n}.past": np.zeros((batch, KV_HEADS, 0, size), np.float32)
            for n in range(layers) for part, size in SIZES.items()}
    kept |= {name.replace("present", "past"): a for name, a in (past or {}).items() if name != "logits"}
    length = kept["k0.past"].shape[2]
    return {"input_ids": ids, "attention_mask": np.ones((batch, length + seq), np.int64) if mask is None else mask,
            "position_ids": np.tile(np.arange(length, length + seq), (batch, 1)), **kept}


def compile_graph(graph: Graph, path: Path, options: Options, tier: Tier = TIERS["avx2"]) -> Path:
    """The file of a graph as imported."""
    report = run_passes(graph, pipeline(options))
    with Writer(path) as writer:
        constants = [writer.constant(item.name, item.array()) for item in packed_constants(graph)]
        made = generate(graph, tier, {c.name: c.offset for c in constants})
        image = writer.image(tier.name, tier.extras, made.image.code, made.image.symbols)
        writer.finish([writer.part(describe(graph, [made], options, report), constants, [image], print_graph(graph))])
    return path
