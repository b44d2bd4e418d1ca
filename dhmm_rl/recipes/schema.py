"""
The keys of recipes, each with its type, range, default and meaning.

Each dataclass is one table of a recipe; the table ``[model]`` is :class:`dhmm_rl.model.config.ModelSettings`. Where a table
holds keywords of a constructor (of the model, an algorithm or a policy), the defaults are those of the constructor.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dhmm_rl.plain import plain
from dhmm_rl.validation import Count, NotEmpty, NotNegative, Positive, Range, Scheduled, Share, check_ranges

Steps = Annotated[int, Range(1, 10**11)]
RolloutSteps = Annotated[int, Range(1, 2**20)]
BatchSize = Annotated[int, Range(1, 2**24)]
Epochs = Annotated[int, Range(1, 1000)]
Width = Annotated[int, Range(1, 2**16)]
Layers = Annotated[list[Width], NotEmpty(100)]
Rate = Annotated[float, Range(0, 10, above=True)]
Probability = Annotated[float, Range(0, 1, below=True)]
ScheduledRate = Annotated[float, Scheduled(Range(0, 10, above=True))]
ScheduledClip = Annotated[float, Scheduled(Range(0, 1e6, above=True))]

Activation = Literal["Tanh", "ReLU", "ELU", "GELU", "LeakyReLU", "Mish", "SELU", "SiLU", "Sigmoid", "Softplus"]

LARGEST_MODEL = 2**30
"""A model with more parameters than about this is refused."""


@dataclass(frozen=True)
class FieldSettings:
    """How one field of the tokens is binned, in ``[tokens.fields]`` by the field's name."""

    bins: Annotated[int, Range(2, 10_000)] | None = None
    """Number of bins."""
    low: float | None = None
    """Lower edge of the first bin."""
    high: float | None = None
    """Upper edge of the last bin."""
    scale: Positive | None = None
    """Typical size of the values of a field without bounds: bins are uniform up to about this size and grow beyond."""
    values: Annotated[list[float], NotEmpty()] | None = None
    """Values of the field, one id each; any other value gets the id of the nearest."""
    patch: Annotated[int, Range(0, 4096)] | None = None
    """Side of an image's patches, or 0 for one category per cell."""
    codes: Annotated[int, Range(2, 2**16)] | None = None
    """Number of codes of an image's codebook."""


@dataclass(frozen=True)
class TokenSettings:
    """How observations and actions become tokens, in ``[tokens]``."""

    bins: Annotated[int, Range(2, 10_000)] | None = None
    """Number of bins of a real-valued field. By default 10, and up to 128 where values change little from step to step."""
    fields: dict[str, FieldSettings] = field(default_factory=dict)
    """Settings of single fields, by name."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a language model is trained."""

    steps: Annotated[int, Range(1, 10**9)] = 2000
    """Maximum number of gradient steps."""
    batch_size: Annotated[int, Range(1, 2**20)] = 64
    """Number of windows in a gradient step."""
    length: Annotated[int, Range(1, 2**20)] = 32
    """Number of environment steps in a window."""
    learning_rate: Annotated[float, Range(0, 10, above=True)] = 3e-3
    """Peak learning rate, after the warm-up; it then decays to a tenth along a cosine."""
    warmup: Annotated[int, Range(0, 10**9)] = 100
    """Number of gradient steps in which the learning rate rises to its peak."""
    weight_decay: NotNegative = 0.1
    """Weight decay of AdamW, on the matrices of the transformer."""
    max_grad_norm: Positive = 1.0
    """Gradient-norm clipping threshold."""
    eval_every: Count | None = None
    """Number of gradient steps between evaluations on the held-out episodes; each writes a checkpoint. Default: a twentieth of
    the steps, or the number of held-out batches if that is larger."""
    patience: Count = 5
    """Early-stopping patience, in evaluations."""
    held_out: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1
    """Fraction of the episodes that are held out."""
    dither: bool = True
    """Dither the bins of real fields while training, in episodes whose actions are not imitated."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            object.__setattr__(self, name, plain(value))

    def check(self) -> None:
        """:raises InputError: for a setting out of its range"""
        check_ranges(self, "{name} of pretraining is {value}; it must be {expected}")


@dataclass(frozen=True)
class PretrainSettings(TrainingSettings):
    """Pretraining before PPO, in ``[pretrain]``."""

    data: Annotated[list[str], NotEmpty(1000)] | None = None
    """Sources of rollouts, as ``python -m dhmm_rl.pretrain --data`` takes them; random ones by default."""
    episodes: Annotated[int, Range(0, 10**9)] = 200
    """Number of episodes to collect from each source; 0 to leave pretraining out. Without this and ``data``, ``ppo`` does not
    pretrain unless its command line asks for it."""
    field_weights: dict[str, NotNegative] | None = None
    """Weights of fields in the loss, by name; 1 for the others."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Keywords of torch's Adam, in ``policy_kwargs.optimizer_kwargs``."""

    betas: Annotated[list[Probability], NotEmpty(2)] | None = None
    """Decay rates of the means of gradients and of their squares."""
    eps: Positive = 1e-5
    """Term added to the denominator for numerical stability."""
    weight_decay: NotNegative = 0.0
    """Weight of the L2 penalty."""
    amsgrad: bool = False
    """Use the AMSGrad variant."""


