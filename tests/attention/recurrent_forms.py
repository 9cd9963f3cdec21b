"""What the tests of all recurrent methods ask of their forms."""

import torch
from small import randn


def flat(x):
    """The tensors of a tensor, or of nested tuples of them."""
    return [x] if isinstance(x, torch.Tensor) else [t for part in x for t in flat(part)]


def assert_same(one, other, **tolerances):
    """(state, output) of two forms."""
    ours, theirs = flat(one), flat(other)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerances)


def gradients(form, tensors):
    """Of a sum of state and output with fixed random weights, for each of the tensors."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    total = 0.0
    for i, x in enumerate(flat(form(*leaves))):
        x = torch.view_as_real(x) if x.is_complex() else x
        total = total + (x * randn(*x.shape, seed=90 + i)).sum()
    return torch.autograd.grad(total, leaves)


def assert_same_gradients(one, other, tensors):
    for a, b in zip(gradients(one, tensors), gradients(other, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        assert (a != 0).any()


def in_pieces(form, tensors, cuts, *, dim):
    """`form(*tensors, state=…)`, stopped at every cut and taken up again with its state."""
    time = tensors[0].shape[dim]
    ends = [*cuts, time]
    state, outputs = None, []
    for start, end in zip([0, *cuts], ends, strict=True):
        pieces = (x.narrow(dim, start, end - start) for x in tensors)
        state, output = form(*pieces, state=state)
        outputs.append(output)
    return state, torch.cat(outputs, dim)


def assert_causal(form, tensors, *, dim):
    """What comes later changes no output, and what comes now does."""
    time = tensors[0].shape[dim]
    before = form(*tensors)[1]
    for t in (1, time // 2, time - 1):
        for which in range(len(tensors)):
            changed = [x.clone() for x in tensors]
            late = changed[which].narrow(dim, t, time - t)
            late.mul_(0.3).sub_(0.1)
            after = form(*changed)[1]
            torch.testing.assert_close(after.narrow(dim, 0, t), before.narrow(dim, 0, t))
            assert not torch.allclose(after.narrow(dim, t, 1), before.narrow(dim, t, 1))
