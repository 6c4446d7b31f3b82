"""A CUDA device that is not there: tensors with numbers on the CPU that say they are on `cuda`.

Autograd of PyTorch's CPU build ends the process at a fake tensor on `cuda`. So this is another way:
inside `PretendedCuda`, what is made on `cuda` or moved there is a tensor of a class of its own.
All computes as on the CPU, so that results can be compared, and three things are watched:

- tensors of both devices in one operation, which CUDA refuses (a scalar on the CPU it takes),
- reads from the device by the host, each of which waits for the device: `reads` has their names,
- calls of PyTorch's LSTM: `calls` has their arguments, as CUDA would get them,
- operators that ran there: `operators` has their names.

Streams and events note their use in `events`. Nothing is known of kernels, memory or speed, and
random numbers come from the generator of the CPU.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing

from lstm_compile.recurrence import operator

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
# operators whose result has a shape that only the device knows, or that the host needs
READS = (
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero,
    aten._unique2, aten.bincount, aten.repeat_interleave,
)  # fmt: skip
# take tensors of two devices
COPIES = (
    aten.copy_,
    aten._to_copy,
    aten.index,
    aten.mkldnn_rnn_layer,
    aten.lstm,
    aten._pack_padded_sequence,
)
# this package's own, which run on the device too
OWN = {
    torch.ops.lstm_compile.recurrence: operator._operator,
    torch.ops.lstm_compile.recurrence_backward: operator._operator_backward,
}
# what PyTorch makes no single operator of
BY_HAND = ("cpu", "numpy", "tolist", "__array__", "new_tensor", "_pad_packed_sequence")


class Pretended(Tensor):
    """A tensor that says that it is on CUDA; `inner` has its numbers."""

    inner: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device="cpu",
        )  # fmt: skip
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def record_stream(self, _: Any) -> None:
        _active[-1].events.append("record_stream")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        strangers, kwargs = list[Tensor](), kwargs or {}
        plain_args, plain_kwargs = _unwrapped(args, strangers), _unwrapped(kwargs, strangers)
        packet, aliases = _kind(func)
        _active[-1].operators.add(str(packet))
        if func.namespace == "lstm_compile":
            with _active[-1].again(), torch._C._ForceDispatchKeyGuard(*_active[-1].keys):
                return OWN[packet](*args)
        if strangers and packet not in COPIES and not _autograd_made_them():
            shapes = [tuple(part.shape) for part in strangers]
            raise RuntimeError(f"{func}: all tensors must be on one device; on the CPU: {shapes}")
        if packet in READS or (packet is aten.index and _has_mask(args[1])):
            _active[-1].reads.append(str(packet))
        result = _wrapped(func(*plain_args, **plain_kwargs))
        if packet is aten._pack_padded_sequence:  # the sizes stay on the CPU
            return result[0], result[1].inner
        return return_and_correct_aliasing(func, args, kwargs, result) if aliases else result


@cache
def _kind(func: Any) -> tuple[Any, bool]:
    """The operator without its overload, and whether its results share memory with arguments."""
    return func.overloadpacket, any(part.alias_info for part in func._schema.arguments)


def _has_mask(indices: Any) -> bool:
    return any(isinstance(part, Pretended) and part.dtype == torch.bool for part in indices)


def _autograd_made_them() -> bool:
    """In the backward of an operator, which makes zeros of what has no gradient."""
    node = torch._C._current_autograd_node()
    return node is not None and not isinstance(node, torch.autograd.function.BackwardCFunction)


def _unwrapped(value: Any, strangers: list[Tensor]) -> Any:
    """An argument with the numbers of pretended tensors; others go to `strangers`."""
    if isinstance(value, Tensor):
        if isinstance(value, Pretended):
            return value.inner
        if value.dim():
            strangers.append(value)
        return value
    if isinstance(value, list | tuple):
        return [_unwrapped(part, strangers) for part in value]
    if isinstance(value, dict):
        return {name: _unwrapped(part, strangers) for name, part in value.items()}
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Pretended(value)
    return type(value)(map(_wrapped, value)) if isinstance(value, list | tuple) else value


_active: list["PretendedCuda"] = []


class PretendedCuda(TorchFunctionMode):
    """The context in which there is a CUDA device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.calls = list[str](), list[tuple[Any, ...]]()
        self.events, self.operators = list[str](), set[str]()
        self._patches = ExitStack()
        self.keys = (  # of PyTorch's dispatcher, as they are outside of operators
            torch._C._dispatch_tls_local_include_set(),
            torch._C._dispatch_tls_local_exclude_set(),
        )

    def __enter__(self) -> "PretendedCuda":
        _active.append(self)
        # views of tensors of a class of one's own fail in inference mode
        plain = mock.patch.object(torch, "inference_mode", _no_grad)
        self._patches.enter_context(plain)
        for name, stub in self._stubs().items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, stub))
        return super().__enter__()  # type: ignore[return-value]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()
        _active.remove(self)

    def _stubs(self) -> dict[str, Any]:
        return {
            "get_device_name": lambda *_: "pretended",
            "get_rng_state": lambda *_: torch.get_rng_state(),
            "set_rng_state": lambda *_: None,
            "manual_seed": lambda *_: None,
            "device": nullcontext,
            "mem_get_info": lambda *_: (1 << 34, 1 << 34),
            "Stream": partial(_Stream, self.events, "copying"),
            "stream": nullcontext,
            "current_stream": partial(_Stream, self.events, "working"),
        }

    @contextmanager
    def again(self) -> Iterator[None]:
        """Watch inside of what is being called, where PyTorch puts this mode aside."""
        TorchFunctionMode.__enter__(self)
        try:
            yield
        finally:
            TorchFunctionMode.__exit__(self, None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "pin_memory":
            self.events.append(name)
            return args[0]
        if func is torch.lstm:
            self.calls.append(args)
        if func is torch.autograd.grad:  # functions of this package have backwards in Python
            with mock.patch.object(torch.autograd, "has_torch_function", _never), self.again():
                return func(*args, **kwargs)
        if name in BY_HAND and isinstance(args[0], Pretended):
            return getattr(self, f"_{name.strip('_')}")(func, *args, **kwargs)
        wanted = [_device_of(leaf) for leaf in (*args, *kwargs.values())]
        wanted = [device for device in wanted if device is not None]
        if not wanted:
            return func(*args, **kwargs)
        if name == "to" and wanted[0] == "cpu":
            args = (self._read(name, args[0]), *args[1:])
        args, kwargs = tuple(map(_on_cpu, args)), {k: _on_cpu(v) for k, v in kwargs.items()}
        result = func(*args, **kwargs)
        return self._moved(result) if wanted[0] == "cuda" else result

    def _read(self, name: str, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Pretended):
            return tensor
        self.reads.append(name)
        return tensor.detach().inner  # type: ignore[attr-defined, no-any-return]

    def _to_host(self, func: Any, tensor: Tensor, *args: Any) -> Any:
        return getattr(self._read(func.__name__, tensor), func.__name__)(*args)

    _cpu = _numpy = _tolist = _array = _to_host

    def _new_tensor(self, func: Any, tensor: Pretended, *args: Any, **kwargs: Any) -> Tensor:
        return Pretended(func(tensor.inner, *args, **kwargs))

    def _pad_packed_sequence(self, func: Any, packed: Pretended, *args: Any) -> Any:
        padded, lengths = func(packed.detach().inner, *args)  # type: ignore[attr-defined]
        return Pretended(padded), lengths

    def _moved(self, result: Any) -> Any:
        if isinstance(result, Tensor) and not isinstance(result, Pretended):
            assert result.is_leaf, "a copy to the device must not need a gradient"
            return Pretended(result.detach()).requires_grad_(result.requires_grad)
        return result


def _never(_: Any) -> bool:
    return False


def _no_grad(mode: bool = True) -> Any:
    return torch.no_grad() if mode else nullcontext()


class _Stream:
    def __init__(self, events: list[str], name: str, *_: Any) -> None:
        self._note = lambda what: events.append(f"{name} {what}")

    def record_event(self) -> None:
        self._note("record")

    def wait_event(self, _: Any) -> None:
        self._note("wait")


def _device_of(value: Any) -> str | None:
    """The kind of device that an argument names."""
    if isinstance(value, torch.device):
        return value.type
    if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda"):
        return value.split(":")[0]
    return None


def _on_cpu(value: Any) -> Any:
    return CPU if _device_of(value) == "cuda" else value
