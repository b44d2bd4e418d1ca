"""Where rollouts come from: collected at random or by a teacher, or read; several at once, each with its weight."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from dhmm_rl.data import Rollouts, collect, read_minari
from dhmm_rl.data.collect import Policy
from dhmm_rl.data.rollouts import Notice
from dhmm_rl.errors import InputError
from dhmm_rl.pretraining.teachers import load_teacher
from dhmm_rl.recipes import EnvRecipe
from dhmm_rl.recipes.environments import make_envs
from dhmm_rl.tokens import Tokenizer

RANDOM = "random"
ORACLE = "oracle"
TEACHER = "teacher:"
MINARI = "minari:"


@dataclass(frozen=True)
class Source:
    """
    One source of rollouts, as it is written on the command line: ``PLACE@option=value@option=value``.

    :param place: ``random``; ``oracle``, the environment's own method of that name; ``teacher:PATH``, a run's folder or an SB3
        model's zip; ``minari:ID``; or the folder of rollouts saved before
    :param weight: how often each of its steps is shown, beside those of other sources
    :param imitate: whether its actions are worth imitating; what the source itself says when ``None``
    :param episodes: how many to collect
    :param skip_bad: leave damaged episodes of a folder out, instead of refusing it
    """

    place: str
    weight: float = 1.0
    imitate: bool | None = None
    episodes: int | None = None
    skip_bad: bool = False

    @classmethod
    def parse(cls, text: str) -> "Source":
        """
        Read a source as it is written.

        :raises InputError: for an option that is not known, or a value out of its range
        """
        place, *options = re.split(r"@(?=\w+=)", text)
        given: dict[str, Any] = {}
        for name, value in (option.split("=", 1) for option in options):
            if name not in _OPTIONS:
                raise InputError(f"the source {text} has an option {name!r}; known are {', '.join(_OPTIONS)}")
            read, expected = _OPTIONS[name]
            try:
                given[name] = read(value)
            except (ValueError, KeyError) as error:
                raise InputError(f"the source {text} has {name}={value}; it must be {expected}") from error
        source = cls(place, **given)
        if source.episodes is not None and not source.collects:
            raise InputError(f"the source {text} is read, not collected: episodes is for random, oracle and teacher:PATH")
        if source.skip_bad and (source.collects or place.startswith(MINARI)):
            raise InputError(f"skip_bad is for folders of rollouts, and {text} is none")
        return source

    @property
    def collects(self) -> bool:
        """Whether its rollouts are yet to be made."""
        return self.place in (RANDOM, ORACLE) or self.place.startswith(TEACHER)


class Part(NamedTuple):
    """A source's rollouts in the mixture."""

    rollouts: Rollouts
    weight: float


def read_source(
    source: Source,
    env: EnvRecipe,
    *,
    n_envs: int,
    episodes: int,
    max_steps: int | None = None,
    seed: int = 0,
    progress: bool = False,
    notice: Notice = print,
    trust: bool = False,
) -> Rollouts:
    """
    Collect or read the rollouts of one source.

    :param n_envs: side by side, to collect in
    :param episodes: how many to collect, unless the source says so
    :param max_steps: environment steps that random rollouts take at the most, unless the source says how many episodes
    :param progress: show a bar
    :param notice: takes lines about episodes left out, and how a teacher sees
    :param trust: read a teacher's zip, which can run code
    :raises InputError: when the source cannot be used, or is of another environment
    """
    venv = make_envs(env, n_envs if source.collects else 1, seed)
    try:
        if not source.collects:
            if source.place.startswith(MINARI):
                rollouts = read_minari(source.place.removeprefix(MINARI), imitate=source.imitate, notice=notice)
            else:
                rollouts = Rollouts.load(source.place, skip_bad=source.skip_bad, notice=notice)
            try:
                rollouts = rollouts.with_observation_space(venv.observation_space)
                Tokenizer(rollouts.observation_space, rollouts.action_space).check_spaces(
                    venv.observation_space, venv.action_space
                )
            except InputError as error:
                raise InputError(f"{source.place} is no data of {env.id}: {error}") from error
            unknown = int((~np.isfinite(rollouts.returns)).sum())
            if unknown:
                notice(f"note: {unknown} of {len(rollouts)} episodes of {source.place} have no return: a reward is not finite")
            return rollouts if source.imitate is None else rollouts.with_imitate(source.imitate)
        policy: Policy | None = None
        if source.place == ORACLE:
            policy = _oracle(venv, env.id)
        elif source.place.startswith(TEACHER):
            policy = load_teacher(source.place.removeprefix(TEACHER), venv, env.id, notice, trust=trust)
        taught = policy is not None
        return collect(
            venv,
            policy,
            episodes=episodes if source.episodes is None else source.episodes,
            imitate=taught if source.imitate is None else source.imitate,
            max_steps=None if taught or source.episodes is not None else max_steps,
            env_id=env.id,
            seed=seed,
            deterministic=True,
            progress=progress,
        )
    finally:
        venv.close()


