"""
Save an agent with memory, load it in another program, and continue its training.

Save the reward statistics of ``VecNormalize`` with the agent: without them the critic's scale changes when training continues.
"""

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from dhmm_rl import SequencePPO, VecTokenStream

STEPS = 30_000

env = VecTokenStream(make_vec_env("dhmm_rl/CartPoleNoVel-v1", n_envs=16, seed=0), history=1)
env = VecNormalize(env, norm_obs=False)
model = SequencePPO("DHMMPolicy", env, n_steps=64, ent_coef=0.01, seed=0)
model.learn(STEPS)
model.save("cartpole")
env.save("cartpole_vecnormalize.pkl")

# In another program. The agent carries its tokenizer, so the environment can be wrapped in exactly the same way.
tokenizer = SequencePPO.load("cartpole").observation_space.tokenizer
env = VecTokenStream(make_vec_env("dhmm_rl/CartPoleNoVel-v1", n_envs=16, seed=1), tokenizer, history=1)
env = VecNormalize.load("cartpole_vecnormalize.pkl", env)
model = SequencePPO.load("cartpole", env)
model.learn(STEPS, reset_num_timesteps=False)
env.training, env.norm_reward = False, False
print(f"{model.num_timesteps} steps, mean return {evaluate_policy(model, env, n_eval_episodes=20)[0]:.0f}")
