"""Fields, bins, the tokenizer, and the grammar of a step."""

from dhmm_rl.tokens.bins import Bins
from dhmm_rl.tokens.fields import Field, fields_of
from dhmm_rl.tokens.tokenizer import DONE, NOTHING, RESET, Slot, Tokenizer

__all__ = ["DONE", "NOTHING", "RESET", "Bins", "Field", "Slot", "Tokenizer", "fields_of"]
