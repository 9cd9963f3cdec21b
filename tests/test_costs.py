import pytest

from compresslab import costs
from compresslab.models import load_language_model


def test_weights_at_every_width():
    assert costs.weight_bytes(8, bits=32) == 32
    assert costs.weight_bytes(8, bits=3) == 3


def test_training_takes_sixteen_bytes_with_and_without_mixed_precision():
    assert costs.training_bytes(10) == costs.training_bytes(10, mixed_precision=True) == 160


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 7)])
def test_the_cache_is_as_large_as_a_real_one(batch, tokens):
    import torch

    model, _ = load_language_model()
    with torch.inference_mode():
        cache = model(input_ids=torch.ones(batch, tokens).long(), use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    shape = {"layers": 30, "kv_heads": 3, "head_dim": 64}
    assert costs.kv_cache_bytes(**shape, tokens=tokens, batch=batch, bits=32) == real


def test_a_batch_shares_one_reading_of_the_weights():
    assert costs.tokens_per_second(10, 100) == 10
    assert costs.tokens_per_second(10, 100, batch=8) == 80


def test_the_roof_is_slanted_then_flat():
    roof = {"peak_flops": 100, "bandwidth": 10}
    assert costs.attainable_flops(5, **roof) == 50
    assert costs.attainable_flops(10, **roof) == costs.attainable_flops(50, **roof) == 100


def test_a_typical_shape_is_near_llama_3_and_never_empty():
    shape = costs.typical_shape(8.03e9)
    assert (shape.layers, shape.kv_heads, shape.head_dim) == (34, 8, 128)
    assert costs.typical_shape(1e6).kv_heads >= 1


def test_energy_is_a_sum_over_a_table():
    # EIE gives 640 pJ for 32 bits from memory, at the lower end of Horowitz's figures.
    found = costs.energy(1e9, 4, bits=32)
    assert found["arithmetic"] == pytest.approx(4.6e-3)
    assert found["memory"] == pytest.approx(640e-12, rel=0.02)
    assert costs.energy(1, 0, bits=8)["arithmetic"] < costs.energy(1, 0, bits=16)["arithmetic"]
    with pytest.raises(ValueError, match="not 4"):
        costs.energy(1, 1, bits=4)
