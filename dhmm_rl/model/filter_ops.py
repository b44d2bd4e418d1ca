"""
The filter's loop as two operators of torch, for GPUs and for compiled code: :func:`torch.compile` does not look into them.

On a GPU they are Triton kernels, see :mod:`triton_filter`. Their memory grows with T only, because nothing of the size of a
matrix is stored for a step.

Shapes: B sequences, T steps, N chains, K states of a chain, M transition matrices.
"""

from typing import Any

import torch
from torch import Tensor

from dhmm_rl.model.filter_kernels import TINY, UNLIKELY

LARGEST = 4096
"""Largest number of values M · K² of a chain's transition matrices that fit into the registers of a program."""


def operators_pay(inputs: tuple[Tensor, ...]) -> bool:
    """
    Return whether the operators are the fastest way to filter.

    :param inputs: the first five inputs of :func:`filter_forward`
    """
    states, matrices = inputs[2].shape[-1], inputs[1].shape[-1]
    if torch.compiler.is_compiling() and inputs[2].device.type == "cpu":
        return True
    return inputs[2].device.type == "cuda" and matrices * states**2 <= LARGEST and all(x.dtype == torch.float32 for x in inputs)


def filter_by_operators(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    restarts: Tensor | None,
    jumps: Tensor | None,
    guard: bool,
) -> Tensor:
    """
    Filter all steps, with gradients.

    :param inputs: initial belief (B, N, K), gates (B, T, N, M), likelihood (B, T, N, K), transitions (N, M, K, K), and the
        belief before the first step of an episode (N, K)
    :param restarts: steps before which the belief is reset, (B, T)
    :param jumps: state that each belief jumps to after a step, -1 where it does not jump, (B, T, N)
    :param guard: whether steps may have likelihood 0
    :return: beliefs after each step, (B, T, N, K)
    """
    initial, gates, likelihood, transitions, restart_belief = (x.contiguous() for x in inputs)
    restarts, jumps = (None if x is None else x.contiguous() for x in (restarts, jumps))
    beliefs: Tensor = filter_forward(initial, gates, likelihood, transitions, restart_belief, restarts, jumps, guard)[0]
    return beliefs


@torch.library.custom_op("dhmm_rl::filter_forward", mutates_args=())
def filter_forward(
    initial: Tensor,
    gates: Tensor,
    likelihood: Tensor,
    transitions: Tensor,
    restart_belief: Tensor,
    restarts: Tensor | None,
    jumps: Tensor | None,
    guard: bool,
) -> tuple[Tensor, Tensor]:
    """
    Filter all steps; the arguments are those of :func:`filter_by_operators`.

    :return: beliefs (B, T, N, K), and the sums of the posteriors before they were normalized (B, T, N)
    """
    belief, beliefs, norms = initial, [], []
    for t in range(likelihood.shape[1]):
        if restarts is not None:
            belief = torch.where(restarts[:, t, None, None], restart_belief, belief)
        post = torch.einsum("bnk,bnm,nmkl->bnl", belief, gates[:, t], transitions) * likelihood[:, t]
        post = post + TINY if guard else post
        norm = post.sum(dim=-1)
        belief = post / norm[..., None]
        if jumps is not None:
            one_hot = (jumps[:, t, :, None] == torch.arange(post.shape[-1], device=post.device)).to(post.dtype)
            belief = torch.where(jumps[:, t, :, None] >= 0, one_hot, belief)
        beliefs.append(belief)
        norms.append(norm)
    return torch.stack(beliefs, dim=1), torch.stack(norms, dim=1)


@torch.library.custom_op("dhmm_rl::filter_backward", mutates_args=())
def filter_backward(
    grad: Tensor,
    gates: Tensor,
    likelihood: Tensor,
    transitions: Tensor,
    restarts: Tensor | None,
    jumps: Tensor | None,
    beliefs: Tensor,
    norms: Tensor,
    guard: bool,
) -> Tensor:
    """
    Go backwards through all steps: the part of the backward pass that needs a loop.

    :param grad: gradient at the beliefs, (B, T, N, K)
    :return: gradient at the posterior of each step before it was normalized, (B, T, N, K)
    """
    carried, found = torch.zeros_like(grad[:, 0]), []
    for t in reversed(range(likelihood.shape[1])):
        h, norm = grad[:, t] + carried, norms[:, t, :, None]
        if jumps is not None:
            h = h * (jumps[:, t, :, None] < 0)
        if guard:
            h, norm = h.clamp(-1 / UNLIKELY, 1 / UNLIKELY), norm.clamp_min(UNLIKELY)
        inner = (h - (h * beliefs[:, t]).sum(dim=-1, keepdim=True)) / norm
        found.append(inner)
        carried = torch.einsum("bnl,bnm,nmkl->bnk", inner * likelihood[:, t], gates[:, t], transitions)
        if restarts is not None:
            carried = carried * ~restarts[:, t, None, None]
    return torch.stack(found[::-1], dim=1)


@filter_forward.register_kernel("cuda")
def _forward_on_gpu(*inputs: Any) -> tuple[Tensor, Tensor]:
    from dhmm_rl.model import triton_filter

    return triton_filter.forward(*inputs)


@filter_backward.register_kernel("cuda")
def _backward_on_gpu(*inputs: Any) -> Tensor:
    from dhmm_rl.model import triton_filter

    return triton_filter.backward(*inputs)


@filter_forward.register_fake
def _(initial: Tensor, gates: Tensor, likelihood: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(likelihood), likelihood.new_empty(likelihood.shape[:3])


@filter_backward.register_fake
def _(grad: Tensor, gates: Tensor, likelihood: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(likelihood)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.guard = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the first five inputs. Only the operator needs a loop; here all steps are computed at once."""
    initial, gates, likelihood, transitions, restart_belief, restarts, jumps, beliefs, norms = ctx.saved_tensors
    at_post = filter_backward(grad.contiguous(), gates, likelihood, transitions, restarts, jumps, beliefs, norms, ctx.guard)
    # The belief that each step started from, and its products with all matrices
    started = torch.cat([initial[:, None], beliefs[:, :-1]], dim=1)
    if restarts is not None:
        started = torch.where(restarts[:, :, None, None], restart_belief, started)
    propagated = torch.einsum("btnk,nmkl->btnml", started, transitions)
    at_predicted = at_post * likelihood
    grad_gates = (propagated * at_predicted[..., None, :]).sum(dim=-1)
    grad_likelihood = at_post * (propagated * gates[..., None]).sum(dim=-2)
    at_propagated = gates[..., None] * at_predicted[..., None, :]
    grad_transitions = torch.einsum("btnk,btnml->nmkl", started, at_propagated)
    at_started = torch.einsum("btnml,nmkl->btnk", at_propagated, transitions)
    if restarts is None:
        return at_started[:, 0], grad_gates, grad_likelihood, grad_transitions, torch.zeros_like(restart_belief), *[None] * 3
    restarting = restarts[:, :, None, None]
    grad_restart = (at_started * restarting).sum(dim=(0, 1))
    grad_initial = at_started[:, 0] * ~restarting[:, 0]
    return grad_initial, grad_gates, grad_likelihood, grad_transitions, grad_restart, *[None] * 3


filter_forward.register_autograd(_gradients, setup_context=_save)
