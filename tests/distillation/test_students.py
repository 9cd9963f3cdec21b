import copy

import pytest
import torch
from small import batch, classifier
from torch import nn

from compresslab.distillation.students import (
    alternate_layers,
    build_student,
    first_layers,
    last_layers,
)
from compresslab.factorization.svd import truncated_svd
from compresslab.measure import count_parameters
from compresslab.pruning.depth import keep_layers


@pytest.fixture
def teacher():
    return classifier(layers=4, width=16, heads=4, neurons=24)


def logits(model):
    with torch.no_grad():
        return model(**batch()).logits


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def test_layers_by_name():
    assert first_layers(6, 3) == [0, 1, 2]
    assert last_layers(6, 3) == [3, 4, 5]
    assert alternate_layers(12, 6) == [0, 2, 4, 7, 9, 11]  # those of DistilBERT's code
    assert alternate_layers(6, 3) == [0, 2, 5]
    assert alternate_layers(6, 1) == [0]
    for choose in (first_layers, last_layers, alternate_layers):
        for keep in range(1, 7):
            layers = choose(6, keep)
            assert layers == sorted(set(layers))
            assert len(layers) == keep
        assert choose(6, 6) == list(range(6))
        for keep in (0, 7):
            with pytest.raises(ValueError, match=f"keep must be from 1 to 6 layers, not {keep}"):
                choose(6, keep)


@pytest.mark.parametrize("layers", [[0, 3], [1], [0, 1, 2, 3]])
def test_a_student_as_wide_computes_what_the_kept_layers_compute(teacher, layers):
    student = build_student(teacher, layers)
    assert torch.equal(logits(student), logits(keep_layers(teacher, layers)))
    assert student.config.num_hidden_layers == len(student.bert.encoder.layer) == len(layers)


