"""DHMM-GPT2 as an SB3 policy; importing this makes the name ``"DHMMPolicy"`` known to ``PPO`` and ``A2C``."""

from dhmm_rl.policies.distribution import ActionTokens, check_masks
from dhmm_rl.policies.language_model_actor import LanguageModelActor
from dhmm_rl.policies.policies import DHMMFeaturesExtractor, DHMMPolicy, as_ids

__all__ = ["ActionTokens", "DHMMFeaturesExtractor", "DHMMPolicy", "LanguageModelActor", "as_ids", "check_masks"]
