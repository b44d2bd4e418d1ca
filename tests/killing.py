"""
Processes that are killed: ``python -m tests.killing quick|operations|moments FOLDER``, and for moments ``[KILLS [SEED]]``.

Every run is a fork of this process, so that the imports, which take long, happen once. Where the system permits it, the fork
is the first process of its own PID namespace, as in a container.
"""

import ctypes
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks import run as benchmark
from dhmm_rl import collect, ppo, pretrain
from dhmm_rl.data import Rollouts
from dhmm_rl.errors import InputError
from dhmm_rl.files import atomic_write, remove_leftovers
from dhmm_rl.languages import __main__ as languages
from dhmm_rl.runs.logs import read_log
from dhmm_rl.runs.run import create_folder, writing
from tests.failing import fail_at

Work = Callable[[Path], object]

KILLED = 9
CHANGES = ("mkdir", "rename", "replace", "rmdir", "unlink", "fsync")
"""Functions of ``os`` that change what a folder holds, and the one after which a file's content is on the disk."""
CLONE_NEWPID = 0x20000000
ENV = 'description = "often evaluated"\nid = "CartPole-v1"\neval_every = 256\neval_episodes = 2\n'
AGENT = """
description = "small and quick"
policy = "DHMMPolicy"
normalize_reward = true
n_envs = 2
[model]
embed_size = 8
heads = 1
num_states = 2
[pretrain]
episodes = 5
steps = 8
length = 4
eval_every = 2
[ppo]
n_steps = 64
batch_size = 64
n_epochs = 1
"""
MLP = """
description = "small and quick"
policy = "MlpPolicy"
algorithm = "PPO"
n_envs = 2
[ppo]
n_steps = 64
"""


def start_ppo(root: Path) -> None:
    """Pretrain and train an agent, or resume an interrupted run."""
    env, agent = str(root.parent / "toy.toml"), str(root.parent / "small.toml")
    args = ppo.Args(env, agent, steps=640, pretrained="new", runs=root, quiet=True)
    args.eval_share, args.final_episodes = math.inf, 4
    for folder in unfinished(root, "result.json"):
        ppo.main(ppo.Args(resume=folder, quiet=True) if folder else args)


def start_pretrain(root: Path) -> None:
    """Pretrain a model, or resume an interrupted run."""
    args = pretrain.Args(str(root.parent / "toy.toml"), agent=str(root.parent / "small.toml"), runs=root, quiet=True)
    for folder in unfinished(root, "pretrained.pt"):
        pretrain.main(pretrain.Args(resume=folder, quiet=True) if folder else args)


def start_languages(root: Path) -> None:
    """Train a model of a language, or resume an interrupted run."""
    model, sizes = ("embed_size=8", "heads=1", "num_states=2"), ("sizes=2,4",)
    args = languages.Args("parity", sizes, model, steps=12, eval_every=3, num_eval_examples=5, runs=root, quiet=True)
    for folder in unfinished(root, "result.json"):
        languages.main(languages.Args(resume=folder, quiet=True) if folder else args)


def start_collect(root: Path) -> None:
    """Collect rollouts. An interrupted collection starts from the beginning."""
    complete = (root / "rollouts").exists()
    try:
        collect.main(collect.Args(str(root / "rollouts"), episodes=40, quiet=True))
    except InputError:
        if not complete:
            raise


def start_benchmark(root: Path) -> None:
    """Run a benchmark of two agents, or resume an interrupted run."""
    envs, agents = (str(root.parent / "toy.toml"),), (str(root.parent / "mlp.toml"),)
    benchmark.main(benchmark.Args(envs, agents, seeds=1, steps=640, jobs=1, out=root))


STARTS: dict[str, Work] = {
    "ppo": start_ppo,
    "pretrain": start_pretrain,
    "languages": start_languages,
    "collect": start_collect,
    "benchmark": start_benchmark,
}


