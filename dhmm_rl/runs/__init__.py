"""The folder of a run: its recipe, logs, checkpoints, evaluations and plots."""
