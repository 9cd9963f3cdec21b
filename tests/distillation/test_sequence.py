import copy

import pytest
import small
import torch
from small import randn
from torch.nn import functional as F

from compresslab.distillation.sequence import continue_texts, sequence_loss, token_loss
from compresslab.distillation.soft_targets import soft_target_loss

MASK = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]])
SIZES = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 32}


@pytest.fixture(scope="module")
def llama():
    return small.llama(**SIZES, initializer_range=0.5, eos_token_id=None, bos_token_id=1)


@pytest.fixture(scope="module")
def prompts():
    return torch.randint(2, 50, (4, 5), generator=torch.Generator().manual_seed(0))


def ending(llama, end):
    """The same model, for which a token means the end."""
    llama = copy.deepcopy(llama)
    llama.generation_config.eos_token_id = end
    return llama


def greedy(model, prompts, steps):
    """The likeliest token, again and again, without cache."""
    ids = prompts
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def test_the_token_loss_is_soft_targets_of_the_positions_that_count():
    student, teacher = 3 * randn(3, 4, 6), 3 * randn(3, 4, 6, seed=1)
    rows = [(b, t) for b in range(3) for t in range(4) if MASK[b, t]]
    s, t = (torch.stack([x[b, t] for b, t in rows]) for x in (student, teacher))
    for temperature in (1.0, 3.0):
        torch.testing.assert_close(
            token_loss(student, teacher, MASK, temperature=temperature),
            soft_target_loss(s, t, temperature=temperature),
        )


def test_the_token_loss_trains_the_student_where_the_mask_says():
    student, teacher = randn(3, 4, 6).requires_grad_(), randn(3, 4, 6, seed=1).requires_grad_()
    token_loss(student, teacher, MASK).backward()
    assert teacher.grad is None
    assert torch.equal(student.grad.abs().sum(-1) > 0, MASK.bool())
    assert token_loss(student, teacher, 0 * MASK) == 0
    assert token_loss(student.bfloat16(), teacher.bfloat16(), MASK).dtype == torch.float32


def test_without_sampling_the_teacher_writes_the_likeliest_token(llama, prompts):
    ids, mask = continue_texts(llama, prompts, new_tokens=6)
    assert torch.equal(ids, greedy(llama, prompts, 6))
    assert mask.dtype == torch.bool
    assert not mask[:, :5].any()
    assert mask[:, 5:].all()


def test_more_beams_find_texts_at_least_as_likely(llama, prompts):
    def likelihood(ids, mask):
        with torch.no_grad():
            log_p = llama(input_ids=ids).logits.log_softmax(-1)[:, :-1]
        found = log_p.gather(2, ids[:, 1:, None])[..., 0]
        return (found * mask[:, 1:]).sum(1)

    one = likelihood(*continue_texts(llama, prompts, new_tokens=4))
    many = likelihood(*continue_texts(llama, prompts, new_tokens=4, beams=8))
    assert (many >= one - 1e-5).all()
    assert (many > one + 1e-3).any()


def test_a_text_counts_up_to_its_end_and_no_further(llama, prompts):
    free = greedy(llama, prompts, 6)
    end = int(free[0, 7])  # the first text ends with its third new token, if not before
    prompts = prompts.clone()
    ids, mask = continue_texts(ending(llama, [end]), prompts, new_tokens=6)
    lengths = []
    for row in free[:, 5:].tolist():
        lengths.append(row.index(end) + 1 if end in row else 6)
    assert lengths[0] <= 3
    assert max(lengths) > lengths[0]
    assert mask.sum(1).tolist() == lengths
    for i, n in enumerate(lengths):
        assert torch.equal(ids[i, : 5 + n], free[i, : 5 + n])
        assert mask[i, 5 : 5 + n].all()


def test_an_end_inside_the_prompt_is_not_the_teachers(llama, prompts):
    written = greedy(llama, prompts, 4)[0, 5:].tolist()
    end = next(token for token in prompts[0].tolist() if token not in written)
    _, mask = continue_texts(ending(llama, end), prompts, new_tokens=4)
    assert mask[0, 5:].all()


