"""DHMM-GPT2: filter, attention, the model, generation, checkpoints."""

from dhmm_rl.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dhmm_rl.model.dhmm_gpt2 import DHMMGPT2, ModelOutput, ModelState, Tables
from dhmm_rl.model.generate import generate

__all__ = ["DHMMGPT2", "Checkpoint", "ModelOutput", "ModelState", "Tables", "generate", "load_checkpoint", "save_checkpoint"]
