"""
The layout of the package: the direction of its imports, and the sizes of its files, functions and constructors.

The tests of imports read the source code, so imports inside functions and under ``TYPE_CHECKING`` count too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dhmm_rl"

# From the lowest layer to the highest. Modules of the first layer import each other; in all others a module imports
# its own package and lower layers only. The package's own module, which re-exports names, is above all of them.
BASE = ("_interrupts", "_registration", "errors", "files", "plain", "plotting", "validation")
COMMANDS = ("collect", "pretrain", "ppo", "play", "recipes.__main__", "languages.__main__")
LAYERS = (
    BASE,
    ("tokens",),
    ("model",),
    ("data",),
    ("envs",),
    ("common",),
    ("sequence_ppo", "sequence_a2c"),
    ("recipes",),
    ("runs",),
    ("pretraining",),
    ("languages",),
    ("cli",),  # what the commands share
    COMMANDS,
)

MAX_LINES_PER_FILE = 400
MAX_LINES_PER_FUNCTION = 60  # decorators and docstring included
MAX_CONSTRUCTOR_PARAMETERS = 12
WIDE_CONSTRUCTORS = {"DHMMGPT2", "SequencePPO", "SequenceA2C"}  # users know their keywords

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _read_modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below ``dhmm_rl``; the package's own module is ``""``."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


MODULES = _read_modules()


def imported_modules(module: str) -> Iterator[tuple[str, int]]:
    """The modules of this package that a module imports, each with the number of the importing line."""
    for node in ast.walk(MODULES[module]):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {module}, line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            package, _, inner = name.partition(".")
            if package == "dhmm_rl":
                # `tokens.Tokenizer` is a name in the module `tokens`; `Tokenizer` is a name in the package's own module.
                yield inner if inner in MODULES else inner.rpartition(".")[0], getattr(node, "lineno", 0)


def definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """All functions and classes below a node, each with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, Definition):
            name = f"{prefix}.{node.name}"
            yield name, node
        yield from definitions(node, name)


def unit(module: str) -> str:
    """What the order is about: a package, a module at the root, or a package's command."""
    return module if module in COMMANDS else module.split(".")[0]


def layer(module: str) -> int:
    """The index in ``LAYERS`` of a module."""
    return next(index for index, units in enumerate(LAYERS) if unit(module) in units)


def test_every_module_has_a_layer() -> None:
    without = {unit(module) for module in MODULES if module} - {name for units in LAYERS for name in units}
    assert not without, f"add them to LAYERS: {sorted(without)}"


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_imports_point_from_higher_layers_to_lower_layers(module: str) -> None:
    for imported, line in imported_modules(module):
        where = f"line {line} of {module} imports dhmm_rl.{imported}"
        assert imported, f"line {line} of {module} imports a name of the package's own module: name the module it is from"
        if unit(imported) != unit(module) and not {unit(imported), unit(module)} <= set(BASE):
            assert layer(imported) < layer(module), f"{where}, which is not in a lower layer"


def test_the_modules_of_the_lowest_layer_form_no_circle() -> None:
    graph = {module: {imported for imported, _ in imported_modules(module)} for module in BASE if module in MODULES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(f"imports form a circle: {circle.args[1]}")


def test_no_file_is_too_long() -> None:
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    too_long = {
        name: f"{lines} lines, at most {MAX_LINES_PER_FILE}" for name, lines in lengths.items() if lines > MAX_LINES_PER_FILE
    }
    assert not too_long


def test_no_function_is_too_long() -> None:
    too_long = {}
    for module, tree in MODULES.items():
        for name, node in definitions(tree, module):
            if not isinstance(node, ast.ClassDef):
                first = min(line.lineno for line in [node, *node.decorator_list])
                lines = (node.end_lineno or first) - first + 1
                if lines > MAX_LINES_PER_FUNCTION:
                    too_long[name] = f"{lines} lines, at most {MAX_LINES_PER_FUNCTION}"
    assert not too_long


def test_no_constructor_has_too_many_parameters() -> None:
    too_wide = {}
    for module, tree in MODULES.items():
        for name, node in definitions(tree, module):
            if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__new__"):
                parameters = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1  # without self
                if parameters > MAX_CONSTRUCTOR_PARAMETERS and name.split(".")[-2] not in WIDE_CONSTRUCTORS:
                    too_wide[name] = f"{parameters} parameters, at most {MAX_CONSTRUCTOR_PARAMETERS}"
    assert not too_wide


@pytest.mark.parametrize(
    "program", ["import dhmm_rl.tokens", "import runpy; runpy.run_module('dhmm_rl.recipes', run_name='__main__')"]
)
def test_no_torch_is_imported_without_need(program: str) -> None:
    heavy = ("torch", "stable_baselines3", "matplotlib")
    code = f"import sys; sys.argv = ['dhmm_rl']\n{program}\nprint(*set({heavy}) & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""
