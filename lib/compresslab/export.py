"""A compressed classifier as one file: what a fresh process needs to tell good reviews from bad.

    round_to_half_(model)                       biases, norms and scales in 2 bytes each
    export(model, tokenizer, "small.clab")      bytes of the file
    model, tokenizer = load("small.clab")       the same logits, bit for bit
    python -m compresslab.export small.clab "A film to remember."

Writing the file changes no number: what makes a model small is done before. Layers may be dense,
of low rank, narrower in one place than in another, or stored by any method below. The file is one
of `archive`, which says what each byte means. Its first part is the text of all tokens by number,
in UTF-8, a space between two; the description has

    config      sizes and names of transformers' BertConfig
    attention   "sdpa" or "eager"
    fused       "layers" after int8.fuse_bert_layers_, "model" after inference.fuse_bert_, or ""
    tokenizer   definition: JSON of the package tokenizers without vocabulary, padding, truncation;
                special: its special tokens by name; length: tokens of a text; inputs
    layers      [name, kind, form, count, bias] for each: the next `count` parts are its numbers,
                and if `bias` is true the one after them is its bias

    kind          parts by form                             becomes
    linear,       floats    weight                          nn.Linear, nn.Embedding in float32: as
    embedding     grid      codes, scales, zero points      fast as the model was before its numbers
                  codebook  codes, codebooks                were stored in few bits
                  product   codes, codebooks
    int8          codes, scales, or these and the           Int8Linear
                  scale and zero point of the input
    int8 token    codes, scales                             Int8Linear with a range a token
    norm          weight                                    nn.LayerNorm
    low-rank      none; `left` and `right` are layers       LowRankLinear
    factorized    projection; `table` is a layer            FactorizedEmbedding

Int8Linear of fewer bits (the codes of `qat.LSQ` with a step a row, less the zero point, are such)
is as fast and takes no more bytes than a grid.

What is loaded is not trusted: see `archive`. The sizes in the description allocate nothing, and
whether all fit together is tried out with a short sentence.

Not included: other models than BERT with a head for sentences, AWQ's scales of inputs, gradients,
which parameters were shared (equal ones are stored once, and are apart when they are loaded).
"""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from . import archive
from .factorization.embedding import FactorizedEmbedding
from .factorization.linear import LowRankLinear
from .factorization.svd import Factors
from .inference import Int8Bert, fuse_bert_
from .layers import bert_layers, new_linear, replace_
from .models import rebuild_tokenizer
from .quantization.affine import Quantized, dequantize
from .quantization.int8 import Int8BertLayer, Int8Embedding, Int8Linear, fuse_bert_layers_
from .quantization.linear import PackedEmbedding, PackedLinear
from .quantization.packing import unpack
from .quantization.ternary import TernaryLinear, unpack_trits
from .sharing.codebooks import Clustered, CodebookLinear
from .sharing.product_quantization import PQEmbedding, PQLinear, ProductQuantized

LAYER = 1000  # numbers that a layer counts for, even if it has none
SPECIAL = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id"),
    *("classifier_dropout", "id2label"),
)
LINEARS = (nn.Linear, PackedLinear, TernaryLinear, CodebookLinear, PQLinear)
EMBEDDINGS = (nn.Embedding, PackedEmbedding, Int8Embedding, PQEmbedding)
FUSE = {"layers": fuse_bert_layers_, "model": fuse_bert_}
FUSED = {  # layers of an Int8BertLayer -> of BERT
    "query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "project": ("attention.output.dense",),
    "norm": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}


def round_to_half_(model: nn.Module) -> None:
    """Round all float32 numbers of a model to float16 numbers, which stay float32, in place.

    Raises:
        ValueError: a number above 65,504; the model is then as it was.
    """
    state = model.state_dict()
    rounded = {n: t.half().float() if t.dtype == torch.float32 else t for n, t in state.items()}
    for name, tensor in rounded.items():
        if not torch.equal(tensor.isfinite(), state[name].isfinite()):
            raise ValueError(f"float16 cannot hold {name}: {state[name].abs().max().item():.3g}")
    model.load_state_dict(rounded)


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> int:
    """Write a classifier to `path`, whole or not at all; give back the size of the file in bytes.

    Args:
        model: BertForSequenceClassification in float32, its layers of the kinds above.
        tokenizer: WordPiece, whose tokens are numbered from 0 without a gap.

    Raises:
        ValueError: another model or tokenizer, a layer of another kind or in another dtype, or what
            `load` would refuse.
    """
    vocabulary, of_tokenizer = _describe_tokenizer(tokenizer)
    parts, layers = [torch.frombuffer(bytearray(vocabulary), dtype=torch.uint8)], []
    for name, kind, form, tensors, bias in _layers(model):
        layers.append([name, kind, form, len(tensors), bias is not None])
        parts += [*tensors, *([] if bias is None else [bias])]
    description = {
        "config": {field: getattr(model.config, field) for field in FIELDS},
        "attention": model.config._attn_implementation,
        "fused": _fused(model),
        "tokenizer": of_tokenizer,
        "layers": layers,
    }
    data = archive.pack(description, parts)
    read(data, "the model")
    path = Path(path)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return len(data)


