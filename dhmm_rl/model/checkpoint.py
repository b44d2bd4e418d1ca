"""A language model in one file, with the tokenizer of its streams and a record of its training."""

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write
from dhmm_rl.model.config import DHMMConfig
from dhmm_rl.model.dhmm_gpt2 import DHMMGPT2
from dhmm_rl.plain import plain
from dhmm_rl.tokens import Tokenizer

_FORMAT = "dhmm-rl language model 2"


class Checkpoint(NamedTuple):
    """
    A language model as it is stored.

    :param model: model in evaluation mode
    :param tokenizer: tokenizer of the streams it was trained on; ``None`` for flat sequences
    :param info: plain values about its training, e.g. ``env_id`` and ``env_steps``
    """

    model: DHMMGPT2
    tokenizer: Tokenizer | None
    info: dict[str, Any]


def save_checkpoint(
    path: str | Path, model: DHMMGPT2, tokenizer: Tokenizer | None = None, info: dict[str, Any] | None = None
) -> None:
    """Write a model; ``info`` may hold plain values only."""
    content = {
        "format": _FORMAT,
        "config": model.config.to_dict(),
        "weights": model.state_dict(),
        "tokenizer": None if tokenizer is None else tokenizer.to_dict(),
        "info": plain(info or {}),
    }
    save_torch(path, content)


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """
    Read what :func:`save_checkpoint` wrote.

    :raises InputError: if the file is missing, cut short or of another kind
    """
    content = load_torch(path, _FORMAT, device)
    try:
        model = DHMMGPT2(DHMMConfig.from_dict(content["config"])).to(device)
        model.load_state_dict(content["weights"])
        tokenizer = None if content["tokenizer"] is None else Tokenizer.from_dict(content["tokenizer"])
        return Checkpoint(model.eval(), tokenizer, content["info"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} holds a model of another version of dhmm-rl ({reason}); pretrain a new one") from error


def save_torch(path: str | Path, content: dict[str, Any]) -> None:
    """
    Write a file of tensors and plain values; :func:`load_torch` reads it. It holds a checksum of each of its parts.

    :raises OSError: if the disk is full; the previous file is kept
    """
    buffer = io.BytesIO()  # torch's own writer raises a RuntimeError of many lines when the disk is full
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_torch(path: str | Path, expected: str, device: str | torch.device = "cpu") -> dict[str, Any]:
    """
    Read a file of tensors and plain values whose ``format`` entry is ``expected``; no code in it is run.

    :raises InputError: if the file is missing, of another kind, or a byte of it was changed or lost
    """
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}; python -m dhmm_rl.pretrain writes one")
    try:
        with zipfile.ZipFile(path) as parts:  # what torch.save writes is a zip, and torch.load ignores its checksums
            damaged = parts.testzip()
        if damaged is not None:
            raise InputError(f"{damaged} in it is damaged")
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zipfile and torch raise whatever they met in a damaged file
        raise InputError(f"{path} cannot be read as a checkpoint: it is cut short or of another program") from error
    if not isinstance(content, dict) or content.get("format") != expected:
        raise InputError(f"{path} is not a checkpoint of this kind; expected a {expected}")
    return content
