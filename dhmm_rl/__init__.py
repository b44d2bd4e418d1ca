"""dhmm-rl: a latent hidden-Markov GPT-2 as a Stable-Baselines3 policy."""

__version__ = "0.1.0"
