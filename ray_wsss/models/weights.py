"""Weights from files of other programs: safetensors or PyTorch, never code from a pickle."""

import struct
import warnings
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ray_wsss.errors import UserError
from ray_wsss.storage import AnyPath, local_file

# What torch.load raises where bytes are not what it wrote: its unpickler trusts their order.
_DAMAGED = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
)


def read_weights(path: AnyPath, setting: str) -> dict[str, Tensor]:
    """The state dict in ``path``, on the CPU; safetensors by its suffix, else a PyTorch file.

    Args:
        setting: the key that named the file, for messages.

    Raises:
        UserError: no such file, not a file of weights, or one that would run code.
    """
    if not path.is_file():
        raise UserError(f"{setting} {path} does not exist; expected a safetensors or PyTorch file of weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a pickle's protocol before it refuses it
            with local_file(path) as file:
                state: Any = (
                    load_file(file)
                    if file.suffix == ".safetensors"
                    else torch.load(file, map_location="cpu", weights_only=True)
                )
    except _DAMAGED as error:
        raise UserError(f"{setting} {path} is not a file of weights: {error}") from error
    if isinstance(state, dict):  # training programs wrap the state dict in one of their own
        state = state.get("state_dict", state.get("model", state))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{setting} {path} holds no state dict (names to tensors)")
    return state
