"""A2C for models with memory, on the same rollouts as SequencePPO."""

from dhmm_rl.sequence_a2c.sequence_a2c import SequenceA2C

__all__ = ["SequenceA2C"]
