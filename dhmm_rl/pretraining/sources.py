"""Sources of rollouts: collected with a random policy or a teacher, or loaded; several can be mixed, each with a weight."""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.data import Rollouts, collect, read_minari
from dhmm_rl.data.collect import Policy
from dhmm_rl.data.episodes import Notice
from dhmm_rl.errors import InputError
from dhmm_rl.pretraining.teachers import load_teacher
from dhmm_rl.recipes.environments import EnvFactory
from dhmm_rl.tokens import Tokenizer

RANDOM = "random"
ORACLE = "oracle"
TEACHER = "teacher:"
MINARI = "minari:"


@dataclass(frozen=True)
class Source:
    """
    One source of rollouts. On the command line it is written ``PLACE@option=value@option=value``.

    :param place: ``random``; ``oracle``, which calls the environment's own method of that name; ``teacher:PATH``, the folder of
        a run or the zip of an SB3 model; ``minari:ID``; or a folder that ``Rollouts.save`` wrote
    :param weight: weight in the mixture; each step is shown this often, relative to the steps of a source of weight 1
    :param imitate_actions: whether the model learns to predict the actions; decided by the source itself when ``None``
    :param episodes: number of episodes to collect
    :param skip_bad: leave out damaged episodes of a folder instead of refusing the folder
    """

    place: str
    weight: float = 1.0
    imitate_actions: bool | None = None
    episodes: int | None = None
    skip_bad: bool = False

    @classmethod
    def parse(cls, text: str) -> "Source":
        """
        Parse a source from its command-line form.

        :raises InputError: for an unknown option or a value that is out of range
        """
        place, *options = re.split(r"@(?=\w+=)", text)
        given: dict[str, Any] = {}
        for name, value in (option.split("=", 1) for option in options):
            if name not in _OPTIONS:
                raise InputError(f"the source {text} has an option {name!r}; known are {', '.join(_OPTIONS)}")
            option = _OPTIONS[name]
            try:
                given[option.field] = option.parse(value)
            except (ValueError, KeyError) as error:
                raise InputError(f"the source {text} has {name}={value}; it must be {option.expected}") from error
        source = cls(place, **given)
        if source.episodes is not None and not source.collects:
            raise InputError(f"the source {text} is read, not collected: episodes is for random, oracle and teacher:PATH")
        if source.skip_bad and (source.collects or place.startswith(MINARI)):
            raise InputError(f"skip_bad is for folders of rollouts, and {text} is not one")
        return source

    @property
    def collects(self) -> bool:
        """Whether the rollouts are collected in the environment, not loaded."""
        return self.place in (RANDOM, ORACLE) or self.place.startswith(TEACHER)


@dataclass(frozen=True)
class CollectSettings:
    """
    How the rollouts of sources are collected.

    :param n_envs: number of environments that are stepped together
    :param episodes: number of episodes from each source that does not set its own
    :param max_steps: largest number of environment steps of random rollouts; ignored for a source that sets its own number of
        episodes; no limit when ``None``
    :param progress: show a progress bar
    :param trust: also read zips of teachers, which can run code
    """

    n_envs: int
    episodes: int
    max_steps: int | None = None
    progress: bool = False
    trust: bool = False


class WeightedRollouts(NamedTuple):
    """
    The rollouts of one source and their weight in the mixture.

    :param rollouts: all episodes of the source
    :param weight: weight in the mixture
    """

    rollouts: Rollouts
    weight: float


def load_source(source: Source, factory: EnvFactory, settings: CollectSettings, notice: Notice = print) -> Rollouts:
    """
    Collect or load the rollouts of one source.

    :param source: source of the rollouts
    :param factory: factory of the environments
    :param settings: settings for collecting rollouts
    :param notice: called with lines about episodes that are left out and about how a teacher observes
    :raises InputError: when the source cannot be used, or belongs to another environment
    """
    if not source.collects:
        return _load_saved(source, factory, notice)
    if source.place == RANDOM:
        with factory.borrow(settings.n_envs) as venv:
            return _collect_source(source, factory, venv, settings, notice)
    # A teacher's success can change an environment that becomes harder by itself, so the training environments are left alone.
    with closing(factory.make(settings.n_envs)) as venv:
        return _collect_source(source, factory, venv, settings, notice)


def _load_saved(source: Source, factory: EnvFactory, notice: Notice) -> Rollouts:
    """Load a Minari dataset or a folder, and check that its spaces are those of the environment."""
    if source.place.startswith(MINARI):
        rollouts = read_minari(source.place.removeprefix(MINARI), imitate=source.imitate_actions, notice=notice)
    else:
        rollouts = Rollouts.load(source.place, skip_bad=source.skip_bad, notice=notice)
    try:
        rollouts = rollouts.with_observation_space(factory.observation_space)
        tokenizer = Tokenizer(rollouts.observation_space, rollouts.action_space)
        tokenizer.check_spaces(factory.observation_space, factory.action_space)
    except InputError as error:
        raise InputError(f"{source.place} is not data of {factory.recipe.id}: {error}") from error
    unknown = int((~np.isfinite(rollouts.returns)).sum())
    if unknown:
        notice(f"note: {unknown} of {len(rollouts)} episodes of {source.place} have no return: a reward is not finite")
    return rollouts if source.imitate_actions is None else rollouts.with_imitate(source.imitate_actions)


