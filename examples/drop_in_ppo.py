"""
An existing PPO script with two changed lines: the environment becomes a token stream, and the policy gets another name.

Everything else is Stable-Baselines3's own: the algorithm, the callbacks, ``evaluate_policy``, ``save`` and ``load``.
"""

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from dhmm_rl import VecTokenStream

STEPS = 50_000


def make_env(n_envs: int, seed: int) -> VecNormalize:
    env = make_vec_env("CartPole-v1", n_envs=n_envs, seed=seed)
    env = VecTokenStream(env, history=8)  # the first changed line: the policy sees the last 8 steps
    return VecNormalize(env, norm_obs=False)  # token ids must stay integers; the critic learns on normalized returns


env, eval_env = make_env(n_envs=8, seed=0), make_env(n_envs=4, seed=1)
eval_env.training, eval_env.norm_reward = False, False  # evaluations report the environment's own rewards

model = PPO("DHMMPolicy", env, n_steps=128, batch_size=256, learning_rate=2.5e-4, seed=0)  # before: PPO("MlpPolicy", env, …)
model.learn(STEPS, callback=EvalCallback(eval_env, eval_freq=max(STEPS // 40, 128), verbose=0))
model.save("cartpole_ppo")

model = PPO.load("cartpole_ppo", env)
mean, deviation = evaluate_policy(model, eval_env, n_eval_episodes=10)
print(f"return {mean:.0f} ± {deviation:.0f}")