def test_samples_come_from_the_generator_and_from_the_whole_distribution(llama, prompts):
    def sample(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        return continue_texts(
            llama, prompts, new_tokens=6, sample=True, generator=generator, **options
        ).ids

    state = torch.random.get_rng_state()
    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(sample(0, temperature=1e-4), greedy(llama, prompts, 6))

    many = prompts[:1].expand(4000, -1).contiguous()
    flat = copy.deepcopy(llama)
    flat.lm_head.weight.data *= 0.2  # so that no token is rare
    first = continue_texts(
        flat, many, new_tokens=1, sample=True, temperature=2.0,
        generator=torch.Generator().manual_seed(0),
    ).ids[:, -1]  # fmt: skip
    with torch.no_grad():
        p = (flat(input_ids=many[:1]).logits[0, -1] / 2).softmax(-1)
    counts = torch.bincount(first, minlength=50)
    # 50 tokens, 49 degrees of freedom; 100 is passed once in 40,000 times.
    assert ((counts - 4000 * p) ** 2 / (4000 * p)).sum() < 100


def test_the_sequence_loss_is_that_of_transformers_with_ignored_labels(llama, prompts):
    ids, mask = continue_texts(llama, prompts, new_tokens=6)
    mask[1, 8:] = False
    with torch.no_grad():
        out = llama(input_ids=ids, labels=ids.masked_fill(~mask, -100))
    torch.testing.assert_close(sequence_loss(out.logits, ids, mask), out.loss)


def test_the_sequence_loss_reads_one_position_before_and_never_the_first():
    ids = torch.tensor([[3, 1, 2]])
    logits = randn(1, 3, 4)
    loss = sequence_loss(logits, ids, torch.tensor([[1, 0, 1]]))
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, 1], ids[:, 2]))
    assert sequence_loss(logits, ids, torch.tensor([[1, 0, 0]])) == 0
    assert sequence_loss(logits.bfloat16(), ids, ids).dtype == torch.float32


def test_a_student_learns_to_write_what_its_teacher_writes(llama, prompts):
    ids, mask = continue_texts(llama, prompts, new_tokens=6)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        student = type(llama)(llama.config)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for _ in range(40):
        loss = sequence_loss(student(input_ids=ids).logits, ids, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(greedy(student.eval(), prompts, 6), ids)


def test_bad_input_is_named(llama, prompts):
    with pytest.raises(ValueError, match=r"not \(3, 4, 6\) and \(3, 4, 5\)"):
        token_loss(randn(3, 4, 6), randn(3, 4, 5), MASK)
    with pytest.raises(ValueError, match=r"mask must have shape \(3, 4\)"):
        token_loss(randn(3, 4, 6), randn(3, 4, 6), MASK[:, 1:])
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        token_loss(randn(3, 4, 6), randn(3, 4, 6), MASK, temperature=0)
    with pytest.raises(ValueError, match=r"prompts must be int64 .* not torch.int64 \(5,\)"):
        continue_texts(llama, prompts[0], new_tokens=1)
    with pytest.raises(ValueError, match=r"prompts must be int64 .* not torch.float32"):
        continue_texts(llama, prompts.float(), new_tokens=1)
    for options in ({"new_tokens": 0}, {"new_tokens": 1, "beams": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            continue_texts(llama, prompts, **options)
    with pytest.raises(ValueError, match="beams must be 1 where tokens are drawn, not 2"):
        continue_texts(llama, prompts, new_tokens=1, sample=True, beams=2)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        continue_texts(llama, prompts, new_tokens=1, sample=True, temperature=0.0)
    with pytest.raises(ValueError, match=r"do not fit: \(3, 4, 6\), \(3, 4\) and \(3, 3\)"):
        sequence_loss(randn(3, 4, 6), MASK, MASK[:, 1:])
