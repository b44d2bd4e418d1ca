"""DHMM-GPT2: filter, attention, the model, generation, checkpoints."""

from dhmm_rl.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dhmm_rl.model.dhmm_gpt2 import DHMMGPT2
from dhmm_rl.model.generate import generate
from dhmm_rl.model.outputs import ModelOutput, ModelState, Tables

__all__ = ["DHMMGPT2", "Checkpoint", "ModelOutput", "ModelState", "Tables", "generate", "load_checkpoint", "save_checkpoint"]
