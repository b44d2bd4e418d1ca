"""
Memory that outlives the window of attention.

A cue at the beginning of a corridor of 16 steps says which way to turn at its end. Attention sees 4 steps, so the agent has
to carry the cue in its belief. An agent without memory gets 0.5; with the default budget this one gets 1.
"""

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from dhmm_rl import SequencePPO, VecTokenStream

STEPS = 200_000

env = make_vec_env(lambda: gym.make("dhmm_rl/TMaze-v0"), n_envs=32, seed=0)
env = VecTokenStream(env, history=1)  # the policy reads one step at a time; its state remembers the rest
env = VecNormalize(env, norm_obs=False)

memory = {"window": 4, "ff_hidden": 128, "control": "all"}  # "all": observations gate the transitions, not only actions
settings = {"n_steps": 64, "batch_size": 512, "ent_coef": 0.01, "target_kl": 0.03, "uniform_kl": 0.002}
settings["learning_rate"] = lambda remaining: 1e-3 * remaining  # falls linearly
model = SequencePPO("DHMMPolicy", env, policy_kwargs={"features_extractor_kwargs": memory}, seed=0, **settings)
model.learn(STEPS)

# evaluate_policy passes the state on. In a loop of your own, pass back in what predict returned.
env.training, env.norm_reward = False, False
print(f"mean return {evaluate_policy(model, env, n_eval_episodes=100)[0]:.2f}")

observation, state, returns, done = env.reset(), None, 0.0, False
while not done:
    action, state = model.predict(observation, state, deterministic=True)
    observation, rewards, dones, _ = env.step(action)
    returns, done = returns + rewards[0], dones[0]
print(f"one more episode: {returns:.2f}")