def test_the_teacher_does_not_change_and_shares_nothing(teacher):
    before, config = copy.deepcopy(teacher.state_dict()), teacher.config.to_dict()
    student = build_student(teacher, [0, 3], width=8)
    same = build_student(teacher, [0, 1, 2, 3])
    with torch.no_grad():
        for p in [*student.parameters(), *same.parameters()]:
            p.add_(1)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert teacher.config.to_dict() == config


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 8},
        {"width": 8, "heads": 2},
        {"width": 12, "heads": 3, "intermediate": 7},
        {"intermediate": 5},
        {"heads": 4, "width": 4},
    ],
)
@pytest.mark.parametrize("start", ["teacher", "random"])
def test_the_configuration_fits_the_model_and_builds_it_again(teacher, sizes, start):
    student = build_student(teacher, [1, 2], **sizes, start=start)
    config = student.config
    width = sizes.get("width", 16)
    assert (config.num_hidden_layers, config.hidden_size) == (2, width)
    assert config.num_attention_heads == sizes.get("heads", 4)
    assert config.intermediate_size == sizes.get("intermediate", 24 * width // 16)
    again = type(teacher)(type(config)(**config.to_dict())).double().eval()
    again.load_state_dict(student.state_dict())
    # Built anew it has another form of attention.
    torch.testing.assert_close(logits(again), logits(student))
    assert logits(student).isfinite().all()
    assert not student.training
    assert student.dtype == torch.float64
    assert config._attn_implementation == "eager"
    assert count_parameters(student) < count_parameters(teacher)


def test_a_narrower_student_is_the_teacher_with_some_dimensions_cut_out(teacher):
    """The first layer's attention, recomputed from the teacher's weights by plain indexing."""
    student = build_student(teacher, [2], width=8, heads=2, intermediate=6)
    hidden = torch.arange(0, 16, 2)  # every other of 16
    kept = torch.cat([torch.arange(4), torch.arange(8, 12)])  # heads 0 and 2, whole
    neurons = torch.arange(0, 24, 4)
    old, new = teacher.bert.encoder.layer[2], student.bert.encoder.layer[0]
    for name in ("query", "key", "value"):
        o, n = getattr(old.attention.self, name), getattr(new.attention.self, name)
        assert torch.equal(n.weight, o.weight[kept][:, hidden])
        assert torch.equal(n.bias, o.bias[kept])
    pairs = [
        (new.attention.output.dense, old.attention.output.dense, hidden, kept),
        (new.intermediate.dense, old.intermediate.dense, neurons, hidden),
        (new.output.dense, old.output.dense, hidden, neurons),
        (student.bert.pooler.dense, teacher.bert.pooler.dense, hidden, hidden),
        (student.classifier, teacher.classifier, torch.arange(2), hidden),
    ]
    for n, o, rows, columns in pairs:
        assert torch.equal(n.weight, o.weight[rows][:, columns])
        assert torch.equal(n.bias, o.bias[rows])
    norms = [
        (new.attention.output.LayerNorm, old.attention.output.LayerNorm),
        (new.output.LayerNorm, old.output.LayerNorm),
        (student.bert.embeddings.LayerNorm, teacher.bert.embeddings.LayerNorm),
    ]
    for n, o in norms:
        assert torch.equal(n.weight, o.weight[hidden])
        assert torch.equal(n.bias, o.bias[hidden])
    for name in ("word", "position", "token_type"):
        n, o = (getattr(m.bert.embeddings, f"{name}_embeddings") for m in (student, teacher))
        assert torch.equal(n.weight, o.weight[:, hidden])


def test_as_many_heads_in_less_width_take_dimensions_out_of_each(teacher):
    student = build_student(teacher, [0], width=8)
    o, n = (m.bert.encoder.layer[0].attention.self.query for m in (teacher, student))
    dims = [h * 4 + d for h in range(4) for d in (0, 2)]
    assert torch.equal(n.weight, o.weight[dims][:, ::2])


def test_what_is_cut_out_is_what_matters_not_where_it_stands():
    """A teacher whose other dimensions are zero everywhere: the attention stays exactly."""
    teacher = classifier(layers=1, width=16, heads=4, neurons=24)
    attention = teacher.bert.encoder.layer[0].attention.self
    with torch.no_grad():
        for linear_ in (attention.query, attention.key):
            linear_.weight.view(4, 4, 16)[:, 1::2] = 0
            linear_.bias.view(4, 4)[:, 1::2] = 0
            linear_.weight[:, 1::2] = 0
    student = build_student(teacher, [0], width=8)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cut = student.bert.encoder.layer[0].attention.self
    for h in range(4):
        old, new = (
            (
                linear(y, a.query)[:, h * d : (h + 1) * d]
                @ linear(y, a.key)[:, h * d : (h + 1) * d].T
            )
            for y, a, d in ((x, attention, 4), (x[:, ::2], cut, 2))
        )
        torch.testing.assert_close(new, old)


def test_all_weights_train_and_the_mode_is_the_teachers(teacher):
    teacher.requires_grad_(False)
    teacher.train()
    student = build_student(teacher, [0, 1])
    assert all(p.requires_grad for p in student.parameters())
    assert student.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_random_start_comes_from_the_generator_alone(teacher):
    def students(start, *seeds):
        return [
            build_student(
                teacher, [0, 1], start=start, generator=torch.Generator().manual_seed(seed)
            ).state_dict()["bert.encoder.layer.0.intermediate.dense.weight"]
            for seed in seeds
        ]

    state = torch.random.get_rng_state()
    one, two, other = students("random", 0, 0, 1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    weight = teacher.bert.encoder.layer[0].intermediate.dense.weight
    assert not torch.equal(one, weight)
    assert torch.equal(students("teacher", 0)[0], weight)
    build_student(teacher, [0])
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_shared_table_lies_in_the_same_memory_frozen_in_the_student_alone(teacher):
    for start in ("teacher", "random"):
        student = build_student(teacher, [0], start=start, share_embeddings=True)
        ours, theirs = (m.get_input_embeddings().weight for m in (student, teacher))
        assert ours.data_ptr() == theirs.data_ptr()
        assert not ours.requires_grad
        assert theirs.requires_grad
        student(**batch()).logits.sum().backward()
        assert ours.grad is None
        assert theirs.grad is None
    assert build_student(teacher, [0]).get_input_embeddings().weight.data_ptr() != theirs.data_ptr()


def test_bad_input_is_named(teacher):
    bad = [
        ({"width": 10}, "width 10 must be a multiple of heads 4"),
        ({"heads": 0}, "width 16 must be a multiple of heads 0"),
        ({"width": 32}, "width must be at most 16, the teacher's, not 32"),
        ({"heads": 8}, "heads must be at most 4, the teacher's, not 8"),
        ({"heads": 2}, "dimensions of a head must be at most 4, the teacher's, not 8"),
        ({"intermediate": 25}, "intermediate must be at most 24, the teacher's, not 25"),
        ({"intermediate": 0}, "intermediate must be at least 1, not 0"),
        ({"start": "zero"}, "start must be 'teacher' or 'random', not 'zero'"),
        ({"width": 8, "share_embeddings": True}, "needs the teacher's width 16, not 8"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            build_student(teacher, [0, 1], **options)
    with pytest.raises(ValueError, match="layers must be ascending numbers from 0 to 3"):
        build_student(teacher, [1, 0])
    with pytest.raises(ValueError, match="Linear has no layers of a BERT"):
        build_student(nn.Linear(2, 2), [0])
    build_student(teacher, [0], width=32, start="random")  # nothing to cut it out of


def test_a_teacher_with_replaced_layers_is_refused(teacher):
    dense = teacher.bert.encoder.layer[0].intermediate.dense
    left, right = truncated_svd(dense.weight, 2)
    teacher.bert.encoder.layer[0].intermediate.dense = nn.Sequential(
        nn.Linear(*right.T.shape), nn.Linear(*left.T.shape)
    )
    with pytest.raises(ValueError, match="the teacher does not fit the model"):
        build_student(teacher, [0])