def _oracle(venv: VecEnv, env_id: str) -> Policy:
    """
    What environments that know how they are solved would do, by their method ``oracle``.

    :raises InputError: when they have none
    """
    if not venv.has_attr("oracle"):
        raise InputError(f"{env_id} has no oracle; a method of that name would return the action to take")
    return lambda observations: np.stack(venv.env_method("oracle"))


def gather(
    sources: Sequence[Source],
    env: EnvRecipe,
    folder: Path,
    *,
    n_envs: int,
    episodes: int,
    max_steps: int | None = None,
    top: float | None = None,
    seed: int = 0,
    progress: bool = False,
    trust: bool = False,
) -> list[Part]:
    """
    The rollouts of all sources. What is collected is kept in ``folder``, and read from there the next time.

    :param max_steps: of random rollouts, see :func:`read_source`
    :param trust: read teachers' zips, which can run code
    :param top: of the episodes whose actions are worth imitating, imitate only this share, those of the highest returns
    :raises InputError: when a source cannot be used
    """
    parts = []
    for number, source in enumerate(sources):
        kept = folder / ("rollouts" if len(sources) == 1 else f"rollouts-{number + 1}")
        wanted = replace(source, place=str(kept)) if source.collects and kept.exists() else source
        rollouts = read_source(
            wanted, env, n_envs=n_envs, episodes=episodes, max_steps=max_steps, seed=seed, progress=progress, trust=trust
        )
        if wanted.collects:
            rollouts.save(kept)
        parts.append(Part(rollouts, source.weight))
        if progress and len(sources) > 1:
            print(f"{source.place}, weight {source.weight:g}: {rollouts}")
    return parts if top is None else imitate_top(parts, top)


def check_top(share: float | None) -> None:
    """:raises InputError: for a share out of range"""
    if share is not None and not 0 < share <= 1:
        raise InputError(f"top is {share:g}; it is a share of the episodes, above 0 and at most 1")


def imitate_top(parts: Sequence[Part], share: float, notice: Notice = print) -> list[Part]:
    """
    Imitate only the best episodes by return; the others still teach observations.

    An episode whose return is not known, for a reward that is NaN, is none of them.

    :param share: of the episodes whose actions are worth imitating, over all sources; rounded, and at least one
    :param notice: takes a line about episodes without a return
    :raises InputError: for a share out of range, or when no episode is left to choose from
    """
    check_top(share)
    returns = np.concatenate([part.rollouts.returns for part in parts])
    worth = np.concatenate([part.rollouts.imitate for part in parts])
    if not worth.any():
        raise InputError("top chooses among episodes whose actions are worth imitating, and there are none; see @imitate=yes")
    known = np.isfinite(returns)
    unknown = int((worth & ~known).sum())
    if unknown == worth.sum():
        raise InputError("top chooses by return, and no episode has one: every one holds a reward that is not finite")
    if unknown:
        notice(
            f"note: {unknown} of {worth.sum()} episodes have no return, for rewards that are not finite; top leaves them out"
        )
    ranked = np.argsort(np.where(worth & known, -returns, np.inf), kind="stable")
    best = np.zeros(len(worth), dtype=bool)
    best[ranked[: min(max(1, round(share * worth.sum())), int((worth & known).sum()))]] = True
    ends = np.cumsum([len(part.rollouts) for part in parts])
    flags = np.split(best, ends[:-1])
    return [part._replace(rollouts=part.rollouts.with_imitate(mine)) for part, mine in zip(parts, flags, strict=True)]


def _positive(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        value = read(text)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError
        return value

    return checked


_YES_OR_NO = ({"yes": True, "no": False}.__getitem__, "yes or no")
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "weight": (_positive(float), "a positive number"),
    "imitate": _YES_OR_NO,
    "episodes": (_positive(int), "a positive number"),
    "skip_bad": _YES_OR_NO,
}