def load(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier, in evaluation mode, and its tokenizer. Raises as `read`."""
    return read(Path(path).read_bytes(), str(path))


def read(data: bytes, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `load`, from the bytes of a file, which is called `name` in messages.

    Raises:
        ValueError: the file is of another kind or version, was cut off or altered, or says what
            cannot be; the message says which, and what to do.
    """
    whole = archive.read(data, name)
    with _refusing(name):
        return _build(whole)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Everything that a description can cause becomes a ValueError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of torch, transformers and tokenizers: a panic is no Exception
        raise ValueError(
            f"{name} is whole, but no model that this library exports ({error}): do not use it"
        ) from error


def sections(path: Path) -> dict[str, int]:
    """Bytes by section: "head", "description", "vocabulary", each layer by its name, and "check".

    Parts that are equal count for the first. Raises as `load`.
    """
    data = Path(path).read_bytes()
    whole = archive.read(data, str(path))
    with _refusing(str(path)):
        sizes = iter(whole.sizes)
        found = {"head": archive.HEAD.size, "description": 0, "vocabulary": next(sizes)}
        for name, _, _, count, bias in whole.description["layers"]:
            found[name] = sum([next(sizes) for _ in range(count + bias)])
        found["check"] = archive.CHECK
        return found | {"description": len(data) - sum(found.values())}


def uncoded(path: Path) -> int:
    """Bytes of the file, had nothing in it been compressed but the description: whole numbers in as
    few bits as their range needs, text in a byte a letter. Raises as `load`.
    """
    data = Path(path).read_bytes()
    whole = archive.read(data, str(path))
    with _refusing(str(path)):
        (vocabulary, *tensors), (_, *sizes) = whole.tensors, whole.sizes
        parts = zip(tensors, sizes, strict=True)
        # A size of 0 is that of an equal one.
        plain = sum(archive.uncoded_size(tensor) for tensor, size in parts if size)
        return len(data) - sum(whole.sizes) + len(vocabulary) + plain


# ---------------------------------------------------------------- what is written


def _describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes, dict]:
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = definition["model"].pop("vocab")
    tokens = sorted(vocabulary, key=vocabulary.get) if isinstance(vocabulary, dict) else []
    if definition["model"]["type"] != "WordPiece" or any(" " in token for token in tokens):
        raise ValueError("tokenizer must be WordPiece, without tokens that have spaces")
    if sorted(vocabulary.values()) != list(range(len(tokens))):
        raise ValueError("tokenizer must have tokens numbered from 0 without a gap")
    return " ".join(tokens).encode(), {
        "definition": definition | {"padding": None, "truncation": None},  # said at each call
        "special": dict(tokenizer.special_tokens_map),
        "length": tokenizer.model_max_length,
        "inputs": list(tokenizer.model_input_names),
    }


def _layers(model: nn.Module) -> Iterator[tuple[str, str, str, list[Tensor], Tensor | None]]:
    """Name, kind, form, numbers and bias of everything that has numbers."""
    if not isinstance(model, BertForSequenceClassification):
        raise ValueError(f"model must be a BertForSequenceClassification, not {type(model)}")
    for name, module in model.named_modules(remove_duplicate=False):
        owner, _, last = name.rpartition(".")
        layer = _take_apart(module)
        if layer is None:
            if any("." not in key for key in module.state_dict()):
                raise ValueError(f"{name} cannot be exported: it is a {type(module).__name__}")
        elif isinstance(model.get_submodule(owner), Int8BertLayer):
            (kind, form, tensors, bias), names = layer, FUSED[last]
            pieces = [t.chunk(len(names)) if t.ndim else (t,) * len(names) for t in tensors]
            biases = [None] * len(names) if bias is None else bias.chunk(len(names))
            for i, new in enumerate(names):
                yield f"{owner}.{new}", kind, form, [p[i] for p in pieces], biases[i]
        else:
            yield name, *layer


def _fused(model: nn.Module) -> str:
    if isinstance(model.base_model, Int8Bert):
        return "model"
    return "layers" if isinstance(bert_layers(model)[0], Int8BertLayer) else ""


