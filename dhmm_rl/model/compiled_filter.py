"""
The filter's loop compiled by Numba, for CPUs: what :class:`filter_kernels.FilterLoop` computes, without its thousands of calls.

The first filter that uses it imports Numba and compiles the loops, or reads them from Numba's cache on disk.

Shapes: B sequences, T steps, N chains, K states of a chain, M transition matrices. Sequences are the first dimension.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from dhmm_rl.model.filter_kernels import TINY, UNLIKELY

TYPES = {torch.float32: "float32", torch.float64: "float64"}
"""Types of numbers that the loops are compiled for."""
STATES_LIMIT = 64
"""With more states, matrix products of all sequences at once are faster than the compiled loop."""

Array = NDArray[Any]


class Kernels(NamedTuple):
    """The compiled loops for one type of numbers."""

    forward: Callable[..., None]
    backward: Callable[..., None]


@cache
def can_compile() -> bool:
    """Return whether Numba is installed, works with the installed NumPy, and is not switched off (``NUMBA_DISABLE_JIT=1``)."""
    try:
        import numba
    except (ImportError, OSError):  # the latter if LLVM's library cannot be loaded
        return False
    return not numba.config.DISABLE_JIT


def compilation_pays(inputs: tuple[Tensor, ...]) -> bool:
    """
    Return whether the compiled loop can filter with these inputs, and is faster than :class:`filter_kernels.FilterLoop`.

    :param inputs: the first five inputs of :class:`CompiledFilter`; the third is the likelihood, (B, T, N, K)
    """
    _, steps, _, states = inputs[2].shape
    dtype = inputs[2].dtype
    return (
        steps > 1
        and states <= STATES_LIMIT
        and dtype in TYPES
        and all(x.device.type == "cpu" and x.dtype == dtype for x in inputs)
        and not torch.compiler.is_compiling()
        and can_compile()
    )


@cache
def load_kernels(dtype: torch.dtype) -> Kernels:
    """Compile the loops for a type of numbers, or read them from Numba's cache. They run in one thread."""
    import numba

    number = TYPES[dtype]
    x2, x3, x4 = (f"{number}[{':,' * (dimensions - 1)}::1]" for dimensions in (2, 3, 4))
    flags2, flags3 = "boolean[:,::1]", "boolean[:,:,::1]"
    inputs = f"{x4}, {x4}, {x3}, {flags2}, {flags3}, {number}"
    signatures = (
        f"void({inputs}, {x3}, {x2}, {x4}, {x4}, {x4}, {x4}, {x3})",
        f"void({inputs}, {x4}, {x4}, {x4}, {x3}, {x3}, {x4}, {x4}, {x4}, {x2})",
    )

    def compiled(loop: Callable[..., None], signature: str) -> Callable[..., None]:
        try:
            kernel: Callable[..., None] = numba.njit(signature, error_model="numpy", cache=True)(loop)
        except Exception:  # no folder is writable, the disk is full, or a file of the cache is damaged
            kernel = numba.njit(signature, error_model="numpy")(loop)
        return kernel

    return Kernels(compiled(_forward, signatures[0]), compiled(_backward, signatures[1]))


