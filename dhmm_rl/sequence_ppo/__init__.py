"""PPO for models with memory: rollouts on a cached state, updates over whole segments in parallel."""

from dhmm_rl.sequence_ppo.buffers import SegmentSamples, SequenceRolloutBuffer
from dhmm_rl.sequence_ppo.masks import EvalCallbackWithMasks, WithActionMasks
from dhmm_rl.sequence_ppo.policies import SequencePolicy
from dhmm_rl.sequence_ppo.sequence_ppo import SequencePPO

__all__ = [
    "EvalCallbackWithMasks",
    "SegmentSamples",
    "SequencePPO",
    "SequencePolicy",
    "SequenceRolloutBuffer",
    "WithActionMasks",
]
