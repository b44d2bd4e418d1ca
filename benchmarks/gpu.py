"""``python -m benchmarks.gpu``: speed and memory on a GPU, next to a plain GPT-2 on the same shapes and data."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from benchmarks.nanogpt import PlainGPT
from dhmm_rl import DHMMGPT2, SequencePPO, VecTokenStream
from dhmm_rl.cli import run_command, set_up
from dhmm_rl.data import Batch
from dhmm_rl.envs import GymnasiumVecEnv
from dhmm_rl.pretraining.gradient_step import GradientStep, optimizer_for

Parts = Literal["pretraining", "memory", "ppo"]


@dataclass
class Args:
    """
    Measure pretraining, its memory on long streams, and PPO. Models take turns; figures are medians over the turns.

    Pretraining: tokens per second of gradient steps in bfloat16 on random ids, compiled. A model of GPT-2's small size. PPO:
    environment steps per second, updates included, on the CartPole that NumPy vectorizes.
    """

    parts: tuple[Parts, ...] = ("pretraining", "memory", "ppo")
    """What to measure."""
    layers: int = 12
    """Number of blocks."""
    embed_size: int = 768
    """Width."""
    heads: int = 12
    """Number of heads."""
    length: int = 1024
    """Tokens in a sequence."""
    batch_size: int = 16
    """Sequences in a gradient step."""
    vocab_size: int = 4096
    """Number of ids."""
    window: int = 64
    """Window of the model with limited attention."""
    steps: int = 20
    """Gradient steps in a turn."""
    turns: int = 3
    """Number of measurements of every model."""
    lengths: tuple[int, ...] = (2048, 4096, 8192)
    """Lengths of streams of which the peak memory is measured, with a window of 256."""
    n_envs: tuple[int, ...] = (16, 2048)
    """Numbers of environments."""
    n_steps: int = 128
    """Steps of each environment in a rollout; 5 epochs with 8 minibatches each follow."""
    seconds: float = 5.0
    """Minimum length of a measurement of PPO, in seconds."""
    compile: bool = True
    """Whether to compile pretraining."""
    tiny: bool = False
    """Replace all sizes by tiny ones, to try the command without a GPU."""
    device: str = "cuda"
    """Device to measure."""


def main(args: Args) -> None:
    """Run the command."""
    if args.tiny:
        args = replace(
            args, layers=1, embed_size=16, heads=2, length=32, batch_size=2, vocab_size=32, window=8, steps=2, turns=2,
            lengths=(512, 1024), n_envs=(4,), n_steps=16, seconds=0.1, compile=False,
        )  # fmt: skip
    set_up(args.device, threads=1, seed=0)
    card = torch.cuda.get_device_name() if args.device.startswith("cuda") else "no GPU"
    print(f"{card}, torch {torch.__version__}", flush=True)
    for part in args.parts:
        {"pretraining": measure_pretraining, "memory": measure_memory, "ppo": measure_ppo}[part](args)


# Pretraining


def measure_pretraining(args: Args) -> None:
    """Print tokens per second of gradient steps, and how they compare with the plain GPT-2."""
    torch.manual_seed(0)
    ids = torch.randint(args.vocab_size, (64, args.batch_size, args.length + 1))
    models: dict[str, Callable[[Tensor], Tensor]] = {
        "plain GPT-2": plain_step(args),
        "plain, no biases": plain_step(args, bias=False),
        "K = 0": our_step(args, num_states=0),
        "K = 8": our_step(args),
        f"K = 8, window {args.window}": our_step(args, window=args.window),
    }
    print(f"\npretraining: {args.layers} layers, width {args.embed_size}, batches of {args.batch_size} × {args.length}")
    for name, step in models.items():  # the first steps compile
        began = time.perf_counter()
        for batch in ids[:3]:
            loss = step(batch).item()
        seconds, began = time.perf_counter() - began, time.perf_counter()
        for batch in ids[:10]:
            last = step(batch)
        last.item()
        speed = 10 * args.batch_size * args.length / (time.perf_counter() - began)
        print(f"{name:<20}first steps {seconds:5.1f} s, loss {loss:.3f}, then {speed:,.0f} tokens/s", flush=True)
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.turns):
        for name, step in models.items():
            began = time.perf_counter()
            for i in range(args.steps):
                last = step(ids[i % len(ids)])
            last.item()
            speeds[name].append(args.steps * args.batch_size * args.length / (time.perf_counter() - began))
    reference = float(np.median(speeds["plain GPT-2"]))
    print(f"{'model':<20}{'tokens/s':>12}{'× plain':>9}{'lowest':>12}{'highest':>12}")
    for name, found in speeds.items():
        speed = float(np.median(found))
        print(f"{name:<20}{speed:>12,.0f}{speed / reference:>9.2f}{min(found):>12,.0f}{max(found):>12,.0f}", flush=True)


def our_step(args: Args, **settings: Any) -> Callable[[Tensor], Tensor]:
    """Return a function that takes a gradient step of DHMM-GPT2 on ids (B, T + 1)."""
    torch.manual_seed(0)
    settings = {"window": args.length, "max_len": args.length} | settings
    model = DHMMGPT2(args.vocab_size, embed_size=args.embed_size, layers=args.layers, heads=args.heads, **settings)
    model.to(args.device)
    step = GradientStep(model, optimizer_for(model, 1e-4, 0.1), max_grad_norm=1.0, compiled=args.compile)

    def take(ids: Tensor) -> Tensor:
        shape = ids[:, 1:].shape
        return step(Batch(ids[:, :-1], ids[:, 1:], torch.ones(shape), torch.arange(shape[1]).expand(shape)))

    return take


def plain_step(args: Args, bias: bool = True) -> Callable[[Tensor], Tensor]:
    """Return a function that takes a gradient step of the plain GPT-2 on ids (B, T + 1), as nanoGPT takes it."""
    torch.manual_seed(0)
    model = PlainGPT(args.vocab_size, args.length, args.layers, args.heads, args.embed_size, bias).to(args.device)
    on_gpu = args.device.startswith("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=on_gpu)
    compiled: Any = torch.compile(model) if args.compile else model

    def take(ids: Tensor) -> Tensor:
        inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        if on_gpu:
            inputs, labels = (part.pin_memory().to(args.device, non_blocking=True) for part in (inputs, labels))
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=on_gpu):
            loss: Tensor = compiled(inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return take


# Memory


def measure_memory(args: Args) -> None:
    """Print the peak memory of gradient steps on long streams, two at a time, without compilation."""
    print(f"\nlong streams: K = 8, window 256, {args.layers} layers, width {args.embed_size}, 2 streams, not compiled")
    print(f"{'steps':<10}{'peak memory, MB':>18}{'per step, kB':>14}{'tokens/s':>12}")
    for length in args.lengths:
        step = our_step(replace(args, length=length, compile=False), window=min(256, length // 8))
        ids = torch.randint(args.vocab_size, (2, length + 1))
        step(ids).item()
        began = time.perf_counter()
        if args.device.startswith("cuda"):
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            last = step(ids)
        last.item()
        speed = 3 * 2 * length / (time.perf_counter() - began)
        # Without the weights and the optimizer, which do not grow with the length
        peak = torch.cuda.max_memory_allocated() - held if args.device.startswith("cuda") else 0
        print(f"{length:<10}{peak / 1e6:>18,.0f}{peak / 2 / length / 1e3:>14,.1f}{speed:>12,.0f}", flush=True)


# PPO


def measure_ppo(args: Args) -> None:
    """Print environment steps per second of SequencePPO, updates included."""
    print(f"\nSequencePPO: CartPole-v1 vectorized by NumPy, width 64, window 8, {args.n_steps} steps, 5 × 8 minibatches")
    print(f"{'environments':<14}{'steps/s':>12}{'rollouts':>12}{'updates':>12}")
    for n_envs in args.n_envs:
        torch.manual_seed(0)
        env = VecTokenStream(GymnasiumVecEnv(gym.make_vec("CartPole-v1", n_envs, "vector_entry_point")), history=1)
        size = n_envs * args.n_steps
        agent = SequencePPO(
            "DHMMPolicy",
            env,
            n_steps=args.n_steps,
            batch_size=max(size // 8, args.n_steps),
            n_epochs=5,
            policy_kwargs={"features_extractor_kwargs": {"embed_size": 64, "window": 8}},
            device=args.device,
            seed=0,
        )
        agent.learn(2 * size)  # compiles, records and allocates
        seconds = {"collect_rollouts": 0.0, "train": 0.0}
        for name in seconds:
            setattr(agent, name, clocked(getattr(agent, name), seconds, name))
        steps = 0
        while sum(seconds.values()) < args.seconds:
            agent.learn(size, reset_num_timesteps=False)
            steps += size
        rates = (steps / spent for spent in (sum(seconds.values()), *seconds.values()))
        print(f"{n_envs:<14}" + "".join(f"{rate:>12,.0f}" for rate in rates), flush=True)


def clocked(method: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    """Return a method that adds the seconds it takes to ``seconds[name]``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = method(*args, **kwargs)
        seconds[name] += time.perf_counter() - began
        return result

    return run


if __name__ == "__main__":
    run_command(main, Args, "benchmarks.gpu")