def unfinished(root: Path, last: str) -> Iterator[Path | None]:
    """Yield the folder of a run that is not complete, ``None`` if there is no run yet."""
    folders = [path.parent for path in root.glob("*/*/*/run.json")]
    assert len(folders) <= 1, "a second run was begun"
    if not folders:
        yield None
    elif not (folders[0] / last).exists():
        yield folders[0]
    else:  # killed after its last file was moved into place; no later write removes the empty temporary folder
        remove_leftovers(folders[0])


class Child:
    """
    A process that does some work.

    :param work: work to do
    :param root: folder to do it in
    :param before: function that the process calls first
    :param first: whether it is the first process of a namespace, or at least has the process id 1 in Python
    """

    def __init__(self, work: Work, root: Path, before: Callable[[], object] = lambda: None, first: bool = True) -> None:
        readable, writable = os.pipe()
        self.log = root.parent / f"{root.name}.log"
        self.outer = os.fork()
        if self.outer == 0:
            if first and ctypes.CDLL(None).unshare(CLONE_NEWPID) != 0:
                os.getpid = lambda: 1
            inner = os.fork()
            if inner == 0:
                os.close(writable)
                self._work(work, root, before)
            os.write(writable, str(inner).encode())
            os.close(writable)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) % 256)
        os.close(writable)
        with os.fdopen(readable) as pipe:
            self.pid = int(pipe.read(20))

    def _work(self, work: Work, root: Path, before: Callable[[], object]) -> None:
        status = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            before()
            work(root)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)

    def wait(self) -> int:
        """Return the exit status; ``KILLED`` if the process killed itself."""
        return os.waitstatus_to_exitcode(os.waitpid(self.outer, 0)[1])

    def kill(self) -> bool:
        """Kill the process, and return whether it was still running."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return self.wait() == 256 - signal.SIGKILL


def die_before(operation: int) -> None:
    """Let this process die before its n-th file operation from now on; 0 is the next one."""
    die = fail_at(operation, lambda: os._exit(KILLED))
    for name in CHANGES:
        setattr(os, name, die(getattr(os, name)))


def killed(work: Work, root: Path, operation: int) -> bool:
    """Do some work that is killed before a file operation. Return whether it was killed or ended before."""
    status = Child(work, root, lambda: die_before(operation)).wait()
    assert status in (0, KILLED), (root.parent / f"{root.name}.log").read_text()
    return status == KILLED


def finish(work: Work, root: Path) -> None:
    """Do some work to its end."""
    child = Child(work, root)
    assert child.wait() == 0, f"it was not resumed at the first try:\n{child.log.read_text()}"


def state(root: Path) -> dict[str, Any]:
    """
    Return what must not depend on kills: the names of files and the logged steps.

    The files of TensorBoard and the parts of CSV files are left out, because their names differ after a resume.
    """
    found: dict[str, Any] = {}
    names = {str(path.relative_to(root)) for path in root.rglob("*")}
    found["files"] = {name for name in names if "tfevents" not in name and "progress_" not in name}
    if (root / "rollouts").exists():
        found["episodes"] = len(Rollouts.load(root / "rollouts"))
    for folder in (path.parent for path in root.rglob("run.json")):
        for name, column in (("ppo", "time/total_timesteps"), ("pretrain", "pretrain/steps"), ("languages", "pretrain/steps")):
            rows = read_log(folder, name)
            found[f"{name}.csv"] = [row[column] for row in rows if not row.get("eval/mean_reward")]
            evaluated = [int(row[column]) for row in rows if row.get("eval/mean_reward")]  # if there is time for it
            assert evaluated == sorted(set(evaluated)), f"evaluations were logged twice: {evaluated}"
        for part in (folder, folder / "pretrain"):
            if list(part.glob("*tfevents*")):
                events = EventAccumulator(str(part), size_guidance={"scalars": 0}).Reload()
                for tag in events.Tags()["scalars"]:
                    steps = [event.step for event in events.Scalars(tag)]
                    assert steps == sorted(set(steps)), f"TensorBoard shows steps of {tag} twice: {steps}"
                    if tag == "pretrain/held_out_loss":
                        found[f"{part.name}/{tag}"] = steps
    return found


def write(folder: Path, content: str) -> None:
    """Replace a file and a folder."""
    with atomic_write(folder / "file") as path:
        path.write_text(content)
    with atomic_write(folder / "folder") as path:
        path.mkdir()
        (path / "part").write_text(content)


def writes(folder: Path) -> None:
    """Kill a write before each of its file operations. It must leave the old content or the new, and removable leftovers."""
    root = folder / "writes"
    write(root, "old")
    seen = set()
    operation = 0
    while killed(lambda root: write(root, "new"), root, operation):
        parts = [root / "file", root / "folder/part"]
        seen.add(tuple(path.read_text() if path.exists() else "" for path in parts))
        write(root, "old")  # the next process has the same number, and works at the first try
        remove_leftovers(root)
        assert {path.name for path in root.iterdir()} == {"file", "folder"}, f"leftovers after operation {operation}"
        operation += 1
    # Operating systems cannot exchange two folders in one step: between two renames there is none.
    assert seen == {("old", "old"), ("new", "old"), ("new", "new"), ("new", "")}, seen


def prepare(folder: Path) -> None:
    """Write the recipes of the runs."""
    for name, text in (("toy", ENV), ("small", AGENT), ("mlp", MLP)):
        (folder / f"{name}.toml").write_text(text)


def begin(root: Path) -> None:
    """Create the folder of a run and begin to write in it, or write in the one that exists."""
    folder = next((path.parent for path in root.glob("*/run.json")), None)
    with writing(folder or create_folder(root, {}), "ppo"):
        pass


def beginnings(folder: Path) -> None:
    """Kill a run before each file operation of its beginning. Resumed, it must leave what it leaves without a kill."""
    finish(begin, folder / "begun")
    operation = 0
    while killed(begin, root := folder / f"begun-{operation}", operation):
        finish(begin, root)
        assert state(root) == state(folder / "begun"), f"killed before operation {operation}"
        operation += 1


def quick(folder: Path) -> None:
    """Kill writes and beginnings of runs before each operation, and the quick commands before a few of their operations."""
    writes(folder)
    beginnings(folder)
    operations(folder, 45, ("languages", "collect"))


def operations(folder: Path, every: int = 3, names: Sequence[str] = ("ppo", "pretrain", "languages", "collect")) -> None:
    """Kill commands before every n-th of their file operations. Resumed, they must end as if they had not been killed."""
    prepare(folder)
    for name in names:
        work = STARTS[name]
        finish(work, folder / name)
        expected = state(folder / name)
        operation = every // 2
        while killed(work, root := folder / f"{name}-{operation}", operation):
            finish(work, root)
            found = state(root)
            assert found == expected, (
                f"{name}, killed before operation {operation}, is not as without a kill: {found}, not {expected}"
            )
            operation += every
        print(f"{name}: killed before {operation // every} of about {operation} file operations, resumed each time")


def moments(folder: Path, kills: int = 60, seed: int = 0) -> None:
    """Kill the commands and a benchmark at random moments."""
    prepare(folder)
    rng = random.Random(seed)
    seconds, expected = {}, {}
    for name, work in STARTS.items():
        began = time.monotonic()
        finish(work, folder / name)
        seconds[name], expected[name] = time.monotonic() - began, state(folder / name)
        print(f"{name} takes {seconds[name]:.1f} s", flush=True)
    for number in range(kills):
        name = list(STARTS)[number % len(STARTS)]
        work, root = STARTS[name], folder / f"{name}-{number}"
        first = name != "benchmark" or number % 2 == 0  # a benchmark that is killed alone has children to end
        moment = rng.uniform(0, seconds[name])
        while True:
            child = Child(work, root, first=first)
            time.sleep(moment)
            if child.kill():
                break
            root, moment = folder / f"{root.name}-again", rng.uniform(0, moment)
        finish(work, root)
        found = state(root)
        assert found == expected[name], f"{root} is not as without a kill after {moment:.2f} s: {found}, not {expected[name]}"
        print(f"{number + 1} of {kills}: {name}, killed after {moment:.2f} s, was resumed at the first try", flush=True)


if __name__ == "__main__":
    cases: dict[str, Callable[..., None]] = {"quick": quick, "operations": operations, "moments": moments}
    cases[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))
