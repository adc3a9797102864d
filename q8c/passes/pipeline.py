"""THE list of passes, in order."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from q8c.errors import OptionError
from q8c.ir import q4
from q8c.ir.q8 import FORMATS
from q8c.passes.balance_scales import BalanceScales
from q8c.passes.calibration import Calibration, Feeds
from q8c.passes.canonicalize import Canonicalize
from q8c.passes.choose_formats import ChooseFormats
from q8c.passes.choose_weights import ChooseWeights
from q8c.passes.count_rows import CountRows
from q8c.passes.default_format import DEFAULT
from q8c.passes.eliminate_dead_code import EliminateDeadCode
from q8c.passes.fold_constants import FoldConstants
from q8c.passes.fold_weights import FoldWeights, Names
from q8c.passes.fuse_attention import FuseAttention
from q8c.passes.fuse_gate import FuseGate
from q8c.passes.fuse_gelu import FuseGelu
from q8c.passes.fuse_layer_norm import FuseLayerNorm
from q8c.passes.fuse_linear import FuseLinear
from q8c.passes.fuse_loops import FuseLoops
from q8c.passes.fuse_rms_norm import FuseRmsNorm
from q8c.passes.fuse_rotary import FuseRotary
from q8c.passes.fuse_softmax import FuseSoftmax
from q8c.passes.gather_experts import GatherExperts
from q8c.passes.insert_dynamic_quantize import InsertDynamicQuantize
from q8c.passes.keep_cache import KeepCache
from q8c.passes.last_logits import LastLogits
from q8c.passes.lift_quantized import LiftQuantized
from q8c.passes.lower_integer_products import LowerIntegerProducts
from q8c.passes.lower_quantized import LowerQuantized
from q8c.passes.manager import Pass
from q8c.passes.merge_matmuls import MergeMatmuls
from q8c.passes.note_blocks import NoteBlocks
from q8c.passes.own_outputs import OwnOutputs
from q8c.passes.own_positions import OwnPositions
from q8c.passes.pack_nibbles import PackNibbles
from q8c.passes.pack_rows import PackRows
from q8c.passes.pad_rows import PadRows
from q8c.passes.place_weights import PlaceWeights
from q8c.passes.plan_memory import PlanMemory
from q8c.passes.quantize_embeddings import QuantizeEmbeddings
from q8c.passes.reduce_rows import ReduceRows
from q8c.passes.round_weights import RoundWeights
from q8c.passes.route_experts import RouteExperts
from q8c.passes.settle_sizes import SettleSizes
from q8c.passes.share_common import ShareCommon
from q8c.passes.sink_reshapes import SinkReshapes
from q8c.passes.widen_rows import WidenRows

AUTO = "auto"
EMBEDDINGS = ("q8", "float")


@dataclass(frozen=True)
class Options:
    """What a compilation can be told.

    `quantize`: int8 products, or float ones; `weights`: the format of int8 weights, or `auto`, the fastest for each
    product that keeps the model's relative L2 under `max_error`; `max_layer_error`: products farther off than this stay
    float; `numerics`: `fast` or `reproducible`, for code
    generation; `keep`: names of the model's nodes whose products stay float; `balance`: scales balanced between
    activations and weights; `feeds`: inputs to calibrate on, made up from the signature if empty;
    `pack`: padding left out, True or the name of the padding mask; `embeddings`: tables of embeddings as `q8` or
    `float`; `last_logits`: logits of each sequence's last token only; `set_inputs`: inputs of the model that are
    constants, each with its value; `shapes`: shapes of inputs in place of what the model says; `kv_cache`: keys and
    values of a cache that grows in place as `f32` or `int8`.
    """

    quantize: bool = True
    weights: str = DEFAULT
    numerics: str = "fast"
    keep: tuple[str, ...] = ()
    balance: bool = True
    feeds: Feeds = ()
    max_error: float | None = None
    max_layer_error: float | None = None
    pack: bool | str = False
    embeddings: str = "q8"
    last_logits: bool = False
    set_inputs: tuple[tuple[str, bool | int | float], ...] = ()
    kv_cache: str = "f32"
    shapes: tuple[tuple[str, Sequence[int | str]], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.pack, (bool, str)):
            raise OptionError(f"pack must be True, False or the name of an input, got {self.pack!r}")
        if isinstance(self.weights, str) and self.weights not in (DEFAULT, *FORMATS, q4.FORMAT, AUTO):
            raise OptionError(f"weight format {self.weights!r} is unknown; expected one of "
                               f"{', '.join((*FORMATS, q4.FORMAT, AUTO))}")
        if self.embeddings not in EMBEDDINGS:
            raise OptionError(f"embeddings {self.embeddings!r} are unknown; expected {' or '.join(EMBEDDINGS)}")
        if self.max_error is not None and self.weights != AUTO:
            raise OptionError(f"a largest error goes with weights {AUTO!r}, not {self.weights!r}")
        if self.max_layer_error is not None and self.weights == AUTO:
            raise OptionError(f"weights {AUTO!r} go by the error of the whole model, not by a largest error of layers")


def pipeline(options: Options, calibration: Calibration | None = None) -> tuple[Pass, ...]:
    """The passes of one compilation, in order; `calibration` is on the options' feeds if not given."""
    calibration = calibration or Calibration(options.feeds)
    blocked: set[str] = set()
    return (
        *_lifted(options),
        LowerQuantized(),         # what is left of a file's own 8-bit arithmetic, as the file prescribes it
        Canonicalize(),           # one spelling for one meaning, so that every later pattern has few
        FoldConstants(),          # transposed weights and constant arithmetic, which patterns want as constants
        SettleSizes(),            # past + seq by that name, so that what reads a whole axis is seen to
        Canonicalize(),           # folded conditions and shapes open more rules
        ShareCommon(),            # exporters repeat themselves; patterns compare by identity
        FuseSoftmax(),            # attention looks for softmax
        FuseGelu(),               # before anything splits or merges the products it is made of
        FuseLayerNorm(),          # before RMS norm: a layer norm is an RMS norm of the deviation
        FuseRmsNorm(),
        GatherExperts(),          # experts that are all computed for all tokens
        ChooseWeights(),          # those whose rows are sorted, and computed for all groups
        RouteExperts(),           # before reshapes sink: rows of tokens and of what they chose are flat
        SinkReshapes(),           # flattened rows as they were, so that products and loops see one shape
        FuseRotary(),             # before attention, which reads what is rotated where it lies
        FuseAttention(),          # while heads still show as reshape, transpose and matmul
        SinkReshapes(),           # what an attention's result was moved by
        ShareCommon(),            # what was put before an attention once for q, k and v each
        KeepCache(options.kv_cache),  # before products merge: what is appended may be a part of a wider tensor too
        OwnPositions(),           # what is still computed from the length of a cache
        *_balanced(options, calibration, blocked),
        PlaceWeights(),           # behind attention, of whose masks such products are a part
        MergeMatmuls(),           # q, k and v as one product, now that attention reads parts of a wider tensor
        ReduceRows(),             # what no pattern took; loops want rows
        EliminateDeadCode(),      # so that the passes that ask who reads a value see only what is needed
        *_linear(options, calibration, blocked),
        LowerIntegerProducts(),   # behind all that quantizes: these are exact
        *((LastLogits(),) if options.last_logits else ()),  # behind all that looks at numbers, as packing
        *_packed(options),
        CountRows(),              # which rows are whose is settled; in some code few tokens go another way than many
        *((WidenRows(),) if options.numerics == "fast" else ()),  # room for what some code makes of rows instead
        FuseLoops(),              # whatever elementwise and row work is left, one pass over rows each
        PadRows(),                # behind what makes loops of all that may read them
        OwnOutputs(),             # kernels write outputs into the caller's arrays
        PlanMemory(),             # last: slots are for the values that are left
    )


