"""
Imports the modules that recipes name: those of environments, wrappers and policies.

A recipe that the user names may import any module, like a script of the user. The folder of a run may come from anybody, so
modules that its ``run.json`` names are imported only from installed packages, unless the user gives ``--trust``.
"""

import importlib
import importlib.util
import re
import site
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from dhmm_rl.errors import InputError, install_command, python_command
from dhmm_rl.validation import did_you_mean

if TYPE_CHECKING:
    from stable_baselines3.common.policies import BasePolicy

PACKAGES = {"popgym-": "popgym", "MiniGrid-": "minigrid", "BabyAI-": "minigrid", "ALE/": "ale_py"}
"""Packages that register environments only when they are imported, by the prefix of the ids."""
EXTRAS = ("popgym", "minigrid")
"""Packages that are extras of this project."""
WRITERS = ("Monitor", "RecordVideo", "DataCollector")
"""Wrappers that write files to a path in their keywords."""


def find_env(env_id: str, names: list[str] | None = None) -> str:
    """
    Import and register an environment, and return the id with which Gymnasium makes it.

    :param env_id: ``CartPole-v1``; ``module:Id-v0``, for which the module is imported first; or ``module:Class``, a subclass of
        ``gymnasium.Env``. The packages of :data:`PACKAGES` need not be named.
    :param names: further names to suggest if there is no such environment
    :return: the id, with the module to import first
    :raises InputError: if there is no such environment, or if its module cannot be imported
    """
    env_id = with_package(env_id)  # with the module, the processes of a SubprocVecEnv find it, too
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
    """Prepend the package of :data:`PACKAGES` that registers an environment to its id, without importing it."""
    package = next((package for prefix, package in PACKAGES.items() if env_id.startswith(prefix)), None)
    return env_id if package is None else f"{package}:{env_id}"


def load_wrapper(name: str) -> type[gym.Wrapper[Any, Any, Any, Any]]:
    """
    Import the class of a wrapper.

    :param name: name of the class, as ``module:Class``
    :raises InputError: if it is not a subclass of ``gymnasium.Wrapper``
    """
    wrapper: type[gym.Wrapper[Any, Any, Any, Any]] = _load_class(name, "wrapper", gym.Wrapper, "gymnasium.Wrapper")
    return wrapper


def load_policy(name: str) -> "type[BasePolicy]":
    """
    Import the class of a policy.

    :param name: name of the class, as ``module:Class``
    :raises InputError: if it is not a subclass of SB3's ``BasePolicy``
    """
    from stable_baselines3.common.policies import BasePolicy  # imports torch, which reading recipes does without

    policy: type[BasePolicy] = _load_class(name, "policy", BasePolicy, "stable_baselines3.common.policies.BasePolicy")
    return policy


def _load_class(name: str, what: str, base: type[Any], base_name: str) -> Any:
    module, colon, class_name = name.partition(":")
    if not colon:
        raise InputError(f"the {what} {name!r} is not of the form 'module:class'")
    kind: Any = import_module(module, f"of the {what} {name}")
    for part in class_name.split("."):
        kind = getattr(kind, part, None)
    if kind is None:
        raise InputError(f"the {what} {name!r} cannot be imported: the module {module} has no {class_name}")
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise InputError(f"the {what} {name!r} is not a subclass of {base_name}")
    return kind


def import_module(module: str, what: str) -> Any:
    """
    Import a module that a user names.

    :param module: name of the module
    :param what: purpose of the module, which follows its name in messages, e.g. ``of the wrapper …``
    :raises InputError: if the module cannot be imported; the message contains the reason
    """
    if not re.fullmatch(r"\w+(\.\w+)*", module):
        path = Path(module)
        parts = [*path.with_suffix("").parts] if path.suffix == ".py" else []
        dotted = ".".join(part for part in parts if part not in ("/", "__init__"))
        hint = f"; from this folder that is {dotted}" if dotted and not path.is_absolute() else ""
        raise InputError(f"the module {module} {what} must be written as Python imports it, such as package.module{hint}")
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, ImportError | SyntaxError) else f", {place.filename}, line {place.lineno}"
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the module {module} {what} cannot be imported ({type(error).__name__}: {told}{where})") from error


def check_installed(name: str, where: str) -> None:
    """
    Check that a module which a run's folder names is in an installed package, without importing other modules.

    Installed packages are those in ``site-packages`` and this project. Packages that are installed as editable are in other
    folders and do not count.

    :param name: ``module:Name``, or a name without a module, which passes
    :param where: file that names the module, for the message
    :raises InputError: if the module is not in an installed package
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

    :param wrapper: name of the wrapper, as ``module:Class``
    :param where: file that names the wrapper, for the message
    :raises InputError: if it is not installed or writes files
    """
    check_installed(wrapper, where)
    if any(base.__name__ in WRITERS for base in load_wrapper(wrapper).__mro__):
        raise InputError(f"{where} names {wrapper}, which writes files; add --trust if you know where the run comes from")


def trust_option(*names: str) -> str:
    """Return the option `` --trust``, or an empty string if the modules that a run's folder names are all installed."""
    return "" if all(_is_installed(module) for name in names if (module := name.rpartition(":")[0])) else " --trust"


def _is_installed(module: str) -> bool:
    own = Path(__file__).parents[1]
    roots = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages(), site.getusersitepackages()]
    parts = module.split(".")
    for number in range(1, len(parts) + 1):  # packages first, because finding a module inside a package imports the package
        try:
            spec = importlib.util.find_spec(".".join(parts[:number]))
        except (ImportError, ValueError):
            return False
        if spec is None or spec.origin is None:
            return False  # no such module, or a folder without __init__.py, which can be spread over several places
        origin = Path(spec.origin).resolve()
        if not (origin.is_relative_to(own) or any(origin.is_relative_to(Path(root).resolve()) for root in roots)):
            return False
    return True


def _is_in(entry_point: Any, module: str) -> bool:
    name = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return name.split(":")[0].split(".")[0] == module.split(".")[0]
