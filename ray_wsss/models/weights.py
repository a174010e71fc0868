"""Reading weights from files of other programs: safetensors or PyTorch, without running pickled code."""

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

# torch.load can raise any of these on a damaged file, because its unpickler trusts the order of the bytes.
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
    """Read the state dict in ``path`` to the CPU.

    Args:
        path: a safetensors file if its suffix is ``.safetensors``, else a PyTorch file.
        setting: name of the setting that gave the path, for error messages.

    Raises:
        UserError: the file does not exist, holds no weights, or would run code.
    """
    if not path.is_file():
        raise UserError(f"{setting} {path} does not exist; expected a safetensors or PyTorch file of weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about a pickle's protocol, then refuses it
            with local_file(path) as file:
                state: Any = (
                    load_file(file)
                    if file.suffix == ".safetensors"
                    else torch.load(file, map_location="cpu", weights_only=True)
                )
    except _DAMAGED as error:
        raise UserError(f"{setting} {path} is not a file of weights: {error}") from error
    if isinstance(state, dict):  # training programs may wrap it in an outer dict
        state = state.get("state_dict", state.get("model", state))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{setting} {path} holds no state dict; expected a dict of names to tensors")
    return state
