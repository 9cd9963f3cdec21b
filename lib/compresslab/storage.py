"""A model's weights as a file: dense, or sparse in a form that is smaller.

    save(model, "model.safetensors", encoding="smallest")
    state = load("model.safetensors")

The file is a safetensors file, in which a tensor called `name` is stored, by its encoding, as

    dense    name                as it is
    bitmap   name:values         the entries that are not zero, row by row
             name:bitmap         uint8, one bit an entry, most significant bit first
    csr      name:values         the entries that are not zero, row by row
             name:columns        int16 (int32 above 32,768 columns), column of each
             name:rows           int32, rows + 1 offsets into the two above

A tensor that several layers share is stored once. Bytes, for n entries of b bytes, m rows and k
nonzeros: dense n·b, bitmap k·b + ⌈n/8⌉, csr k·(b + 2) + 4·(m + 1), or k·(b + 4) + 4·(m + 1) with
int32 columns; the header comes on top. The sparse forms do not keep the sign of −0.0, which is
what a mask of zeros makes of a negative weight: it comes back as 0.0.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Encoding = str | Callable[[str, Tensor], str]
ENCODINGS = ("dense", "bitmap", "csr")


def save(model: nn.Module, path: Path, *, encoding: Encoding = "dense") -> int:
    """Write the state of `model` to `path`; give back the size of the file in bytes.

    Args:
        encoding: "dense", "bitmap", "csr", or "smallest" of the three for each tensor; or a
            function of a tensor's name and value that gives one of these. Tensors that are not
            matrices are always dense.

    Raises:
        ValueError: unknown encoding.
    """
    stored, header, first = {}, {}, {}
    for name, tensor in model.state_dict().items():
        # Taken before the copy from a GPU: the copies of two tensors may follow in one place.
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        tensor = tensor.detach().cpu()
        if tensor.numel() and place in first:
            header[name] = {"same": first[place]}
            continue
        first[place] = name
        kind = encoding if isinstance(encoding, str) else encoding(name, tensor)
        kind, parts = _encode(tensor, kind)
        header[name] = {"encoding": kind, "shape": list(tensor.shape)}
        for suffix, part in parts.items():
            stored[f"{name}:{suffix}" if suffix else name] = part.contiguous()
    # Only what a reader needs to know beyond the tensors themselves.
    header = {n: h for n, h in header.items() if h.get("encoding") != "dense"}
    save_file(stored, path, metadata={"compresslab": json.dumps(header)} if header else None)
    return Path(path).stat().st_size


def load(path: Path) -> dict[str, Tensor]:
    """The state dictionary that was saved, every tensor dense again, bit for bit (but
    for −0.0 in a sparse encoding)."""
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {}).get("compresslab", "{}"))
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, entry in header.items():
            if "encoding" in entry:
                decode = {"bitmap": _from_bitmap, "csr": _from_csr}[entry["encoding"]]
                parts = [state.pop(f"{name}:{part}") for part in PARTS[entry["encoding"]]]
                state[name] = decode(*parts, entry["shape"])
    return state | {name: state[e["same"]] for name, e in header.items() if "same" in e}


PARTS = {"bitmap": ("values", "bitmap"), "csr": ("values", "columns", "rows")}


def _encode(tensor: Tensor, kind: str) -> tuple[str, dict[str, Tensor]]:
    if kind not in (*ENCODINGS, "smallest"):
        raise ValueError(f"encoding must be {', '.join(ENCODINGS)} or smallest, not {kind!r}")
    if kind == "dense" or tensor.ndim != 2:
        return "dense", {"": tensor}
    if kind == "smallest":
        return min(
            (_encode(tensor, kind) for kind in ENCODINGS),
            key=lambda encoded: sum(part.nbytes for part in encoded[1].values()),
        )
    parts = _to_bitmap(tensor) if kind == "bitmap" else _to_csr(tensor)
    return kind, dict(zip(PARTS[kind], parts, strict=True))


def _to_bitmap(tensor: Tensor) -> tuple[Tensor, Tensor]:
    kept = tensor.flatten() != 0
    bits = torch.nn.functional.pad(kept, (0, -kept.numel() % 8)).view(-1, 8).to(torch.uint8)
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return tensor.flatten()[kept], (bits * powers).sum(1, dtype=torch.uint8)


def _from_bitmap(values: Tensor, bitmap: Tensor, shape: list[int]) -> Tensor:
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    tensor = values.new_zeros(shape)
    kept = ((bitmap[:, None] & powers) != 0).flatten()[: tensor.numel()]
    tensor.view(-1)[kept] = values
    return tensor


def _to_csr(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    row, column = tensor.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=tensor.shape[0])
    rows = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    index = torch.int16 if tensor.shape[1] <= 32768 else torch.int32
    return tensor[row, column], column.to(index), rows


def _from_csr(values: Tensor, columns: Tensor, rows: Tensor, shape: list[int]) -> Tensor:
    row = torch.repeat_interleave(torch.arange(shape[0]), rows.diff().long())
    tensor = values.new_zeros(shape)
    tensor[row, columns.long()] = values
    return tensor
