"""PPO for models with memory: rollouts on a cached state, updates over whole segments in parallel."""

from dhmm_rl.sequence_ppo.sequence_ppo import SequencePPO

__all__ = ["SequencePPO"]
