"""Environments of this project: Tiger, T-maze, tape tasks and sorting."""
