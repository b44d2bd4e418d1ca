"""Functions recorded as CUDA graphs: a GPU runs the hundreds of kernels of a small model faster than Python launches them."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")

WARM_UPS = 2
"""Number of calls before a recording: the first ones compile kernels and allocate memory."""


class RecordedFunction(Generic[Result]):
    """
    A function of tensors that is recorded once and replayed from then on.

    It must not wait for the GPU, nor depend on numbers outside its arguments that change. Tensors of the arguments must always
    have the same shapes. The results are overwritten by the next call.

    :param function: function to record; it is called a few times
    :param arguments: arguments to record it with: tensors, and named tuples, dataclasses and lists of them
    """

    def __init__(self, function: Callable[..., Result], *arguments: Any) -> None:
        self._arguments = copy_tensors(arguments)
        stream = _recording_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(*self._arguments)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._result = function(*self._arguments)

    @torch.no_grad()
    def __call__(self, *arguments: Any) -> Result:
        """Replay the function on other tensors."""
        for recorded, given in zip(find_tensors(self._arguments), find_tensors(arguments), strict=True):
            if recorded is not given:
                recorded.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result


class RecordedGradient(RecordedFunction[Result]):
    """
    A recorded function that computes the gradients of parameters, always in the same memory.

    :param parameters: the parameters; the function sets their gradients
    :param function: function to record
    :param arguments: arguments to record it with
    """

    def __init__(self, parameters: Sequence[nn.Parameter], function: Callable[..., Result], *arguments: Any) -> None:
        super().__init__(function, *arguments)
        self._parameters, self._gradients = parameters, [parameter.grad for parameter in parameters]

    def __call__(self, *arguments: Any) -> Result:
        """Replay the function on other tensors."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return super().__call__(*arguments)


@cache
def _recording_stream() -> torch.cuda.Stream:
    """The stream of all recordings: autograd would wait for another one."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def find_tensors(x: Any) -> Iterator[Tensor]:
    """Yield the tensors in a structure of tuples, lists and dataclasses."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list):
        for part in x:
            yield from find_tensors(part)
    elif dataclasses.is_dataclass(x):
        for field in dataclasses.fields(x):
            yield from find_tensors(getattr(x, field.name))


@torch.no_grad()
def copy_tensors(x: Any) -> Any:
    """Copy a structure of tuples, lists and dataclasses with all tensors in it."""
    if isinstance(x, Tensor):
        return x.clone(memory_format=torch.contiguous_format)
    if isinstance(x, tuple):
        parts = [copy_tensors(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if isinstance(x, list):
        return [copy_tensors(part) for part in x]
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return dataclasses.replace(x, **{field.name: copy_tensors(getattr(x, field.name)) for field in dataclasses.fields(x)})
    return x
