"""
The algorithms that a recipe can name, and what the rest of the package needs to know about each.

A new algorithm is one entry of :data:`ALGORITHMS`. Classes are imported when they are needed, so that reading recipes imports
neither torch nor SB3.
"""

from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dhmm_rl.recipes.schema import (
    AlgorithmSettings,
    MaskablePPOSettings,
    PPOSettings,
    RecurrentPPOSettings,
    SequenceA2CSettings,
    SequencePPOSettings,
)

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

_SB3_POLICIES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")


@dataclass(frozen=True)
class Algorithm:
    """
    An algorithm that a recipe can name.

    :param path: the class, as ``module:Class``
    :param settings: the keywords that a recipe can set in ``[ppo]``
    :param policies: names of the policies that the algorithm takes
    :param takes_masks: whether the algorithm obeys action masks
    :param requires_masks: whether the algorithm works only in environments that have action masks
    :param uses_cached_state: whether the algorithm acts on the model's cached state, so that a token stream of one step is
        enough; the others read a window of steps
    """

    path: str
    settings: type[AlgorithmSettings]
    policies: tuple[str, ...]
    takes_masks: bool = False
    requires_masks: bool = False
    uses_cached_state: bool = False

    @property
    def keywords(self) -> set[str]:
        """The keys that ``[ppo]`` may have."""
        return {field.name for field in fields(self.settings)}

    def load_class(self) -> "type[OnPolicyAlgorithm]":
        """Import the class."""
        module, _, name = self.path.partition(":")
        loaded: type[OnPolicyAlgorithm] = getattr(import_module(module), name)
        return loaded


ALGORITHMS = {
    "SequencePPO": Algorithm(
        "dhmm_rl.sequence_ppo:SequencePPO",
        SequencePPOSettings,
        policies=("DHMMPolicy",),
        takes_masks=True,
        uses_cached_state=True,
    ),
    "SequenceA2C": Algorithm(
        "dhmm_rl.sequence_a2c:SequenceA2C",
        SequenceA2CSettings,
        policies=("DHMMPolicy",),
        takes_masks=True,
        uses_cached_state=True,
    ),
    "PPO": Algorithm("stable_baselines3:PPO", PPOSettings, policies=("DHMMPolicy", *_SB3_POLICIES)),
    "RecurrentPPO": Algorithm(
        "sb3_contrib:RecurrentPPO",
        RecurrentPPOSettings,
        policies=("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy"),
    ),
    "MaskablePPO": Algorithm(
        "sb3_contrib:MaskablePPO",
        MaskablePPOSettings,
        policies=_SB3_POLICIES,
        takes_masks=True,
        requires_masks=True,
    ),
}
"""The algorithms by the names that recipes use."""


def find_algorithm(agent: Any) -> str | None:
    """The name of an agent's algorithm, or of the nearest base class that has one; ``None`` for any other object."""
    names = {algorithm.load_class(): name for name, algorithm in ALGORITHMS.items()}
    return next((names[base] for base in type(agent).__mro__ if base in names), None)
