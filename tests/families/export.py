"""Make the files of `graphs` from the table of families: python -m tests.families.export [NAME...]

For developers; tests need none of it: pip install torch transformers onnxscript
"""
from __future__ import annotations

import argparse
import io
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import torch
import transformers

from tests.families.family import Family, Form, feed
from tests.families.stripped import path_of, write
from tests.families.table import FAMILIES


class Outputs(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not there where types are checked
    """A model that takes the family's inputs and gives its outputs, in their order."""

    def __init__(self, model: torch.nn.Module, family: Family) -> None:
        super().__init__()
        self.model = model
        self.family = family

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs."""
        found = self.model(**dict(zip(self.family.inputs, inputs, strict=True)))
        return tuple(found[name] for name in self.family.outputs)


class Sentence(Outputs):
    """The mean over tokens that are there, of length 1, as sentence-transformers have it."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The embedding [batch, hidden]."""
        feeds = dict(zip(self.family.inputs, inputs, strict=True))
        tokens = self.model(**feeds).last_hidden_state
        there = feeds["attention_mask"].unsqueeze(-1).expand(tokens.size()).float()
        mean = torch.sum(tokens * there, 1) / torch.clamp(there.sum(1), min=1e-9)
        return (torch.nn.functional.normalize(mean, p=2, dim=1),)


class TorchEncoder(torch.nn.Module):  # type: ignore[misc]
    """PyTorch's own encoder, which has nothing of transformers."""

    config_class = SimpleNamespace

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(config.hidden_size, config.num_attention_heads,
                                                 config.intermediate_size, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, config.num_hidden_layers, enable_nested_tensor=False)

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """The last hidden state [batch, seq, hidden]."""
        return {"last_hidden_state": self.encoder(inputs_embeds, src_key_padding_mask=attention_mask == 0)}


def encoder(model: torch.nn.Module, family: Family) -> torch.nn.Module:
    """The encoder of an encoder-decoder alone."""
    return Outputs(model.get_encoder(), family)


class Decoder(Outputs):
    """Logits of a decoder, and where the family has such inputs, keys and values kept of earlier tokens, and of all."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits [batch, seq, vocabulary], then a key and a value for each layer."""
        given = dict(zip(self.family.inputs, inputs, strict=True))
        past = [given.pop(name) for name in self.family.inputs if name.startswith(PAST)]
        cache = kept(past) if past else None
        found = self.model(**given, past_key_values=cache, use_cache=bool(past))
        return (found.logits, *([] if cache is None else held(cache)))


class DecoderOfTwo(Outputs):
    """Logits of an encoder-decoder's decoder with the keys and values of its own tokens, and of the encoder's if those
    are computed here (`encoder_hidden_states`) and not kept."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits [batch, seq, vocabulary], then keys and values of each layer."""
        given = dict(zip(self.family.inputs, inputs, strict=True))
        own, other = ([t for n, t in given.items() if n.startswith(PAST) and f".{part}." in n]
                      for part in ("decoder", "encoder"))
        cache = transformers.EncoderDecoderCache(kept(own), kept(other))
        hidden = given.get("encoder_hidden_states")
        if hidden is None:  # what is kept of it is read instead
            hidden = other[0].new_zeros(other[0].shape[0], other[0].shape[2], self.model.config.d_model)
        found = self.model(encoder_outputs=(hidden,), attention_mask=given.get("encoder_attention_mask"),
                           decoder_input_ids=given["input_ids"], past_key_values=cache, use_cache=True)
        new = [held(cache.self_attention_cache), *([] if other else [held(cache.cross_attention_cache)])]
        return (found.logits, *(t for each in new for t in each))


def kept(tensors: list[torch.Tensor]) -> transformers.DynamicCache:
    """A cache of keys and values in turn."""
    cache = transformers.DynamicCache()
    for i, (key, value) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
        cache.update(key, value, i)
        cache.layers[i].keys, cache.layers[i].values = key, value  # without the empty part that update puts before
    return cache


def held(cache: transformers.DynamicCache) -> list[torch.Tensor]:
    """Keys and values of each layer in turn."""
    return [t for layer in cache.layers for t in (layer.keys, layer.values)]


PAST = "past_key_values"
HEADS: dict[str, Any] = {"outputs": Outputs, "sentence": Sentence, "encoder": encoder, "decoder": Decoder,
                         "decoder-of-two": DecoderOfTwo}


def build(family: Family, attention: str) -> torch.nn.Module:
    """The model, with random weights that give every layer something to do."""
    torch.manual_seed(0)
    kind = globals().get(family.model) or getattr(transformers, family.model)
    model = kind(kind.config_class(**family.config, attn_implementation=attention))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped: torch.nn.Module = HEADS[family.head](model, family)
    return wrapped.eval()


def export(family: Family, form: Form) -> onnx.ModelProto:
    """The model as one of the exporters writes it."""
    exporter, attention = form.split("-")
    model = build(family, attention)
    inputs = tuple(torch.from_numpy(a) for a in feed(family, family.sizes[0]).values())
    axes = {name: {i: d for i, d in enumerate(one.shape) if isinstance(d, str)} for name, one in family.inputs.items()}
    names: dict[str, Any] = {"input_names": list(family.inputs), "output_names": list(family.outputs)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter.startswith("dynamo"):
            vary = tuple(dict.fromkeys(a, torch.export.Dim.DYNAMIC) for a in axes.values())
            program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes={"inputs": vary}, verbose=False,
                                        opset_version=int(exporter[len("dynamo"):] or 0) or None, **names)
            return onnx.load_from_string(program.model_proto.SerializeToString())
        file = io.BytesIO()
        torch.onnx.export(model, inputs, file, dynamo=False, opset_version=int(exporter[len("script"):]),
                          dynamic_axes=axes, **names)
    return onnx.load_from_string(file.getvalue())


def main() -> None:
    """Write the files of the families named, of all if none is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FAMILIES))
    parser.add_argument("--form", action="append", help="only these forms, also such as the table does not keep")
    parser.add_argument("--folder", type=Path, help="write whole ONNX files here instead")
    args = parser.parse_args()
    for name in args.names or FAMILIES:
        for form in args.form or FAMILIES[name].forms:
            proto = export(FAMILIES[name], form)
            if args.folder:
                onnx.save(proto, args.folder / f"{name}-{form}.onnx")
            else:
                write(proto, path_of(name, form))
            print(name, form, f"{len(proto.graph.node)} nodes", file=sys.stderr)


if __name__ == "__main__":
    main()