def _take_apart(m: nn.Module) -> tuple[str, str, list[Tensor], Tensor | None] | None:
    """Kind, form, numbers and bias of a layer; None if there is no kind for it."""
    if type(m) is Int8Linear:
        x = [m.input_scale, m.input_zero_point] if m.static else []
        return "int8 token" if m.per_token else "int8", "", [m.codes, m.scale, *x], m.bias
    if type(m) is nn.LayerNorm:
        return "norm", "floats", [m.weight], m.bias
    if type(m) is LowRankLinear:
        return "low-rank", "", [], None
    if type(m) is FactorizedEmbedding:
        return "factorized", "floats", [m.projection], None
    if type(m) not in LINEARS + EMBEDDINGS:
        return None
    if getattr(m, "input_scale", None) is not None:
        raise ValueError("there is no place for AWQ's scales of inputs in the file")
    kind = "linear" if type(m) in LINEARS else "embedding"
    return kind, *_numbers(m), getattr(m, "bias", None)


def _numbers(m: nn.Module) -> tuple[str, list[Tensor]]:
    """Form and numbers of a matrix."""
    if isinstance(m, nn.Linear | nn.Embedding):
        return "floats", [m.weight]
    if isinstance(m, Int8Embedding):
        return "grid", [m.codes, m.scale.flatten(), torch.zeros(len(m.scale), dtype=torch.uint8)]
    if isinstance(m, TernaryLinear):
        codes = unpack_trits(m.trits, (m.out_features, m.in_features))
        return "grid", [codes, m.scale, torch.ones(len(m.scale), dtype=torch.uint8)]
    if isinstance(m, CodebookLinear):
        weight = m.clustered()
        return "codebook", [weight.codes, weight.codebook]
    if isinstance(m, PQLinear | PQEmbedding):
        return "product", [unpack(m.codes, m.bits, (m.rows, m.parts)), m.codebooks]
    whole = unpack(m.zero_point, m.bits, (m.groups,)) if m.whole else m.zero_point
    return "grid", [unpack(m.codes, m.bits, (m.rows, m.columns)), m.scale, whole]


