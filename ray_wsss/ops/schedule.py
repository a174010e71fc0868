"""Learning-rate schedules, as functions of the iteration."""


def poly_lr(lr: float, iteration: int, max_iters: int, power: float) -> float:
    """Polynomial decay from `lr` at iteration 0 to 0 at `max_iters`.

    Args:
        lr: the initial learning rate.
        iteration: iterations done, in 0 .. max_iters. The end is included, because schedulers step once more
            after the last update.
        max_iters: length of the run, in iterations.
        power: exponent (S2C: 0.9; 1 is linear).

    Returns:
        lr * (1 - iteration / max_iters) ** power

    Raises:
        ValueError: `max_iters` or `power` is not positive, or `iteration` is out of range.
    """
    if max_iters <= 0:
        raise ValueError(f"max_iters is {max_iters}; expected at least 1")
    if power <= 0:
        raise ValueError(f"power is {power}; expected more than 0")
    if not 0 <= iteration <= max_iters:
        raise ValueError(f"iteration is {iteration}; expected 0..{max_iters}")
    return lr * (1 - iteration / max_iters) ** power