def _collect_source(source: Source, factory: EnvFactory, venv: VecEnv, settings: CollectSettings, notice: Notice) -> Rollouts:
    """Let a random policy, the environment's oracle or a teacher act."""
    policy: Policy | None = None
    if source.place == ORACLE:
        policy = _oracle(venv, factory.recipe.id)
    elif source.place.startswith(TEACHER):
        policy = load_teacher(source.place.removeprefix(TEACHER), venv, factory.recipe.id, notice, trust=settings.trust)
    is_random = policy is None
    return collect(
        venv,
        policy,
        episodes=settings.episodes if source.episodes is None else source.episodes,
        imitate=not is_random if source.imitate_actions is None else source.imitate_actions,
        max_steps=settings.max_steps if is_random and source.episodes is None else None,
        env_id=factory.recipe.id,
        seed=factory.seed,
        deterministic=True,
        progress=settings.progress,
    )


def _oracle(venv: VecEnv, env_id: str) -> Policy:
    """
    Return the policy of environments that know their own solution: it calls their method ``oracle``.

    :raises InputError: when the environments have no such method
    """
    if not venv.has_attr("oracle"):
        raise InputError(f"{env_id} has no oracle; a method of that name would return the action to take")
    return lambda observations: np.stack(venv.env_method("oracle"))


def load_sources(
    sources: Sequence[Source],
    factory: EnvFactory,
    folder: Path,
    settings: CollectSettings,
    top_fraction: float | None = None,
) -> list[WeightedRollouts]:
    """
    Collect or load the rollouts of all sources.

    Collected rollouts are saved in ``folder``. The next call loads them from there.

    :param sources: sources of the rollouts
    :param factory: factory of the environments
    :param folder: folder of the run
    :param settings: settings for collecting rollouts
    :param top_fraction: see :func:`imitate_top_fraction`; every episode keeps its own setting when ``None``
    :raises InputError: when a source cannot be used
    """
    mixture = []
    for number, source in enumerate(sources, start=1):
        saved = folder / ("rollouts" if len(sources) == 1 else f"rollouts-{number}")
        is_saved = source.collects and saved.exists()
        rollouts = load_source(replace(source, place=str(saved)) if is_saved else source, factory, settings)
        if source.collects and not is_saved:
            rollouts.save(saved)
        mixture.append(WeightedRollouts(rollouts, source.weight))
        if settings.progress and len(sources) > 1:
            print(f"{source.place}, weight {source.weight:g}: {rollouts}")
    return mixture if top_fraction is None else imitate_top_fraction(mixture, top_fraction)


def check_top_fraction(fraction: float | None) -> None:
    """:raises InputError: for a fraction that is out of range"""
    if fraction is not None and not 0 < fraction <= 1:
        raise InputError(f"top is {fraction:g}; it is a share of the episodes, above 0 and at most 1")


def imitate_top_fraction(
    mixture: Sequence[WeightedRollouts], fraction: float, notice: Notice = print
) -> list[WeightedRollouts]:
    """
    Imitate only the episodes with the highest returns. All other episodes still teach the model to predict observations.

    An episode without a finite return is never imitated.

    :param mixture: rollouts of all sources; the best episodes are chosen among all of them
    :param fraction: fraction of the imitated episodes that stay imitated, rounded to at least one episode
    :param notice: called with a line about episodes without a return
    :raises InputError: for a fraction that is out of range, or when there is no episode to choose from
    """
    check_top_fraction(fraction)
    returns = np.concatenate([part.rollouts.returns for part in mixture])
    imitated = np.concatenate([part.rollouts.imitate for part in mixture])
    if not imitated.any():
        raise InputError("top chooses among episodes whose actions are imitated, and there are none; see @imitate=yes")
    candidates = imitated & np.isfinite(returns)
    unknown = int(imitated.sum() - candidates.sum())
    if not candidates.any():
        raise InputError("top chooses by return, and no episode has one: every one holds a reward that is not finite")
    if unknown:
        notice(
            f"note: {unknown} of {imitated.sum()} episodes have no return because rewards are not finite; top leaves them out"
        )
    count = min(max(1, round(fraction * imitated.sum())), int(candidates.sum()))
    ranked = np.argsort(np.where(candidates, -returns, np.inf), kind="stable")
    chosen = np.zeros(len(imitated), dtype=bool)
    chosen[ranked[:count]] = True
    first_of_next = np.cumsum([len(part.rollouts) for part in mixture])[:-1]
    chosen_by_source = np.split(chosen, first_of_next)
    return [
        part._replace(rollouts=part.rollouts.with_imitate(flags)) for part, flags in zip(mixture, chosen_by_source, strict=True)
    ]


class _Option(NamedTuple):
    """An option of a source: the field of :class:`Source` it sets, how its text is parsed, and the values it may have."""

    field: str
    parse: Callable[[str], Any]
    expected: str


def _positive(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse_positive(text: str) -> Any:
        value = parse(text)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError
        return value

    return parse_positive


_parse_yes_or_no = {"yes": True, "no": False}.__getitem__
_OPTIONS = {
    "weight": _Option("weight", _positive(float), "a positive number"),
    "imitate": _Option("imitate_actions", _parse_yes_or_no, "yes or no"),
    "episodes": _Option("episodes", _positive(int), "a positive number"),
    "skip_bad": _Option("skip_bad", _parse_yes_or_no, "yes or no"),
}