class CompiledFilter(torch.autograd.Function):
    """The filter's compiled loop, with its own backward pass as in :class:`filter_kernels.FilterLoop`."""

    @staticmethod
    def forward(
        ctx: Any,
        initial: Tensor,
        gates: Tensor,
        likelihood: Tensor,
        transitions: Tensor,
        restart_belief: Tensor,
        restarts: Tensor | None,
        jumps: Tensor | None,
        targets: Tensor | None,
        guard: bool,
    ) -> Tensor:
        """
        Filter all steps.

        :param initial: belief before the first step, (B, N, K)
        :param gates: weights of the matrices, (B, T, N, M)
        :param likelihood: likelihood of each step's tokens, (B, T, N, K)
        :param transitions: transition matrices, (N, M, K, K)
        :param restart_belief: belief before the first step of an episode, (N, K)
        :param restarts: steps before which the belief is reset, (B, T)
        :param jumps: beliefs that jump after a step, (B, T, N)
        :param targets: one-hot states that they jump to, (B, T, N, K)
        :param guard: whether steps may have likelihood 0
        :return: beliefs after each step, (B, T, N, K)
        """
        batch, steps, chains, states = likelihood.shape
        gates, likelihood = gates.contiguous(), likelihood.contiguous()
        # Without restarts or jumps, arrays without elements take their places.
        restarts = likelihood.new_empty(0, 0, dtype=torch.bool) if restarts is None else restarts.contiguous()
        jumps = likelihood.new_empty(0, 0, 0, dtype=torch.bool) if jumps is None else jumps.contiguous()
        targets = likelihood.new_empty(0, 0, 0, 0) if targets is None else targets.to(likelihood.dtype).contiguous()
        flat_transitions = transitions.transpose(1, 2).reshape(chains, states, -1)  # [A_1 … A_M]
        beliefs, norms = torch.empty_like(likelihood), likelihood.new_empty(batch, steps, chains)
        # The belief that each step starts from, and its products with all matrices.
        started = likelihood.new_empty(chains, batch, steps, states)
        products = likelihood.new_empty(chains, batch, steps, flat_transitions.shape[-1])
        inputs = (gates, likelihood, flat_transitions, restarts, jumps)
        others = (initial.contiguous(), restart_belief.contiguous(), targets, beliefs, started, products, norms)
        load_kernels(likelihood.dtype).forward(*_arrays(*inputs), TINY if guard else 0.0, *_arrays(*others))
        ctx.save_for_backward(*inputs, beliefs)
        ctx.work, ctx.guard = (started, products, norms), guard
        return beliefs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the first five inputs."""
        gates, likelihood, flat_transitions, restarts, jumps, beliefs = ctx.saved_tensors
        started, products, norms = ctx.work
        batch, _, chains, states = likelihood.shape
        back = flat_transitions.transpose(1, 2).contiguous()
        carried, grad_restart = likelihood.new_zeros(batch, chains, states), likelihood.new_zeros(chains, states)
        grad_gates, grad_likelihood, at_products = map(torch.empty_like, (gates, likelihood, products))
        load_kernels(likelihood.dtype).backward(
            *_arrays(gates, likelihood, back, restarts, jumps),
            UNLIKELY if ctx.guard else 0.0,
            *_arrays(beliefs, products, grad.contiguous(), norms),
            *_arrays(carried, at_products, grad_gates, grad_likelihood, grad_restart),
        )
        # One matrix product sums the outer products of all steps.
        grad_transitions = torch.bmm(started.flatten(1, 2).transpose(1, 2), at_products.flatten(1, 2))
        grad_transitions = grad_transitions.view(chains, states, -1, states).transpose(1, 2)
        return carried, grad_gates, grad_likelihood, grad_transitions, grad_restart, None, None, None, None


def _arrays(*tensors: Tensor) -> tuple[Array, ...]:
    """The tensors' memory as NumPy arrays."""
    return tuple(tensor.detach().numpy() for tensor in tensors)


# Numba compiles the functions below. Sums begin with 0 of the arrays' type, because the literal 0.0 has double precision.