@dataclass(frozen=True)
class ExtractorSettings:
    """Keywords of SB3's features extractors, in ``policy_kwargs.features_extractor_kwargs``."""

    features_dim: Width = 512
    """Of CNN policies: number of features."""
    cnn_output_dim: Width = 256
    """Of multi-input policies: number of features of each image."""
    normalized_image: bool = False
    """Whether images are already divided by 255."""


@dataclass(frozen=True)
class LSTMSettings:
    """Keywords of ``torch.nn.LSTM``, in ``policy_kwargs.lstm_kwargs``."""

    bias: bool = True
    """Whether the layers have biases."""
    dropout: Probability = 0.0
    """Dropout between the layers."""


@dataclass(frozen=True)
class NetArch:
    """Layers of the actor's and the critic's network, in ``policy_kwargs.net_arch``."""

    pi: list[Width] = field(default_factory=list)
    """Layer widths of the actor."""
    vf: list[Width] = field(default_factory=list)
    """Layer widths of the critic."""


@dataclass(frozen=True)
class PolicySettings:
    """Keywords of SB3's policies and of ``DHMMPolicy``, in ``[ppo.policy_kwargs]``."""

    net_arch: NetArch | list[Width] | None = None
    """Layer widths of the actor and the critic; of ``DHMMPolicy`` only the critic's count."""
    activation_fn: Activation = "Tanh"
    """Activation, by its name in ``torch.nn``."""
    ortho_init: bool = True
    """Whether weights are initialized orthogonally."""
    log_std_init: Annotated[float, Range(-100, 100)] = 0.0
    """Initial logarithm of the standard deviation of Gaussian actions."""
    full_std: bool = True
    """With gSDE: one standard deviation per feature and action instead of one per feature."""
    use_expln: bool = False
    """With gSDE: compute standard deviations by ``expln`` instead of the exponential."""
    squash_output: bool = False
    """With gSDE: squash actions by tanh."""
    features_extractor_kwargs: ExtractorSettings | None = None
    """Keywords of SB3's features extractor."""
    share_features_extractor: bool = True
    """Whether actor and critic share the features extractor."""
    normalize_images: bool = True
    """Whether images are divided by 255."""
    optimizer_kwargs: OptimizerSettings | None = None
    """Keywords of Adam."""
    action_head: Literal["tokens", "gaussian"] = "tokens"
    """Of ``DHMMPolicy``: choose action tokens, or draw Box actions from a Gaussian."""
    lstm_hidden_size: Width = 256
    """Of LSTM policies: width of the LSTM."""
    n_lstm_layers: Annotated[int, Range(1, 100)] = 1
    """Of LSTM policies: number of layers."""
    shared_lstm: bool = False
    """Of LSTM policies: whether actor and critic share the LSTM."""
    enable_critic_lstm: bool = True
    """Of LSTM policies: whether the critic has an LSTM of its own."""
    lstm_kwargs: LSTMSettings | None = None
    """Of LSTM policies: further keywords of ``torch.nn.LSTM``."""


