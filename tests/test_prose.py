"""
Plain English: words and phrases that read as translated, British spellings, and parameters that explain nothing.

Reads docstrings, comments and strings of the package, the benchmarks and the examples, the recipes, and the pages of the
documentation. Also checks that the files and objects that pages name exist.
"""

import ast
import io
import pkgutil
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import dhmm_rl
import dhmm_rl.data

ROOT = Path(__file__).parents[1]

# What is searched for, and what to write instead. Whole words; upper and lower case are the same unless a pattern says so.
CALQUES = {
    r"anew": "again, from the start",
    r"beside(?! the point)": "next to, besides, along with",
    r"so (many|often)(?!( \w+){0,4} (that|as)\b)": "the number itself, or 'n' of something",
    r"so much at (the )?most": "at most that much",
    r"at the most": "at most",
    r"(?<!there )(is|are|was|were) (?-i:none)": "'does not exist', 'there is no'",
    r"(?<!there )(is|are|was|were) no(?! (longer|more|less|fewer|better|worse)\b)": "is not a, there is no",
    r"(go|goes|went|going) on with": "continues with",
    r"of those that": "name the things",
    r"what there is": "name the things",
    r"not [^.,;:()|]{1,40} but(?! (not|is|are|it|they|the)\b)": "say what it is; leave out what it is not",
    r"(those|one|ones|all|any|anything|of|in|with|to|for|from|by|at|on|under) whose": "with, that has",
    r"whose (they|it|he|she|is|are)": "which … belongs to",
    r"theirs": "name the things",
    r"mend(s|ed|ing)?": "fix, repair",
    r"(lie|lies|lay|lying) in(?! [\[(])": "is in",
    r"(?<!user )(?<!who )(?<!one )wants": "requires, expects, takes",
    r"as yet": "so far, yet",
    r"lately": "recently",
}

BRITISH = [
    r"\w*(normal|quant|token|optim|initial|general|summar|minim|maxim|organ|recogn|serial|discret|vector|parametr|factor|"
    r"regular|random|synchron|visual|final|real|special|character|categor|standard|util|memor|emphas|local)is(e|ed|es|er|ers|ing|ation|ations)",
    r"(behavi|col|fav|hon|neighb|lab|flav|harb|rum|vig|end?eav)our(s|ed|ing|al|able|ite|ites|hood|less)?",
    r"(cent|met|fib|theat|lit)re(s|d)?",
    r"\w*(anal|paral)ys(e|ed|es|ing)(?<!analyses)",
    r"(un)?(model|label|travel|cancel|signal|channel|total)l(ed|ing|er|ers)",
    r"(defen|licen|offen|preten)ce(s|d)?",
    r"catalogue(s|d)?|grey|artefact(s)?|programme(s)?|whilst|amongst|learnt|spelt|burnt|judgement|ageing",
]

# The words that no parameter's text starts with: such a text makes sense only after the parameter's name.
DANGLING = r"(of|for|from|in|on|at|by|to|with|under|after|before|that|which|what|as|where|when|whose|how|so|the same|it|they)\b"

# Texts that are right although a pattern finds them: the file and the words, with the reason.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def source_files() -> Iterator[str]:
    """Every file that is read, relative to the root of the repository."""
    for pattern in (
        "dhmm_rl/**/*.py",
        "benchmarks/*.py",
        "examples/*.py",
        "agents/*.toml",
        "envs/*.toml",
        "README.md",
        "docs/**/*.md",
    ):
        yield from sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Every string and every block of comments, with the number of its first line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    block, first, last = "", 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if block and line != last + 1:
                yield first, block
                block = ""
            first = first if block else line
            block, last = f"{block} {token.string.lstrip('# ')}", line
    if block:
        yield first, block


def texts(name: str) -> list[tuple[int, str]]:
    """The prose of a file, without names in backticks; every text is one line."""
    source = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".py"):
        found = list(python_texts(source))
    elif name.endswith(".toml"):
        found = list(enumerate(source.splitlines(), 1))
    else:
        # Paragraphs of a page.
        found = [(source.count("\n", 0, match.start()) + 1, match[0]) for match in re.finditer(r"(?:.+\n?)+", source)]
    return [(line, " ".join(re.sub(r"(`+)[^`]+\1", "`…`", text).split())) for line, text in found]


def faults(name: str) -> list[str]:
    """Where a file breaks a rule, one line each."""
    found = []
    words = {**CALQUES, **dict.fromkeys(BRITISH, "American spelling")}
    for line, text in texts(name):
        for pattern, instead in words.items():
            for match in re.finditer(rf"(?i)(?<![\w-])(?:{pattern})(?![\w-])", text):
                if (name, match[0]) not in EXCEPTIONS:
                    around = text[max(0, match.start() - 30) : match.end() + 30]
                    found.append(f"{name}:{line}: '{match[0]}' in '…{around}…'; rather: {instead}")
        for match in re.finditer(rf"(?i):param (\w+): {DANGLING}(?=(.{{0,30}}))", text):
            found.append(f"{name}:{line}: '{match[0]}{match[3]}…' starts in the middle; start with a noun phrase or a verb")
    return found


@pytest.mark.parametrize("name", list(source_files()))
def test_prose_is_plain_english(name: str) -> None:
    found = faults(name)
    assert not found, "\n".join(found)


def test_every_exception_is_for_a_file_that_exists() -> None:
    gone = sorted({name for name, _ in EXCEPTIONS} - set(source_files()))
    assert not gone, f"remove from EXCEPTIONS: {gone}"


@pytest.mark.parametrize(
    "text",
    [
        "The cache is built anew.",
        "Stop after so many steps.",
        "This is no mask.",
        "LunarLander wants the extra.",
        "The normalised colour of a neighbour.",
        ":param seed: of everything random",
        ":param path: which file is read",
    ],
)
def test_the_search_finds_what_it_is_for(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_prose.ROOT", tmp_path)
    for name, content in (("a.md", text), ("a.py", f'"""{text}"""\n'), ("b.py", f"# {text}\n")):
        (tmp_path / name).write_text(content)
        assert faults(name)


@pytest.mark.parametrize(
    "text",
    [
        "There is no file, and it is no longer needed; that is beside the point.",
        "So many steps were made that the file is None.",
        "The value lies in [0, 1].",
        "``anew`` is a name.",
        ":param name: name of the run",
    ],
)
def test_the_search_leaves_good_english_alone(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_prose.ROOT", tmp_path)
    (tmp_path / "a.md").write_text(text)
    assert not faults("a.md")


def names_in_code(page: Path) -> list[str]:
    """The names in backticks in a page, without its code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8")))


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
FOLDERS = ("dhmm_rl", "tests", "examples", "benchmarks", "agents", "envs", "docs")
FILES = [f"/{path.relative_to(ROOT).as_posix()}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_objects_that_pages_name_exist(page: Path) -> None:
    for name in names_in_code(page):
        if re.fullmatch(r"[\w./-]*\w\.(py|toml|ipynb)", name) and not re.search("[A-Z]{2}", name):  # NAME stands for any
            assert any(file.endswith(f"/{name}") for file in FILES), f"{page.name} names {name}, which does not exist"
        elif re.fullmatch(r"dhmm_rl(\.\w+)+", name):
            pkgutil.resolve_name(name)
        elif match := re.fullmatch(r"(\w+)\.(\w+)(\(.*\))?", name):
            owner = getattr(dhmm_rl, match[1], getattr(dhmm_rl.data, match[1], None))
            assert owner is None or hasattr(owner, match[2]), f"{page.name} names {name}, which does not exist"
