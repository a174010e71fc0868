"""Train and eval mode of networks that somebody else trains."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Generator[None, None, None]:
    """Put a model into eval mode, and at the end each of its modules back into the mode it had.

    ``model.train()`` would not do: it also wakes up the batch norms that a training keeps frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
