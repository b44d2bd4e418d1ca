"""Pretraining a language model on rollouts by next-token prediction."""
