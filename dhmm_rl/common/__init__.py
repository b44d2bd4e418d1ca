"""
What algorithms share: policies, action distributions, buffers and action masks.

Importing it makes the policy name ``"DHMMPolicy"`` known to SB3's ``PPO`` and ``A2C``.
"""

from dhmm_rl.common.action_masks import EvalCallbackWithMasks, WithActionMasks
from dhmm_rl.common.buffers import SegmentSamples, SequenceRolloutBuffer
from dhmm_rl.common.distributions import ActionTokens, check_masks
from dhmm_rl.common.language_model_actor import LanguageModelActor
from dhmm_rl.common.policies import DHMMFeaturesExtractor, DHMMPolicy, as_ids
from dhmm_rl.common.sequence_on_policy_algorithm import SequenceOnPolicyAlgorithm
from dhmm_rl.common.sequence_policy import SequencePolicy

__all__ = [
    "ActionTokens",
    "DHMMFeaturesExtractor",
    "DHMMPolicy",
    "EvalCallbackWithMasks",
    "LanguageModelActor",
    "SegmentSamples",
    "SequenceOnPolicyAlgorithm",
    "SequencePolicy",
    "SequenceRolloutBuffer",
    "WithActionMasks",
    "as_ids",
    "check_masks",
]
