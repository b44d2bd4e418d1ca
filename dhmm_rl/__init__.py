"""
dhmm-rl: DHMM-GPT2, a GPT-2 with a latent hidden-Markov layer, as a Stable-Baselines3 policy over token streams.

Importing the package registers its environments with Gymnasium. Everything else is imported when it is first used, so that
commands such as ``python -m dhmm_rl.recipes`` need not wait for torch. The first use of a name that needs SB3 also registers
the policy with SB3: ``PPO("DHMMPolicy", TokenStream(env))``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dhmm_rl import (
    _interrupts,  # noqa: F401  handles Ctrl-C during the other imports, so it is the first
    _registration,  # noqa: F401
)
from dhmm_rl.errors import InputError

if TYPE_CHECKING:
    from dhmm_rl.common import DHMMFeaturesExtractor, DHMMPolicy
    from dhmm_rl.envs import GymnasiumVecEnv, TokenStream, VecTokenStream
    from dhmm_rl.model import DHMMGPT2, generate
    from dhmm_rl.runs.acting import Acting
    from dhmm_rl.sequence_a2c import SequenceA2C
    from dhmm_rl.sequence_ppo import SequencePPO
    from dhmm_rl.tokens import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "DHMMGPT2",
    "Acting",
    "DHMMFeaturesExtractor",
    "DHMMPolicy",
    "GymnasiumVecEnv",
    "InputError",
    "SequenceA2C",
    "SequencePPO",
    "TokenStream",
    "Tokenizer",
    "VecTokenStream",
    "generate",
]

_PACKAGES = {
    "Acting": "runs.acting",
    "DHMMGPT2": "model",
    "DHMMFeaturesExtractor": "common",
    "DHMMPolicy": "common",
    "GymnasiumVecEnv": "envs",
    "SequenceA2C": "sequence_a2c",
    "SequencePPO": "sequence_ppo",
    "TokenStream": "envs",
    "Tokenizer": "tokens",
    "VecTokenStream": "envs",
    "generate": "model",
}
"""The package that defines each name that is imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name in (
        "common",
        "data",
        "model",
        "sequence_a2c",
        "sequence_ppo",
        "tokens",
    ):  # dhmm_rl.model after a plain import dhmm_rl
        return import_module(f"dhmm_rl.{name}")
    if name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = _PACKAGES[name]
    if package != "tokens":
        import_module("dhmm_rl.common")  # registers "DHMMPolicy" with SB3
    value = getattr(import_module(f"dhmm_rl.{package}"), name)
    globals()[name] = value  # later uses find it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
