"""
DHMM-GPT2: its hyperparameters, the filter, attention, the model, generation and checkpoints.

Names are imported when they are first used, so that :mod:`dhmm_rl.model.config` can be read without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dhmm_rl.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from dhmm_rl.model.config import DHMMConfig
    from dhmm_rl.model.dhmm_gpt2 import DHMMGPT2
    from dhmm_rl.model.generation import generate
    from dhmm_rl.model.outputs import CachedParameters, HiddenStates, ModelOutput, ModelState

_MODULES = {
    "CachedParameters": "outputs",
    "Checkpoint": "checkpoint",
    "DHMMConfig": "config",
    "DHMMGPT2": "dhmm_gpt2",
    "HiddenStates": "outputs",
    "ModelOutput": "outputs",
    "ModelState": "outputs",
    "generate": "generation",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}
__all__ = [
    "DHMMGPT2",
    "CachedParameters",
    "Checkpoint",
    "DHMMConfig",
    "HiddenStates",
    "ModelOutput",
    "ModelState",
    "generate",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
