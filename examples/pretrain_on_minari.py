"""
From recorded episodes to PPO: write a Minari dataset, pretrain the language model on it, then train it by PPO.

The dataset is recorded here, so nothing is downloaded; any local Minari dataset works. Requires the ``minari`` extra.
"""

import os
import subprocess
import sys
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from dhmm_rl import SequencePPO, VecTokenStream
from dhmm_rl.data import collect, write_minari
from dhmm_rl.model import load_checkpoint

STEPS, EPISODES, GRADIENT_STEPS = 50_000, 50, 1_500
os.environ["MINARI_DATASETS_PATH"] = str(Path("datasets").resolve())


def controller(observations):
    """Push the cart to the side to which the pole moves, which balances it for about 200 of 500 steps."""
    return (observations[:, 3] > 0).astype(int)


env = make_vec_env("CartPole-v1", n_envs=4)
write_minari(collect(env, controller, episodes=EPISODES, imitate=True, env_id="CartPole-v1"), "cartpole/controller-v0")

options = ["--data", "minari:cartpole/controller-v0", "--steps", str(GRADIENT_STEPS), "--length", "64", "--quiet"]
subprocess.run([sys.executable, "-m", "dhmm_rl.pretrain", "--env", "CartPole-v1", *options], check=True)

# The checkpoint brings its tokenizer. PPO first fits the critic, then stays close to the imitated policy.
checkpoint = "runs/CartPole-v1/pretrain/1/pretrained.pt"
env = VecTokenStream(make_vec_env("CartPole-v1", n_envs=16, seed=0), load_checkpoint(checkpoint).tokenizer, history=1)
env = VecNormalize(env, norm_obs=False)
# The controller is mediocre, so the pull towards it decays quickly.
model = SequencePPO("DHMMPolicy", env, n_steps=64, pretrained=checkpoint, prior_kl_decay=0.8, seed=0)
print(f"after pretraining: {evaluate_policy(model, env, n_eval_episodes=16)[0]:.0f}")
model.learn(STEPS)
print(f"after PPO: {evaluate_policy(model, env, n_eval_episodes=16)[0]:.0f}")
