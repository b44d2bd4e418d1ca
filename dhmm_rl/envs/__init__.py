"""Environments as token streams."""

from dhmm_rl.envs.token_stream import TokenSpace, TokenStream, VecTokenStream

__all__ = ["TokenSpace", "TokenStream", "VecTokenStream"]
