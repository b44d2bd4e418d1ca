"""
Action masks together with memory.

Taxi reports in its infos which moves change anything. ``InfoActionMask`` turns that into the ``action_masks()`` method that
sb3-contrib's ``MaskablePPO`` also uses. An environment with a method of that name needs no wrapper.
"""

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from dhmm_rl import SequencePPO, VecTokenStream
from dhmm_rl.common import EvalCallbackWithMasks, WithActionMasks
from dhmm_rl.envs import InfoActionMask

STEPS = 300_000


def make_env(n_envs: int, seed: int) -> VecEnv:
    taxis = make_vec_env(lambda: InfoActionMask(gym.make("Taxi-v4")), n_envs=n_envs, seed=seed)
    return VecTokenStream(taxis, history=1)


env, eval_env = VecNormalize(make_env(16, seed=0), norm_obs=False), make_env(8, seed=1)
model = SequencePPO("DHMMPolicy", env, n_steps=64, batch_size=256, learning_rate=1e-3, seed=0)

# While it learns, SequencePPO asks the environment for its masks. SB3's evaluations need them passed in.
callback = EvalCallbackWithMasks(
    VecNormalize(eval_env, training=False, norm_obs=False, norm_reward=False), eval_freq=STEPS // 80
)
model.learn(STEPS, callback=callback)
mean, _ = evaluate_policy(WithActionMasks(model, eval_env), eval_env, n_eval_episodes=10)
print(f"mean return {mean:.1f}")

observation, state = eval_env.reset(), None
masks = np.stack(eval_env.env_method("action_masks"))
action, state = model.predict(observation, state, action_masks=masks)  # the same in a loop of your own