def _build(whole: archive.Archive) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from what was read."""
    description, parts = whole.description, iter(whole.tensors)
    vocabulary = bytes(next(parts).tolist()).decode().split(" ")
    model, made = _skeleton(description, whole.budget), {}
    for name, kind, form, count, has_bias in description["layers"]:
        tensors = [next(parts) for _ in range(count)]
        if form:
            key = form, *map(id, tensors)
            if key not in made:
                made[key] = _matrix(form, tensors, whole.budget)
            tensors = [made[key]]
        bias = next(parts) if has_bias else None
        whole.budget.take(sum(tensor.numel() for tensor in tensors) + 1)
        replace_(model, name, _make(kind, tensors, bias, model.get_submodule(name)))
    if missing := [name for name, p in model.named_parameters() if p.is_meta]:
        raise ValueError(f"{missing[0]} is missing")
    _finish_(model)
    if description["fused"]:
        FUSE[description["fused"]](model)
    tokenizer = _tokenizer(description["tokenizer"], vocabulary)
    if len(tokenizer) != len(vocabulary):
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, not {len(vocabulary)}")
    positions = model.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    ids = torch.tensor([[0, len(vocabulary) - 1]])[:, :positions]
    sentence = tokenizer("A film.", truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
        model(**sentence)
    if logits.shape != (1, len(model.config.id2label)):
        raise ValueError(f"logits have the shape {tuple(logits.shape)}")
    return model, tokenizer


def _skeleton(description: dict, budget: archive.Budget) -> PreTrainedModel:
    """A model of the right shape without numbers; its layers are paid for, too."""
    config, layers = dict(description["config"]), len(description["layers"])
    if set(config) != set(FIELDS) or config["num_hidden_layers"] > layers:
        raise ValueError(f"config has {sorted(config)}, for {layers} layers")
    budget.take(config["num_hidden_layers"], LAYER)
    if description["attention"] not in ("sdpa", "eager"):
        raise ValueError(f"there is no attention {description['attention']!r}")
    config["id2label"] = {int(i): str(label) for i, label in config["id2label"].items()}
    config["label2id"] = {label: i for i, label in config["id2label"].items()}
    with torch.device("meta"):
        return BertForSequenceClassification(
            BertConfig(**config, attn_implementation=description["attention"])
        )


def _matrix(form: str, tensors: list[Tensor], budget: archive.Budget) -> Tensor:
    """A matrix in float32, computed as the layer did that it comes from."""
    if form == "floats":
        (weight,) = tensors
        return weight
    codes, *rest = tensors
    # Shapes that torch would broadcast to what nobody has paid for.
    if form == "grid" and (rest[0].ndim != 1 or rest[0].shape != rest[1].shape):
        raise ValueError(f"scales of {tuple(rest[0].shape)}, zero points of {tuple(rest[1].shape)}")
    if form == "product" and not (
        codes.ndim == 2 and rest[0].ndim == 3 and len(rest[0]) in (1, codes.shape[1])
    ):
        raise ValueError(f"codes of {tuple(codes.shape)}, codebooks of {tuple(rest[0].shape)}")
    budget.take(*codes.shape, rest[0].shape[2] if form == "product" else 1)
    if form == "grid":
        scale, zero_point = (t[:, None] for t in rest)
        return dequantize(codes.view(len(scale), -1), scale, zero_point).view(codes.shape)
    if form == "codebook":
        return Clustered(codes.byte(), *rest, bits=8).reconstruct()
    if form == "product":
        return ProductQuantized(codes.byte(), *rest, bits=8).reconstruct()
    raise ValueError(f"there is no form {form!r}")


def _make(kind: str, tensors: list[Tensor], bias: Tensor | None, old: nn.Module) -> nn.Module:
    """A layer in the place of `old`."""
    padding = getattr(old, "padding_idx", None)
    nothing = torch.empty(1, 1, device="meta")
    if kind == "linear":
        return new_linear(*tensors, bias)
    if kind == "embedding":
        return nn.Embedding(*tensors[0].shape, padding_idx=padding, _weight=tensors[0])
    if kind == "norm":
        old.weight, old.bias = nn.Parameter(*tensors), nn.Parameter(bias)
        return old
    if kind == "low-rank":
        return LowRankLinear(Factors(nothing, nothing))
    if kind == "factorized":
        return FactorizedEmbedding(Factors(nothing, *tensors), padding_idx=padding and 0)
    if kind not in ("int8", "int8 token"):
        raise ValueError(f"there is no kind {kind!r}")
    codes, scale, *of_input = tensors
    codes, bits = codes.to(torch.int8), 7 if codes.abs().max() < 64 else 8
    weight = Quantized(codes, scale[:, None], torch.zeros_like(scale), bits)
    static = (0.0, 1.0) if of_input else None
    layer = Int8Linear(weight, bias, input_range=static, per_token=kind == "int8 token")
    if of_input:
        layer.input_scale, layer.input_zero_point = of_input[0], of_input[1].int()
        layer._prepare()
    return layer


def _finish_(model: PreTrainedModel) -> None:
    """What is not in the parameters of a BERT: positions and numbers of heads."""
    embeddings = model.bert.embeddings
    table = getattr(embeddings.position_embeddings, "table", embeddings.position_embeddings)
    model.config.max_position_embeddings = table.num_embeddings
    embeddings.position_ids = torch.arange(table.num_embeddings)[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    for layer in bert_layers(model):
        attention = layer.attention.self
        query = getattr(attention.query, "left", attention.query)
        attention.num_attention_heads = query.out_features // attention.attention_head_size
        attention.all_head_size = attention.num_attention_heads * attention.attention_head_size


def _tokenizer(description: dict, vocabulary: list[str]) -> PreTrainedTokenizerBase:
    definition, special = description["definition"], description["special"]
    if definition["model"]["type"] != "WordPiece":
        raise ValueError(f"the tokenizer is {definition['model']['type']}, and not WordPiece")
    if "Precompiled" in json.dumps(definition["normalizer"]):
        raise ValueError("the tokenizer has a compiled table, which is not checked on reading")
    # All else that goes to transformers by name could name a file or a model on the hub.
    if not (special.keys() <= SPECIAL and all(type(token) is str for token in special.values())):
        raise ValueError(f"the tokenizer has the special tokens {special}")
    definition["model"]["vocab"] = {token: i for i, token in enumerate(vocabulary)}
    like = SimpleNamespace(
        special_tokens_map=special,
        model_max_length=int(description["length"]),
        model_input_names=description["inputs"],
    )
    return rebuild_tokenizer(like, json.dumps(definition, ensure_ascii=False))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m compresslab.export")
    parser.add_argument("file", type=Path, help="written by compresslab.export.export")
    parser.add_argument("sentence", nargs="*", help="to be classified; none shows bytes by section")
    options = parser.parse_args(arguments)
    try:
        model, tokenizer = load(options.file)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    if not options.sentence:
        found = sections(options.file)
        for name, size in [*found.items(), ("file", sum(found.values()))]:
            print(f"{size:10,}  {name}")
        return
    inputs = tokenizer(options.sentence, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        for sentence, p in zip(options.sentence, model(**inputs).logits.softmax(-1), strict=True):
            print(f"{model.config.id2label[int(p.argmax())]} {float(p.max()):.0%}  {sentence}")


if __name__ == "__main__":
    main()
