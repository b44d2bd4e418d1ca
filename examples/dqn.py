"""
Stock DQN on DHMM-GPT2: any SB3 algorithm with discrete or continuous actions can use ``DHMMFeaturesExtractor``.

The replay buffer holds windows of the token stream, so the features are computed from the last 8 steps.
"""

import gymnasium as gym
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from dhmm_rl import DHMMFeaturesExtractor, TokenStream

STEPS = 50_000

env = TokenStream(Monitor(gym.make("CartPole-v1")), history=8)
model = DQN(
    "MlpPolicy",
    env,
    policy_kwargs={
        "features_extractor_class": DHMMFeaturesExtractor,
        "features_extractor_kwargs": {"embed_size": 32, "layers": 1, "num_states": 8},
        "net_arch": [64],
        "normalize_images": False,
    },
    learning_rate=1e-3,
    buffer_size=50_000,
    learning_starts=1_000,
    batch_size=64,
    train_freq=4,
    target_update_interval=500,
    exploration_fraction=0.2,
    seed=0,
)
model.learn(STEPS)
mean, deviation = evaluate_policy(model, env, n_eval_episodes=20)
print(f"return {mean:.0f} ± {deviation:.0f}")
