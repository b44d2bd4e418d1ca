"""Tokenizing: fields of a space, bins, the tokenizer, and the grammar of a step."""

from dhmm_rl.tokens.bins import Bins
from dhmm_rl.tokens.composite_spaces import bounded  # this import also registers the composite spaces
from dhmm_rl.tokens.fields import Field, fields_of
from dhmm_rl.tokens.reports import FieldReport
from dhmm_rl.tokens.simple_spaces import FieldSpace
from dhmm_rl.tokens.tokenizer import DONE, PAD_ID, RESET, Slot, Tokenizer

__all__ = [
    "DONE",
    "PAD_ID",
    "RESET",
    "Bins",
    "Field",
    "FieldReport",
    "FieldSpace",
    "Slot",
    "Tokenizer",
    "bounded",
    "fields_of",
]
