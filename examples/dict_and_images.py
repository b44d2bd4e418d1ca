"""
Observations of several kinds at once: an image, a vector without bounds, and a category.

The tokenizer cuts the image into patches, each of which becomes one token of a codebook, and fits bins to the vector. Images
require the ``images`` extra.
"""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from dhmm_rl import SequencePPO, Tokenizer, VecTokenStream
from dhmm_rl.data import random_observations

STEPS = 100_000


class Chase(gym.Env):
    """Move the red square onto the green one."""

    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (32, 32, 3), np.uint8), offset=spaces.Box(-np.inf, np.inf, (2,)), last_move=spaces.Discrete(5)
    )
    action_space = spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.integers(0, 8, (2, 2)) * 4
        return self.look(0), {}

    def step(self, action):
        self.place = np.clip(self.place + 4 * np.array([(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)])[action], 0, 28)
        reached = bool((self.place == self.goal).all())
        return self.look(action), 1.0 if reached else -0.01, reached, False, {}

    def look(self, move):
        image = np.zeros((32, 32, 3), np.uint8)
        for (y, x), color in ((self.goal, (40, 255, 40)), (self.place, (255, 40, 40))):
            image[y : y + 4, x : x + 4] = color
        return {"image": image, "offset": (self.goal - self.place).astype(np.float32), "last_move": move}


env = make_vec_env(lambda: gym.wrappers.TimeLimit(Chase(), 50), n_envs=16, seed=0)
tokenizer = Tokenizer(env.observation_space, env.action_space).fit(random_observations(env))
print(tokenizer)  # one slot for every patch, number and category
env = VecNormalize(VecTokenStream(env, tokenizer, history=1), norm_obs=False)
model = SequencePPO("DHMMPolicy", env, n_steps=64, batch_size=256, ent_coef=0.01, seed=0)
model.learn(STEPS)
returns = [episode["r"] for episode in model.ep_info_buffer]
print(f"mean return of the last {len(returns)} episodes: {np.mean(returns):.2f}")
