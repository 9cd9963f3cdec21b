"""The library's attention beside torch, transformers, mambapy, performer-pytorch, linformer and
local-attention: `make bench`.

Ratios are medians within rounds, with their 95 % interval: above 1 the library is faster. Each pair
works on the same numbers with the same weights and gives the same result, which is checked before;
`off` is the largest difference as a fraction of the largest number. Where the peer is a layer with
projections, ours has them too. One text, four heads of 64 or 256 channels, forward only.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import partial

import torch
from linformer.linformer import LinformerSelfAttention
from local_attention import LocalAttention
from mambapy.mamba import MambaBlock
from mambapy.mamba import MambaConfig as MambapyConfig
from performer_pytorch import performer_pytorch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BigBirdConfig, BigBirdModel, LongformerConfig, MambaConfig, RwkvConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention
from transformers.utils import logging

from compresslab.attention.bigbird import bigbird_attention, draw_random_blocks
from compresslab.attention.flash import flash_attention
from compresslab.attention.full import full_attention
from compresslab.attention.linear import elu_plus_one, linear_attention
from compresslab.attention.linformer import linformer_attention
from compresslab.attention.mamba import Mamba
from compresslab.attention.performer import performer_attention
from compresslab.attention.rwkv import TimeMix
from compresslab.attention.sliding_window import window_attention
from compresslab.machine import processor
from compresslab.measure import compare_latency

LENGTH = 2048
HEADS, DIM = 4, 64
WIDTH = HEADS * DIM
WINDOW, BLOCK, RANDOM_BLOCKS, RANK, FEATURES = 256, 64, 3, 128, 128


def show(what: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
    """Time two calls against each other."""
    with torch.inference_mode():
        found, expected = ours(), theirs()
        off = ((found - expected).abs().max() / expected.abs().max()).item()
        assert off < 1e-3, f"{what}: the results differ by {off:.1%}"
        times = compare_latency({"theirs": theirs, "ours": ours}, baseline="theirs", rounds=7)
    speedup = times["ours"].speedup
    line = f"  {what:44} {speedup.value:7.2f} ({speedup.low:.2f} to {speedup.high:.2f})"
    print(f"{line} {times['ours'].milliseconds:9.1f} ms   off {off:.0e}", flush=True)


def split(*projected: Tensor) -> list[Tensor]:
    """Each (batch, time, width) -> (batch, heads, time, dim)."""
    return [x.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for x in projected]


def merged(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def with_projections(layer: nn.Module, x: Tensor, form: Callable[..., Tensor]) -> Tensor:
    """Ours, with the projections of a layer of transformers."""
    return merged(form(*split(layer.query(x), layer.key(x), layer.value(x))))


def bench_exact(heads: list[Tensor]) -> None:
    print("\nAll pairs: torch's scaled_dot_product_attention")
    for causal in (True, False):
        theirs = partial(F.scaled_dot_product_attention, *heads, is_causal=causal)
        for name, form in (("all scores", full_attention), ("tiles", flash_attention)):
            what = f"{name}, {'causal' if causal else 'not causal'}"
            show(what, partial(form, *heads, causal=causal), theirs)


def bench_sparse(heads: list[Tensor], x: Tensor) -> None:
    print(f"\nSliding window, {WINDOW // 2} on each side or behind: local-attention, Longformer")
    options = {"window_size": WINDOW // 2, "exact_windowsize": True, "use_rotary_pos_emb": False}
    for name, window in (("causal", WINDOW // 2 + 1), ("not causal", WINDOW)):
        causal = name == "causal"
        show(
            f"{name}: local-attention",
            partial(window_attention, *heads, causal=causal, window=window),
            partial(LocalAttention(causal=causal, **options).eval(), *heads),
        )
    config = LongformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_window=[WINDOW]
    )
    layer = LongformerSelfAttention(config, 0).eval()
    for name in ("query", "key", "value"):  # ours has one projection for all tokens
        getattr(layer, f"{name}_global").load_state_dict(getattr(layer, name).state_dict())
    for tokens in ((), (0,)):
        kind = torch.zeros(1, LENGTH)
        kind[:, tokens] = 10000
        form = partial(window_attention, window=WINDOW, global_tokens=tokens)
        call = partial(layer, x, kind, kind < 0, kind > 0, bool(tokens))
        show(
            f"{'one global token' if tokens else 'not causal'}: Longformer",
            partial(with_projections, layer, x, form),
            lambda call=call: call()[0],
        )


def bench_bigbird(x: Tensor) -> None:
    print(f"\nBigBird, blocks of {BLOCK}, {RANDOM_BLOCKS} random ones: transformers")
    config = BigBirdConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        block_size=BLOCK,
        num_random_blocks=RANDOM_BLOCKS,
    )
    layer = BigBirdBlockSparseAttention(config).eval()
    generator = torch.Generator().manual_seed(0)
    table = draw_random_blocks(
        LENGTH // BLOCK, heads=HEADS, count=RANDOM_BLOCKS, generator=generator
    )
    # It draws none in evaluation, and takes the first block for all.
    layer._bigbird_block_rand_mask_with_head = lambda **sizes: table[:, 1:-1].numpy()
    masks = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, LENGTH), BLOCK)
    blocked, band, rows, columns = masks
    show(
        "not causal",
        partial(
            with_projections,
            layer,
            x,
            partial(bigbird_attention, block_size=BLOCK, random_blocks=table),
        ),
        lambda: layer(x, band, rows, columns, blocked, blocked)[0],
    )


def bench_linformer(x: Tensor) -> None:
    print(f"\nLinformer, rank {RANK}: linformer")
    layer = LinformerSelfAttention(WIDTH, LENGTH, k=RANK, heads=HEADS).eval()
    mixes = {"key_mix": layer.proj_k.T, "value_mix": layer.proj_v.T}

    def ours() -> Tensor:
        heads = split(layer.to_q(x), layer.to_k(x), layer.to_v(x))
        return layer.to_out(merged(linformer_attention(*heads, **mixes)))

    show("not causal", ours, lambda: layer(x))


def bench_kernels(heads: list[Tensor]) -> None:
    print(f"\nLinear attention, and Performer with {FEATURES} features: performer-pytorch")
    forms = {
        "not causal": performer_pytorch.linear_attention,
        "causal": performer_pytorch.causal_linear_attention_noncuda,
    }
    for name, form in forms.items():

        def theirs(form=form) -> Tensor:
            query, key, value = heads
            return form(elu_plus_one(query), elu_plus_one(key), value)

        ours = partial(linear_attention, *heads, causal=name == "causal")
        show(f"elu + 1, {name}", ours, theirs)
    for name in forms:
        causal = name == "causal"
        with contextlib.redirect_stdout(io.StringIO()):  # it says that there is no CUDA code
            layer = performer_pytorch.FastAttention(DIM, FEATURES, causal=causal)
        if causal:
            layer.causal_linear_fn = partial(layer.causal_linear_fn, eps=0.0)  # as in `main`
        projection = layer.projection_matrix
        ours = partial(performer_attention, *heads, causal=causal, projection=projection)
        show(f"Performer, {name}", ours, partial(layer, *heads))


def bench_states(x: Tensor) -> None:
    print(f"\nBlocks with a state, {WIDTH} channels: mambapy, transformers")
    generator = torch.Generator().manual_seed(0)
    mamba, rwkv = (kind(WIDTH, generator=generator).eval() for kind in (Mamba, TimeMix))
    mixer = MambaMixer(MambaConfig(hidden_size=WIDTH, num_hidden_layers=1), layer_idx=0)
    peers = {"Mamba: transformers": mixer}
    for name, at_once in (("parallel", True), ("one by one", False)):
        config = MambapyConfig(d_model=WIDTH, n_layers=1, pscan=at_once)
        peers[f"Mamba: mambapy, {name}"] = MambaBlock(config)
    for name, peer in peers.items():
        peer.eval().load_state_dict(mamba.state_dict())
        show(name, lambda: mamba(x)[1], partial(peer, x))
    peer = RwkvSelfAttention(RwkvConfig(hidden_size=WIDTH)).eval()
    peer.load_state_dict(rwkv.state_dict())
    show("RWKV: transformers", lambda: rwkv(x)[1], lambda: peer(x)[0])


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()  # transformers would rather have kernels for a GPU
    torch.manual_seed(0)
    # An ε in every feature and every sum changes the result, and not the time.
    performer_pytorch.softmax_kernel = partial(performer_pytorch.softmax_kernel, eps=0.0)
    print(f"{processor()}, {torch.get_num_threads()} threads, {LENGTH} tokens")
    heads = [torch.randn(1, HEADS, LENGTH, DIM) for _ in range(3)]
    x = torch.randn(1, LENGTH, WIDTH)
    with torch.no_grad():
        bench_exact(heads)
        bench_sparse(heads, x)
        bench_bigbird(x)
        bench_linformer(x)
        bench_kernels(heads)
        bench_states(x)


if __name__ == "__main__":
    main()
