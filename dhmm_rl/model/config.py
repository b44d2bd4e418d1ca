"""
Hyperparameters of DHMM-GPT2: every one is written here once, with its type, range, default and meaning.

The keywords of :class:`~dhmm_rl.model.DHMMGPT2`, the table ``[model]`` of recipes and what checkpoints store are all taken from
these two dataclasses. This module does not import torch.
"""

import importlib
import inspect
import typing
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, Self

from dhmm_rl.errors import InputError
from dhmm_rl.plain import plain
from dhmm_rl.tokens import Slot
from dhmm_rl.validation import NotEmpty, NotNegative, Range, check, one_of

DEFAULT_WINDOW = 16
"""Number of steps that the attention of an agent sees, unless its settings say otherwise."""
LARGEST_SIZE = 2**31 - 1
"""Largest number of values that one part of a model may hold."""

LATENT_LAYERS = {
    "hmm": "dhmm_rl.model.hmm_layer:HMMLayer",
    "mingru": "dhmm_rl.model.mingru:MinGRU",
}
"""Latent layers by the name that ``latent`` gives them."""
MIXERS = {
    "attention": "dhmm_rl.model.attention:Attention",
    "alibi": "dhmm_rl.model.alibi:AlibiAttention",
}
"""Mixers by the name that ``mixer`` gives them."""

