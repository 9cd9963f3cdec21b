import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from compresslab import storage
from compresslab.measure import bytes_on_disk, count_flops, count_parameters
from compresslab.pruning.depth import (
    drop_alternate,
    drop_bottom,
    drop_middle,
    drop_top,
    keep_layers,
    keep_layers_,
)

HIDDEN, NEURONS, TOTAL = 8, 12, 4
SIZES = {
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "num_attention_heads": 2,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 16,
    "initializer_range": 0.5,
}


@pytest.fixture
def bert():
    torch.manual_seed(0)
    config = BertConfig(**SIZES, num_hidden_layers=TOTAL)
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES,
        num_hidden_layers=TOTAL,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(1))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (drop_top, {0: [0, 1, 2, 3, 4, 5], 2: [0, 1, 2, 3], 5: [0]}),
        (drop_bottom, {0: [0, 1, 2, 3, 4, 5], 2: [2, 3, 4, 5], 5: [5]}),
        (drop_middle, {0: [0, 1, 2, 3, 4, 5], 2: [0, 1, 4, 5], 3: [0, 1, 5], 5: [0]}),
        (drop_alternate, {0: [0, 1, 2, 3, 4, 5], 2: [0, 1, 2, 4], 3: [0, 2, 4]}),
    ],
)
def test_strategies_are_named_after_what_they_drop(strategy, expected):
    for drop, layers in expected.items():
        assert strategy(6, drop) == layers
        assert len(layers) == 6 - drop
    for drop in (-1, 6):
        with pytest.raises(ValueError, match="drop must be from 0 to 5 of 6 layers"):
            strategy(6, drop)


def test_alternate_dropping_is_fan_s_every_other_and_has_a_limit():
    # Counted from 1, layers with d ≡ 0 mod ⌊1/p⌋ go; here p = 1/2.
    assert drop_alternate(12, 6) == [d - 1 for d in range(1, 13) if d % 2 != 0]
    assert drop_alternate(5, 3) == [1, 3]
    with pytest.raises(ValueError, match="drop must be at most 3 of 6 layers, not 4"):
        drop_alternate(6, 4)


@pytest.mark.parametrize("layers", [[0, 2], [1], [0, 1, 2, 3], drop_bottom(TOTAL, 2)])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_equals_a_model_built_from_the_kept_layers(name, layers, ids, request):
    model = request.getfixturevalue(name)
    prefix = {"bert": "bert.encoder.layer.", "llama": "model.layers."}[name]
    sizes = model.config.to_dict() | {"num_hidden_layers": len(layers)}
    rebuilt = type(model)(type(model.config)(**sizes)).eval()
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith(prefix):
            number, rest = key.removeprefix(prefix).split(".", 1)
            if int(number) in layers:
                state[f"{prefix}{layers.index(int(number))}.{rest}"] = value
        else:
            state[key] = value
    rebuilt.load_state_dict(state)
    before = logits(model, ids)
    smaller = keep_layers(model, layers)
    assert torch.equal(logits(smaller, ids), logits(rebuilt, ids))
    assert smaller.config.num_hidden_layers == len(layers)
    assert torch.equal(logits(model, ids), before)
    assert model.config.num_hidden_layers == TOTAL
    keep_layers_(model, layers)
    assert torch.equal(logits(model, ids), logits(rebuilt, ids))


def test_parameters_bytes_and_flops_drop_by_the_formula(bert, ids):
    smaller = keep_layers(bert, [0, 3])
    saved = count_parameters(bert) - count_parameters(smaller)
    attention, feed_forward = 4 * HIDDEN * (HIDDEN + 1), 2 * HIDDEN * NEURONS + HIDDEN + NEURONS
    assert saved == 2 * (attention + feed_forward + 4 * HIDDEN)  # two norms, weight and bias
    # Names of 16 tensors a layer are in the file's header too.
    assert 0 <= bytes_on_disk(bert) - bytes_on_disk(smaller) - 4 * saved <= 2 * 16 * 150
    work = [count_flops(lambda m=m: logits(m, ids)) for m in (bert, smaller)]
    size, time = ids.shape
    linears = 2 * size * time * (4 * HIDDEN**2 + 2 * HIDDEN * NEURONS)
    assert work[0] - work[1] == 2 * (linears + 4 * size * time**2 * HIDDEN)


def test_the_saved_state_fits_a_model_from_the_configuration(bert, ids, tmp_path):
    smaller = keep_layers(bert, drop_top(TOTAL, 3))
    assert storage.save(smaller, tmp_path / "model.safetensors") < bytes_on_disk(bert)
    again = BertForSequenceClassification(smaller.config).eval()
    again.load_state_dict(storage.load(tmp_path / "model.safetensors"))
    assert torch.equal(logits(again, ids), logits(smaller, ids))
    assert logits(again, ids).isfinite().all()


def test_a_smaller_llama_still_generates_with_its_cache_and_tied_embeddings(llama, ids):
    smaller = keep_layers(llama, [1, 3])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with_cache, without = (
        smaller.generate(ids, **options, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(with_cache, without)
    with torch.no_grad():
        cache = smaller(input_ids=ids, use_cache=True).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [7, 7]
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight
    assert smaller.lm_head.weight is not llama.lm_head.weight


@pytest.mark.parametrize("layers", [[], [4], [-1], [1, 1], [2, 0]])
def test_bad_layers_are_refused_and_nothing_is_removed(bert, layers):
    with pytest.raises(ValueError, match="layers must be ascending numbers from 0 to 3"):
        keep_layers_(bert, layers)
    assert len(bert.bert.encoder.layer) == TOTAL


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no layers of a BERT or a Llama"):
        keep_layers(nn.Linear(2, 2), [0])