@dataclass(frozen=True)
class AlgorithmSettings:
    """Keywords that all algorithms take, in ``[ppo]``."""

    learning_rate: ScheduledRate = 3e-4
    """Learning rate; ``lin_0.001`` falls linearly from 0.001 to 0 over the training."""
    n_steps: RolloutSteps = 2048
    """Steps of every environment between updates."""
    gamma: Share = 0.99
    """Discount factor."""
    gae_lambda: Share = 0.95
    """Trade-off between bias and variance of generalized advantage estimation."""
    normalize_advantage: bool = True
    """Whether advantages are normalized."""
    ent_coef: NotNegative = 0.0
    """Weight of the entropy bonus in the loss."""
    vf_coef: NotNegative = 0.5
    """Weight of the value loss."""
    max_grad_norm: Positive = 0.5
    """Gradient-norm clipping threshold."""
    stats_window_size: Count = 100
    """Number of episodes over which logged returns are averaged."""
    policy_kwargs: PolicySettings | None = None
    """Keywords of the policy."""
    verbose: Annotated[int, Range(0, 2)] = 0
    """Verbosity of the algorithm: 0 for none, 1 for information, 2 for debugging."""


@dataclass(frozen=True)
class ClippedSettings(AlgorithmSettings):
    """Keywords that all variants of PPO take."""

    batch_size: BatchSize = 64
    """Environment steps in a minibatch; SequencePPO rounds down to whole segments."""
    n_epochs: Epochs = 10
    """Passes over the rollout in an update."""
    clip_range: ScheduledClip = 0.2
    """Clipping of the probability ratio; may be a schedule such as ``lin_0.2``."""
    clip_range_vf: ScheduledClip | None = None
    """Clipping of the value function; none by default."""
    target_kl: Positive | None = None
    """End an update when the approximate KL divergence exceeds 1.5 times this; never by default."""


# A class repeats a key without its text where its algorithm has another default.


@dataclass(frozen=True)
class PPOSettings(ClippedSettings):
    """Keywords of SB3's ``PPO``."""

    use_sde: bool = False
    """Whether to explore by gSDE (Box actions only)."""
    sde_sample_freq: Annotated[int, Range(-1, 10**9)] = -1
    """Number of steps after which gSDE draws new noise; -1 for once per rollout."""


@dataclass(frozen=True)
class RecurrentPPOSettings(PPOSettings):
    """Keywords of sb3-contrib's ``RecurrentPPO``."""

    n_steps: RolloutSteps = 128
    batch_size: BatchSize = 128


@dataclass(frozen=True)
class MaskablePPOSettings(ClippedSettings):
    """Keywords of sb3-contrib's ``MaskablePPO``."""


@dataclass(frozen=True)
class SequencePPOSettings(ClippedSettings):
    """Keywords of :class:`dhmm_rl.SequencePPO`."""

    learning_rate: ScheduledRate = 2.5e-4
    n_steps: RolloutSteps = 128
    segment_length: RolloutSteps | None = None
    """Steps of a segment, the piece of a rollout that minibatches consist of; divides ``n_steps``, which is the default."""
    batch_size: BatchSize = 256
    n_epochs: Epochs = 5
    desired_kl: NotNegative = 0.0
    """KL divergence of an update to which the learning rate is adapted, in units of ln n for n choices; 0: never."""
    prior_kl: NotNegative = 0.2
    """Weight of the KL divergence from the pretrained policy, in nats, instead of the entropy bonus."""
    prior_kl_decay: Share = 0.9995
    """Factor by which ``prior_kl`` is multiplied at every update."""
    critic_warmup: Annotated[int, Range(0, 10**6)] = 4
    """Number of first rollouts with the pretrained policy, on which only the critic is fitted."""
    critic_warmup_lr: Rate = 1e-3
    """Learning rate of the critic during its warm-up."""
    uniform_kl: NotNegative = 0.0
    """Weight of the KL divergence of the policy from the uniform distribution, in nats."""
    next_token_coef: NotNegative = 0.0
    """Weight of the next-token loss of the observations, in nats per token."""


@dataclass(frozen=True)
class SequenceA2CSettings(AlgorithmSettings):
    """Keywords of :class:`dhmm_rl.SequenceA2C`."""

    learning_rate: ScheduledRate = 7e-4
    n_steps: RolloutSteps = 16
    gae_lambda: Share = 1.0
    normalize_advantage: bool = False
