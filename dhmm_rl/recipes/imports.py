"""
What recipes import: the module in an environment's id, and the classes of wrappers.

A recipe that a user names may import any module, as a script of theirs may. A run's folder may come from anybody, so what its
``run.json`` names is imported only from installed packages, unless the user trusts the folder (``--trust``).
"""

import importlib
import importlib.util
import re
import site
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import gymnasium as gym

from dhmm_rl.errors import InputError, install_command, python_command
from dhmm_rl.validation import did_you_mean

PACKAGES = {"popgym-": "popgym", "MiniGrid-": "minigrid", "BabyAI-": "minigrid", "ALE/": "ale_py"}
"""Packages that register their environments only when they are imported, by how the ids begin."""
EXTRAS = ("popgym", "minigrid")
"""Those that are extras of this project."""
WRITERS = ("Monitor", "RecordVideo", "DataCollector")
"""Wrappers that write files where their keywords say."""


def find_env(env_id: str, names: list[str] | None = None) -> str:
    """
    The id by which Gymnasium can make an environment, after what it needs has been imported and registered.

    :param env_id: ``CartPole-v1``; ``module:Id-v0``, of which the module is imported first; or ``module:Class``, a subclass of
        ``gymnasium.Env``. A package of :data:`PACKAGES` is found without being named.
    :param names: other names to suggest when there is none
    :return: the id, with the module that must be imported first
    :raises InputError: when there is no such environment, or its module cannot be imported
    """
    env_id = with_package(env_id)  # with its module, processes of SubprocVecEnv find it, too
    module, colon, name = env_id.rpartition(":")
    if not colon and env_id in gym.registry:
        return env_id
    if not colon:
        raise InputError(f"unknown environment {env_id!r}{did_you_mean(env_id, [*(names or []), *gym.registry])}")
    if module in PACKAGES.values() and importlib.util.find_spec(module) is None:
        command = (
            install_command(module) if module in EXTRAS else f"{python_command()} -m pip install {module.replace('_', '-')}"
        )
        raise InputError(f"the environment {env_id} is in the package {module}, which is not installed: {command}")
    imported = import_module(module, f"of the environment {env_id}")
    if name not in gym.registry:
        versions = [spec for spec in gym.registry.values() if (spec.namespace, spec.name) == (None, name)]
        if versions:
            return f"{module}:{max(versions, key=lambda spec: spec.version or 0).id}"
        classes = [key for key, kind in vars(imported).items() if isinstance(kind, type) and issubclass(kind, gym.Env)]
        if name not in classes:
            known = [spec.id for spec in gym.registry.values() if _is_in(spec.entry_point, module)]
            known = [f"{module}:{one}" for one in [*known, *classes]]
            hint = "; it registers no environment. Name a subclass of gymnasium.Env, module:Class"
            if known:
                hint = did_you_mean(env_id, known)
            raise InputError(f"the module {module} has no environment {name!r}{hint}")
        gym.register(name, entry_point=env_id)
    return env_id


def with_package(env_id: str) -> str:
    """An environment's id, with the package of :data:`PACKAGES` that registers it before a colon; nothing is imported."""
    package = next((package for prefix, package in PACKAGES.items() if env_id.startswith(prefix)), None)
    return env_id if package is None else f"{package}:{env_id}"


def load_wrapper(name: str) -> type[gym.Wrapper[Any, Any, Any, Any]]:
    """
    The class of a wrapper.

    :param name: ``module:Class``
    :raises InputError: when that is not a subclass of ``gymnasium.Wrapper``
    """
    module, colon, class_name = name.partition(":")
    if not colon:
        raise InputError(f"the wrapper {name!r} is no 'module:class'")
    kind: Any = import_module(module, f"of the wrapper {name}")
    for part in class_name.split("."):
        kind = getattr(kind, part, None)
    if kind is None:
        raise InputError(f"the wrapper {name!r} is no 'module:class': the module {module} has no {class_name}")
    if not (isinstance(kind, type) and issubclass(kind, gym.Wrapper)):
        raise InputError(f"the wrapper {name!r} is not a subclass of gymnasium.Wrapper")
    return kind


def import_module(module: str, what: str) -> Any:
    """
    Import a module that a user names.

    :param what: what it is the module of, for the message
    :raises InputError: when it cannot be imported, with its own error
    """
    if not re.fullmatch(r"\w+(\.\w+)*", module):
        path = Path(module)
        parts = [*path.with_suffix("").parts] if path.suffix == ".py" else []
        dotted = ".".join(part for part in parts if part not in ("/", "__init__"))
        hint = f"; from this folder that is {dotted}" if dotted and not path.is_absolute() else ""
        raise InputError(f"the module {module} {what} must be written as Python imports it, such as package.module{hint}")
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # it is the user's code, and can raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, ImportError | SyntaxError) else f", {place.filename}, line {place.lineno}"
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the module {module} {what} cannot be imported ({type(error).__name__}: {told}{where})") from error


def check_installed(name: str, where: str) -> None:
    """
    Check that what a run's folder names is in an installed package, without importing what is not.

    Installed is what lies in this Python's folders of packages (``site-packages``), and this project. A package that is
    installed as editable lies elsewhere and does not count.

    :param name: ``module:Name``, or a name without a module
    :param where: the file that names it, for the message
    :raises InputError: when the module lies elsewhere
    """
    module, colon, _ = name.rpartition(":")
    if colon and not _is_installed(module):
        raise InputError(
            f"{where} names {name}, which would import {module} from outside the installed packages; "
            "add --trust if you know where the run comes from"
        )


def check_harmless(wrapper: str, where: str) -> None:
    """
    Check that a wrapper which a run's folder names is installed and writes no files.

    :raises InputError: when it is not, or does
    """
    check_installed(wrapper, where)
    if any(base.__name__ in WRITERS for base in load_wrapper(wrapper).__mro__):
        raise InputError(f"{where} names {wrapper}, which writes files; add --trust if you know where the run comes from")


def trust_option(*names: str) -> str:
    """The option that commands on a run's folder need, `` --trust``, when it names modules that are not installed."""
    return "" if all(_is_installed(module) for name in names if (module := name.rpartition(":")[0])) else " --trust"


def _is_installed(module: str) -> bool:
    own = Path(__file__).parents[1]
    roots = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages(), site.getusersitepackages()]
    parts = module.split(".")
    for number in range(1, len(parts) + 1):  # a package before what is in it, because looking inside imports it
        try:
            spec = importlib.util.find_spec(".".join(parts[:number]))
        except (ImportError, ValueError):
            return False
        if spec is None or spec.origin is None:
            return False  # there is none, or it is a folder without __init__.py, which can be spread over several places
        origin = Path(spec.origin).resolve()
        if not (origin.is_relative_to(own) or any(origin.is_relative_to(Path(root).resolve()) for root in roots)):
            return False
    return True


def _is_in(entry_point: Any, module: str) -> bool:
    name = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return name.split(":")[0].split(".")[0] == module.split(".")[0]