def _lifted(options: Options) -> tuple[Pass, ...]:
    # an already quantized file: its numbers are taken, its roundings while it runs are q8c's to do
    return (LiftQuantized(),) if options.quantize else ()


def _packed(options: Options) -> tuple[Pass, ...]:
    if options.pack is False:
        return ()
    # behind all that looks at numbers, which are the same packed; before loops, which go over whatever rows there are
    return (PackRows("" if options.pack is True else options.pack),)


def _balanced(options: Options, calibration: Calibration, blocked: set[str]) -> tuple[Pass, ...]:
    if not options.quantize:
        return ()
    if not options.balance:
        return (NoteBlocks(blocked),)
    # before products merge: the columns of v can take the factor of what follows attention
    weights = "q8-channel" if options.weights == AUTO else options.weights  # the format that needs balance most
    return (NoteBlocks(blocked), BalanceScales(weights, calibration))


def _linear(options: Options, calibration: Calibration, blocked: set[str]) -> tuple[Pass, ...]:
    if not options.quantize:
        return (FuseLinear(),)
    keep = Names(options.keep)
    if options.weights == AUTO:
        bound = ChooseFormats.max_error if options.max_error is None else options.max_error
        fold: Pass = ChooseFormats(bound, keep, calibration)
    else:
        bound = FoldWeights.max_layer_error if options.max_layer_error is None else options.max_layer_error
        fold = FoldWeights(options.weights, keep, blocked, bound, calibration)
    return (
        *((RoundWeights(keep),) if options.weights == q4.FORMAT else ()),  # behind what balances and merges weights
        fold,                     # weights become Q8 offline
        *((QuantizeEmbeddings(),) if options.embeddings == "q8" else ()),  # once it shows which weights they may share
        InsertDynamicQuantize(calibration=calibration),  # products with Q8 weights become exact integer products
        FuseLinear(),             # product, dequantize, bias, activation and residual in registers
        FuseGate(),               # the halves of a wide product multiplied where they are
        PackNibbles(),            # weights that were rounded to 4 bits, here or in the file, have 4 bits in memory
    )


PASSES: dict[str, type[Pass]] = {kind.name: kind for kind in (
    BalanceScales, Canonicalize, ChooseFormats, ChooseWeights, CountRows, EliminateDeadCode, FoldConstants,
    FoldWeights, FuseAttention, FuseGate, FuseGelu, FuseLayerNorm, FuseLinear, FuseLoops, FuseRmsNorm, FuseRotary,
    FuseSoftmax, GatherExperts, InsertDynamicQuantize, KeepCache, LastLogits, LiftQuantized, LowerIntegerProducts,
    LowerQuantized, MergeMatmuls, NoteBlocks, OwnOutputs, OwnPositions, PackNibbles, PackRows, PadRows, PlaceWeights,
    PlanMemory, QuantizeEmbeddings, ReduceRows, RoundWeights, RouteExperts, SettleSizes, ShareCommon, SinkReshapes,
    WidenRows)}
