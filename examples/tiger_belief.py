"""
Reading an agent's belief: where does it think the tiger is?

Two doors, a tiger behind one of them. Listening costs 1 and is right in 85 % of the cases. The exact belief is known, so the
agent's belief can be compared with it. Attention sees the present step only: what was heard before can only be in the belief.
"""

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from dhmm_rl import SequencePPO, VecTokenStream
from dhmm_rl.envs import tiger_beliefs

STEPS = 400_000

env = VecTokenStream(make_vec_env(lambda: gym.make("dhmm_rl/Tiger-v0"), n_envs=32, seed=0), history=1)
settings = {"n_steps": 128, "batch_size": 2048, "gamma": 0.95, "learning_rate": 1e-3, "next_token_coef": 1.0, "target_kl": 0.03}
memory = {"features_extractor_kwargs": {"window": 1, "latent_rate": 30.0}}
model = SequencePPO("DHMMPolicy", VecNormalize(env, norm_obs=False), policy_kwargs=memory, seed=0, **settings)
model.learn(STEPS)

# 32 episodes of 100 steps: what was done and heard, and the belief after each step, shape (steps, episodes, states).
tokens, state, beliefs, actions, heard = env.reset(), None, [], [np.zeros(32, int)], []
for _ in range(99):
    heard.append(env.tokenizer.decode_observation(tokens[:, -1, env.tokenizer.action_slots :]))
    action, state = model.predict(tokens, state, deterministic=True)
    beliefs.append(state.belief[:, 0].numpy())
    actions.append(action)
    tokens, _, _, _ = env.step(action)
beliefs, actions, heard = np.array(beliefs), np.array(actions[:-1]), np.array(heard)

exact = np.array([tiger_beliefs(actions[:, i], heard[:, i]) for i in range(32)]).T
inputs = np.concatenate([beliefs, np.ones((99, 32, 1))], axis=2)  # the latent states have no names: read them linearly
weights = np.linalg.lstsq(inputs[:, 1:].reshape(-1, inputs.shape[2]), exact[:, 1:].ravel(), rcond=None)[0]

plt.plot(exact[:40, 0], "k--", label="exact")
plt.plot(inputs[:40, 0] @ weights, label="agent")
plt.plot(np.flatnonzero(actions[:40, 0] > 0), np.full((actions[:40, 0] > 0).sum(), 0.5), "ro", label="a door was opened")
plt.xlabel("step")
plt.ylabel("belief that the tiger is on the left")
plt.legend()
plt.savefig("tiger_belief.png")
print(f"correlation with the exact belief: {np.corrcoef((inputs[:, 1:] @ weights).ravel(), exact[:, 1:].ravel())[0, 1]:.3f}")