Size = Annotated[int, Range(1, LARGEST_SIZE)]
Number = Annotated[int, Range(0, LARGEST_SIZE)]
Probability = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Hyperparameters that a recipe sets in ``[model]``: all that do not follow from the tokenizer."""

    embed_size: Size = 64
    """Width D of the embeddings and hidden layers."""
    layers: Annotated[int, Range(0, 1000)] = 1
    """Number of transformer blocks; 0 leaves a plain HMM."""
    heads: Size = 4
    """Number of attention heads."""
    sum_heads: Number = 0
    """Number of heads that sum values instead of averaging them, so that attention can count: the weight of a step is a sigmoid
    and does not depend on the other steps (Ramapuram et al. 2024, arXiv 2409.04431)."""
    head_slopes: Annotated[list[NotNegative], NotEmpty(1000)] | None = None
    """How fast each averaging head forgets: its scores fall by this much with every step of age, as in ALiBi. By default 0 for
    the heads of ``attention``, and ALiBi's own slopes for ``alibi``."""
    ff_hidden: Size | None = None
    """Width of the blocks' feed-forward networks; four times ``embed_size`` by default."""
    num_states: Number = 8
    """Number K of latent states in a chain; 0 leaves a plain GPT-2."""
    max_len: Size = 1024
    """Longest sequence for learned positions, and the default of ``window``."""
    window: Size | None = None
    """Number of steps that attention sees, including the present one. Default: ``max_len``; 16 for agents."""
    mixer: Annotated[str, one_of(*MIXERS)] = "attention"
    """What mixes steps in a block: ``attention``, or ``alibi``, attention with linear biases instead of rotary positions."""
    positions: Literal["rotary", "learned", "both"] = "rotary"
    """Position embedding: ``rotary`` (relative, for streams of any length), ``learned`` (GPT-2's own, counted from the start of
    the episode, up to ``max_len``) or ``both``."""
    reach: Annotated[list[Annotated[int, Range(0, 2**30)]], NotEmpty(100)] | None = None
    """For position ids that are passed with the tokens: the largest difference that attention sees, on each of their P axes.
    Attention then depends on differences of position ids only. Requires ``rotary`` positions."""
    latent: Annotated[str, one_of(*LATENT_LAYERS)] = "hmm"
    """Latent layer: ``hmm``, a hidden Markov model, or ``mingru``, a gated linear recurrence of ``chains`` times ``num_states``
    units, which requires at least one transformer block. The settings below are for ``hmm``, if they do not say otherwise."""
    matrices: Size = 4
    """Number M of transition matrices that the gate mixes."""
    control: Literal["actions", "all", "none"] = "actions"
    """Slots that gate the transition. Without action slots, ``actions`` means ``all``, or ``none`` if there is one matrix."""
    chains: Size = 1
    """Number N of independent chains of latent states."""
    dither: Probability = 1e-3
    """Uniform part ε of every transition."""
    evidence_floor: NotNegative = 20.0
    """Largest log-likelihood ratio that one step may contribute to the belief."""
    mutation: Probability = 0.0
    """Probability per step that the belief jumps to a random state, in training and sampling."""
    latent_init: Literal["sticky", "automaton"] = "sticky"
    """Initial transitions: ``sticky`` (long dwell times, to remember what happened long ago) or ``automaton`` (random
    transitions with a matrix for each control token and one for none, to learn running states)."""
    latent_rate: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Learning rate of the latent layer under Adam and similar optimizers, as a multiple of the learning rate of the rest."""

    @property
    def parameters(self) -> int:
        """Approximate number of parameters, embeddings not included."""
        width = self.embed_size
        blocks = self.layers * width * (4 * width + 2 * (self.ff_hidden or 4 * width))
        return blocks + self.chains * self.num_states * (self.matrices * self.num_states + width) + self.max_len * width


@dataclass(frozen=True, kw_only=True)
class DHMMConfig(ModelSettings):
    """
    The complete description of a model: :class:`ModelSettings` and what follows from the tokenizer.

    Values are checked and normalized: NumPy scalars become Python numbers, and ``control`` and ``slots`` become explicit.

    :raises InputError: for a value of the wrong type or out of its range, and for values that do not fit together
    """

    vocab_size: Size
    """Number V of ids."""
    slots: tuple[Slot, ...] = None  # type: ignore[assignment]
    """Slots of a step; one slot with all ids by default."""
    action_slots: Number = 0
    """Number of slots at the start of a step that hold the agent's action."""
    reset_id: Number | None = None
    """Id that opens an episode; ``None`` if no id does."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for name in hints.keys() - {"slots"}:
            value = plain(getattr(self, name))
            check(value, hints[name], "DHMMGPT2", name)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "slots", _check_slots(self.slots, self.vocab_size))
        if self.control == "actions" and self.action_slots == 0:
            object.__setattr__(self, "control", "all" if self.matrices > 1 else "none")
        if self.control == "none":
            object.__setattr__(self, "matrices", 1)
        _check_consistency(self)
        _check_size(self)

    @classmethod
    def from_arguments(cls, *args: Any, **settings: Any) -> "DHMMConfig":
        """The configuration that the arguments of a constructor describe, or the one that is its only argument."""
        if len(args) == 1 and isinstance(args[0], DHMMConfig) and not settings:
            return args[0]
        arguments = constructor_signature().bind(None, *args, **settings).arguments
        return cls(**{name: value for name, value in arguments.items() if name != "self"})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote."""
        return cls(**{**values, "slots": [Slot(**slot) for slot in values["slots"]]})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and checkpoints."""
        values: dict[str, Any] = plain(asdict(self))
        return values

    def settings(self) -> dict[str, Any]:
        """The fields of :class:`ModelSettings`: what can be combined with another tokenizer."""
        return {field.name: getattr(self, field.name) for field in fields(ModelSettings)}


def load_class(registry: dict[str, str], name: str) -> Any:
    """The class that a registry names as ``module:Class``."""
    module, _, class_name = registry[name].partition(":")
    return getattr(importlib.import_module(module), class_name)


POSITIONAL = ("vocab_size", "embed_size", "layers", "heads", "ff_hidden", "num_states", "max_len")
"""Arguments that :class:`~dhmm_rl.model.DHMMGPT2` also accepts by position, in this order."""


def constructor_signature() -> inspect.Signature:
    """The signature of a constructor whose keywords are the fields of :class:`DHMMConfig`."""
    hints = typing.get_type_hints(DHMMConfig)
    parameters = inspect.signature(DHMMConfig).parameters
    keywords = {name: parameter.replace(annotation=hints[name]) for name, parameter in parameters.items()}
    positional = [keywords[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in POSITIONAL]
    rest = [parameter for name, parameter in keywords.items() if name not in POSITIONAL]
    return inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *positional, *rest])


def _check_slots(slots: Any, ids: int) -> tuple[Slot, ...]:
    slots = (Slot("token", 0, ids),) if slots is None else tuple(slots)
    if not slots:
        raise InputError("slots is empty; a step has at least one slot (slots=None means one slot with all ids)")
    for slot in slots:
        if not isinstance(slot, Slot):
            raise InputError(f"slots contains {slot!r}; it must contain dhmm_rl.tokens.Slot objects only")
        if not (0 <= slot.start < slot.stop <= ids and 0 <= slot.ordinal <= slot.stop - slot.start):
            raise InputError(f"slots contains {slot}; its ids must be between 0 and vocab_size {ids}")
    return tuple(Slot(**plain(asdict(slot))) for slot in slots)


def _check_consistency(config: DHMMConfig) -> None:
    """:raises InputError: for values that are valid by themselves but do not fit together"""

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise InputError(message)

    width, heads, reach, slots = config.embed_size, config.heads, config.reach, config.slots
    require(config.action_slots <= len(slots), f"action_slots is {config.action_slots}; a step has {len(slots)} slots")
    require(
        config.reset_id is None or config.reset_id < config.vocab_size,
        f"reset_id is {config.reset_id}; it must be below vocab_size {config.vocab_size}",
    )
    require(
        config.layers > 0 or config.num_states > 0,
        "layers = 0 and num_states = 0 leave no model; one of them must be positive",
    )
    require(
        config.layers > 0 or config.latent == "hmm",
        f"layers = 0 leaves the latent layer alone, which requires latent = 'hmm', not {config.latent!r}",
    )
    require(width % heads == 0, f"embed_size {width} is not a multiple of heads {heads}")
    require(
        config.head_slopes is None or len(config.head_slopes) == heads - config.sum_heads,
        f"head_slopes has {len(config.head_slopes or ())} entries; there are {heads - config.sum_heads} averaging heads",
    )
    require(
        config.head_slopes is None or reach is None, "head_slopes count steps, and reach compares position ids; set one of them"
    )
    require(config.sum_heads <= heads, f"sum_heads is {config.sum_heads}; it must be at most heads = {heads}")
    require(
        config.positions == "learned" or width // heads % 2 == 0,
        f"rotary positions require an even head size; embed_size {width} / heads {heads} is odd",
    )
    require(
        reach is None or (config.positions == "rotary" and config.mixer == "attention"),
        f"reach is {reach} with {config.positions} positions and mixer {config.mixer}; it requires rotary attention",
    )
    require(
        reach is None or width // heads // 2 >= len(reach),
        f"reach {reach} has more axes than half the head size, embed_size {width} / heads {heads}",
    )


def _check_size(config: DHMMConfig) -> None:
    """:raises InputError: for a model that is too large to be intended"""
    width, states, ids, slots = config.embed_size, config.num_states, config.vocab_size, config.slots
    widest = max(slot.stop - slot.start for slot in slots)
    numbers = {
        "layers, embed_size and ff_hidden": config.layers * width * (4 * width + 2 * (config.ff_hidden or 4 * width)),
        "vocab_size and embed_size": 2 * ids * width,
        "num_states, chains and matrices": config.chains
        * (config.matrices * (states**2 + ids) + states * (ids + width + len(slots) * widest)),
        "max_len": 0 if config.positions == "rotary" else config.max_len * width,
        "window (max_len by default)": (config.window or config.max_len) * (1 + 2 * config.layers * width),
    }
    name = max(numbers, key=lambda part: numbers[part])
    if numbers[name] > LARGEST_SIZE:
        raise InputError(
            f"the model would hold {numbers[name]:.1e} numbers because of its {name}; "
            f"choose sizes that need at most {LARGEST_SIZE:.1e}"
        )
