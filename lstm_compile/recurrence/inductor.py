"""The one place that calls torch.compile."""

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from threading import Lock, Thread
from time import perf_counter
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.utils._triton import has_triton  # not there after `import torch` alone


def compile_for(function: FunctionType, *key: Any) -> Callable[..., Any]:
    """`function` of tensors and lists of tensors, compiled once per key, for any number of rows.

    Rows are the last dimension but one of every tensor except the last argument, and at least 2.
    All tensors are contiguous. The key must hold everything that the graph depends on: a call
    checks nothing else, so that no global state of PyTorch compiles a graph again.
    """
    return _compiled(function, *key, torch.get_num_threads())


def has_compiled(function: Callable[..., Any], *key: Any) -> bool:
    """Whether `compile_for` was called with these in this process, and its result ran."""
    return (function, *key, torch.get_num_threads()) in _RAN


_RAN: set[Any] = set()
GRAPH_SECONDS: list[float] = []  # what each graph of `compile_graph` took


@cache
def _compiled(function: FunctionType, *key: Any) -> Callable[..., Any]:
    # Dynamo counts recompiles per code object and gives up past a limit, so that many sizes through
    # one function would end in eager code. Each key has its own.
    name = "_".join([function.__name__, *(str(part).replace(".", "_") for part in key)])
    code, values = function.__code__.replace(co_name=name), function.__globals__
    copy = FunctionType(code, values, name, function.__defaults__, function.__closure__)
    graph = _Graph()
    options: dict[str, Any] = {"guard_filter_fn": lambda guards: [False] * len(guards)}
    run = torch.compile(copy, fullgraph=True, dynamic=True, backend=graph.take, options=options)

    def call(*arguments: Any) -> Any:
        with graph.lock:
            if (function, *key) not in _RAN:
                if arguments[-1].is_cpu:
                    graph.instructions = _find_instructions()
                examples = _examples(arguments)
                graph.learn(examples, run(*examples))
                _RAN.add((function, *key))
        return graph(*arguments)

    return call


class _Graph:
    """The graph that Inductor made of a function, called without Dynamo.

    At dozens of tensors for each call, Dynamo's bytecode takes longer than small kernels do. Only
    the first call goes through Dynamo. It shows which of the function's arguments and results are
    the graph's inputs and outputs.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.instructions: Thread | None = None  # runs while Dynamo traces
        self.run: Callable[..., Any]
        self.inputs: Sequence[Any] = ()
        self.outputs: Sequence[Any] = ()

    def take(self, module: Any, examples: Sequence[Any]) -> Callable[..., Any]:
        """Compile, as torch.compile's backend."""
        from torch._inductor.compile_fx import compile_fx

        if self.instructions:
            self.instructions.join()
        run: Any = compile_fx(module, examples)
        self.run = run
        return self._watched

    def _watched(self, *inputs: Any) -> Any:
        self.inputs, self.outputs = inputs, self.run(*inputs)
        return self.outputs

    def learn(self, arguments: Sequence[Any], results: Sequence[Any]) -> None:
        """Note which argument each input of the graph is, and which output each result is."""
        places = {id(leaf): place for place, leaf in enumerate(_flat(arguments))}
        # an input that is no tensor is the number of rows
        self.sources = [places.get(id(value)) for value in self.inputs]
        places = {id(value): place for place, value in enumerate(self.outputs)}
        self.targets = [
            [places[id(value)] for value in each] if isinstance(each, list) else places[id(each)]
            for each in results
        ]
        self.inputs = self.outputs = ()

    def __call__(self, *arguments: Any) -> Any:
        """The function's results; no gradients."""
        leaves = _flat(arguments)
        rows = leaves[0].shape[-2]
        outputs = self.run(*[rows if at is None else leaves[at] for at in self.sources])
        return tuple(
            [outputs[each] for each in at] if isinstance(at, list) else outputs[at]
            for at in self.targets
        )


def compile_graph(graph: Graph, examples: Sequence[Tensor]) -> Callable[..., Any]:
    """A graph of operators as a compiled function from tensors to a sequence of tensors.

    `examples` of its inputs are fake tensors, contiguous as the inputs must be. Dynamo has no part
    in it.
    """
    from torch._inductor.compile_fx import compile_fx

    began = perf_counter()
    run: Any = compile_fx(GraphModule(torch.nn.Module(), graph), list(examples))
    GRAPH_SECONDS.append(perf_counter() - began)
    return run  # type: ignore[no-any-return]


@cache
def _find_instructions() -> Thread:
    """A thread in which Inductor detects the vector instructions of the CPU.

    It asks child processes, one after the other: a second of waiting, in which Dynamo can work.
    """
    # Import here all that the thread needs, so that it imports nothing: setuptools, which the last
    # module imports, takes a finder out of sys.meta_path, and an import in another thread then
    # skips the next finder.
    import torch._inductor.compile_fx
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with suppress(ImportError):
        import torch.utils.cpp_extension  # noqa: F401

    thread = Thread(target=pick_vec_isa, daemon=True)
    thread.start()
    return thread


def _flat(values: Sequence[Any]) -> list[Tensor]:
    """Tensors and lists of tensors in one list."""
    return [leaf for value in values for leaf in (value if isinstance(value, list) else [value])]


def _examples(arguments: Sequence[Any]) -> list[Any]:
    """Arguments of the same sizes to trace with; their rows are the one dynamic size.

    Without the marks Dynamo takes equal sizes for one, and each dynamic size costs it a second. The
    arguments are copies, as Dynamo would also examine the tensors behind views.
    """
    zeros = torch.zeros_like
    *by_row, weight = ([*map(zeros, a)] if isinstance(a, list) else zeros(a) for a in arguments)
    for tensor in _flat(by_row):
        for dim in range(tensor.dim()):
            if dim != tensor.dim() - 2:
                torch._dynamo.mark_static(tensor, dim)
    torch._dynamo.mark_static(weight)
    return [*by_row, weight]


def compiler() -> str:
    """The path of the C++ compiler that Inductor uses; empty if there is none."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    return next(filter(None, (shutil.which(name) for name in candidates if name)), "")


@cache
def can_compile(device_type: str) -> bool:
    """Whether Inductor finds its compilers: one for C++, and on CUDA Triton too.

    Warns once if it does not.
    """
    if missing := not (compiler() and (device_type != "cuda" or has_triton())):
        warnings.warn(
            "no C++ compiler (or, on CUDA, no Triton) was found: backend='compiled' runs as "
            "backend='vendor'; install g++ or set CXX",
            stacklevel=2,
        )
    return not missing
