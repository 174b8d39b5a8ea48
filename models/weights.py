"""Files of weights that torch.save wrote, read without executing anything in them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch

from utils.errors import UserError, is_systems, reason


def load_weights(path: Path, flag: str) -> dict:
    """A state dict of tensors; nothing in the file is executed. UserError names file and flag."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*TorchScript")  # which is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{flag}: {path} does not exist") from None
    except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged file
        if is_systems(error):
            raise
        if "TorchScript" in str(error):
            raise UserError(f"{flag}: {path} is a TorchScript program, which holds no state dict "
                            "to read: give the weights file it was made from") from None
        if _is_cut_off(path, error):
            raise UserError(f"{flag}: {path} is cut off: copy or download it again") from None
        raise UserError(
            f"{flag}: {path} is not a weights file that loads with weights_only ({reason(error)}); "
            "give a state dict that torch.save wrote"
        ) from None


def _is_cut_off(path: Path, error: Exception) -> bool:
    """Whether only the start of a file that torch.save wrote is there: a zip without its end, or a
    pickle, which it wrote before version 1.6, without its."""
    with open(path, "rb") as file:
        begins = file.read(4) == b"PK\x03\x04"
    said = str(error)
    return (begins and not zipfile.is_zipfile(path)) or (
        path.stat().st_size > 0 and (isinstance(error, EOFError) or "unexpected EOF" in said
                                     or "pickle data was truncated" in said))
