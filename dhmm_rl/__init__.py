"""
dhmm-rl: DHMM-GPT2, a GPT-2 with a latent hidden-Markov layer, as a Stable-Baselines3 policy over token streams.

Importing it makes the policy known to SB3 by name: ``PPO("DHMMPolicy", TokenStream(env))``.
"""

from dhmm_rl import _interrupts  # noqa: F401
from dhmm_rl.common import DHMMFeaturesExtractor, DHMMPolicy
from dhmm_rl.envs import GymnasiumVecEnv, TokenStream, VecTokenStream
from dhmm_rl.errors import InputError
from dhmm_rl.model import DHMMGPT2, generate
from dhmm_rl.sequence_ppo import SequencePPO
from dhmm_rl.tokens import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "DHMMGPT2",
    "DHMMFeaturesExtractor",
    "DHMMPolicy",
    "GymnasiumVecEnv",
    "InputError",
    "SequencePPO",
    "TokenStream",
    "Tokenizer",
    "VecTokenStream",
    "generate",
]