def _forward(
    gates: Array,
    likelihood: Array,
    transitions: Array,
    restarts: Array,
    jumps: Array,
    tiny: float,
    initial: Array,
    restart_belief: Array,
    targets: Array,
    beliefs: Array,
    started: Array,
    products: Array,
    norms: Array,
) -> None:
    """Filter all steps. Writes beliefs, what each step started from, the products of that, and the sums of the posteriors."""
    batch, steps, chains, states = likelihood.shape
    matrices, width = gates.shape[3], transitions.shape[2]
    restarting, jumping, zero = restarts.size > 0, jumps.size > 0, likelihood.dtype.type(0)
    for t in range(steps):
        for b in range(batch):
            for n in range(chains):
                # Reset the belief where an episode starts.
                for k in range(states):
                    if restarting and restarts[b, t]:
                        started[n, b, t, k] = restart_belief[n, k]
                    elif t == 0:
                        started[n, b, t, k] = initial[b, n, k]
                    else:
                        started[n, b, t, k] = beliefs[b, t - 1, n, k]
                # Predict: propagate the belief through the transition matrices, and weigh the products by the gates.
                for i in range(width):
                    products[n, b, t, i] = zero
                for k in range(states):
                    for i in range(width):
                        products[n, b, t, i] += started[n, b, t, k] * transitions[n, k, i]
                for k in range(states):
                    beliefs[b, t, n, k] = zero
                for m in range(matrices):
                    for k in range(states):
                        beliefs[b, t, n, k] += gates[b, t, n, m] * products[n, b, t, m * states + k]
                # Correct: weigh by the likelihood, and normalize.
                norm = zero
                for k in range(states):
                    beliefs[b, t, n, k] = beliefs[b, t, n, k] * likelihood[b, t, n, k] + tiny
                    norm += beliefs[b, t, n, k]
                norms[b, t, n] = norm
                # Mutate.
                for k in range(states):
                    beliefs[b, t, n, k] = targets[b, t, n, k] if jumping and jumps[b, t, n] else beliefs[b, t, n, k] / norm


def _backward(
    gates: Array,
    likelihood: Array,
    back: Array,
    restarts: Array,
    jumps: Array,
    unlikely: float,
    beliefs: Array,
    products: Array,
    grad: Array,
    norms: Array,
    carried: Array,
    at_products: Array,
    grad_gates: Array,
    grad_likelihood: Array,
    grad_restart: Array,
) -> None:
    """Go backwards through all steps. Writes the gradients at the products and inputs, ``carried`` at the initial belief."""
    batch, steps, chains, states = likelihood.shape
    matrices, width = gates.shape[3], back.shape[1]
    restarting, jumping, zero = restarts.size > 0, jumps.size > 0, likelihood.dtype.type(0)
    bound = likelihood.dtype.type(1 / unlikely)  # infinite without a guard
    for t in range(steps - 1, -1, -1):
        for b in range(batch):
            for n in range(chains):
                # The gradient h at the belief, and h · b. Where a belief is 0, h grows without bound from step to step.
                along, norm = zero, max(norms[b, t, n], unlikely)
                for k in range(states):
                    h = zero if jumping and jumps[b, t, n] else grad[b, t, n, k] + carried[b, n, k]
                    h = min(max(h, -bound), bound)
                    carried[b, n, k] = h
                    along += h * beliefs[b, t, n, k]
                # The gradients at the posterior's factors.
                for k in range(states):
                    at_post = (carried[b, n, k] - along) / norm
                    predicted = zero
                    for m in range(matrices):
                        predicted += gates[b, t, n, m] * products[n, b, t, m * states + k]
                    grad_likelihood[b, t, n, k] = at_post * predicted
                    carried[b, n, k] = at_post * likelihood[b, t, n, k]
                for m in range(matrices):
                    at_gate = zero
                    for k in range(states):
                        at_gate += carried[b, n, k] * products[n, b, t, m * states + k]
                        at_products[n, b, t, m * states + k] = carried[b, n, k] * gates[b, t, n, m]
                    grad_gates[b, t, n, m] = at_gate
                # The gradient at the belief that the step started from.
                for k in range(states):
                    carried[b, n, k] = zero
                for i in range(width):
                    for k in range(states):
                        carried[b, n, k] += at_products[n, b, t, i] * back[n, i, k]
                if restarting and restarts[b, t]:
                    for k in range(states):
                        grad_restart[n, k] += carried[b, n, k]
                        carried[b, n, k] = zero
