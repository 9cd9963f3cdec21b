"""Gradual pruning: the sparsity rises while the model trains.

Source: Zhu and Gupta (2017), To prune, or not to prune, arXiv:1710.01878, equation 1:

    s_t = s_f + (s_i - s_f) · (1 - (t - t_0) / (n Δt))³

    code            paper
    start, end      t_0, t_0 + n Δt
    initial, final  s_i, s_f
"""


def cubic_sparsity(step: int, *, start: int, end: int, final: float, initial: float = 0.0) -> float:
    """Sparsity at `step`: `initial` until `start`, `final` from `end` on, fast then slow between.

    Raises:
        ValueError: not start < end.
    """
    if not start < end:
        raise ValueError(f"start must be before end, not {start} and {end}")
    progress = min(1.0, max(0.0, (step - start) / (end - start)))
    return final + (initial - final) * (1 - progress) ** 3
