"""A pretended GPU: tensors that say they are on CUDA and refuse to meet tensors that are not. They carry data.

    with fake_device.cuda() as device:              # "cuda"
        model.to(device)(tokens.to(device))         # computed on the CPU; `.device` is cuda:0

Where PyTorch finds a real GPU, that one is used and nothing is pretended.

A `Pretended` tensor holds a CPU tensor, `inner`, which computes. PyTorch's C++ takes it for one on `meta`, because a
build without CUDA has no device guard for CUDA, and autograd would abort the process. Two modes do the rest: `Names`
hands "cuda" to PyTorch as `meta`, `Pretence` makes what is asked for there and copies to and from it.

Refused as on a GPU: an operation on tensors of both devices; a CPU generator for random numbers on the GPU; `.numpy()`
of a GPU's tensor. Allowed as on a GPU: copies, 0-dimensional CPU tensors in elementwise operations, CPU indices.
PyTorch's FakeTensorMode refuses the same, but carries no data, and its backward pass aborts in a build without CUDA.

Autocast is imitated: PyTorch's own asks C++ for the device. `LOWER` and `FULL` are those of CUDA's two lists that this
project calls.

Shown: in fp32 the CPU's numbers and texts come out, and a forgotten `device=` is found. Not shown: what CUDA's own
kernels and autocast compute, speed, memory, that a resumed run draws the same dropout on a GPU, and several GPUs.
"""

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
FROM_DATA = {torch.tensor, torch.as_tensor, torch.Tensor.new_tensor}
# What autocast computes in bf16, and in fp32.
LOWER = {"linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "scaled_dot_product_attention"}
FULL = {"softmax", "log_softmax", "layer_norm", "cross_entropy", "sum", "exp", "norm", "cumsum", "pow"}


class Pretended(torch.Tensor):
    """A CPU tensor that says it is on CUDA."""

    @staticmethod
    @torch.inference_mode(False)  # one of inference mode could not be a view of one that is not
    def __new__(cls, inner: torch.Tensor):
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="meta", **place)

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    device = property(lambda self: torch.device("cuda", 0))
    is_cuda, is_meta = True, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def tolist(self):
        return self.inner.tolist()

    def data_ptr(self):
        return self.inner.data_ptr()

    def __repr__(self):
        return f"Pretended({self.inner!r})"

    def __reduce_ex__(self, protocol):
        """A file holds the CPU tensor, which is what torch.load(map_location="cpu") gives."""
        return self.inner.__reduce_ex__(protocol)


def compute(func, args: tuple, kwargs: dict):
    """An operation on the CPU tensors within. Its results are pretended if an argument is, or `device` says so."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    pretended = {id(x.inner): x for x in tensors if isinstance(x, Pretended)}
    asked = kwargs.get("device")
    if func is aten.copy_.default:
        on_gpu = isinstance(args[0], Pretended)
    else:
        on_gpu = bool(pretended) if asked is None else asked.type != "cpu"
    if pretended and func not in COPIES:
        refuse_mixtures(func, args, tensors)
    if on_gpu and kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, Pretended) else x, (args, kwargs))
    if asked is not None:
        kwargs["device"] = "cpu"
    results = func(*args, **kwargs)

    def pretend(x):
        if not on_gpu or not isinstance(x, torch.Tensor):
            return x
        return pretended[id(x)] if id(x) in pretended else Pretended(x)  # an operation in place returns its argument

    return tree_map(pretend, results)


def refuse_mixtures(func, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Raise RuntimeError when one of an operation's tensors is on the CPU, unless a GPU accepts it there."""
    indices = [id(x) for x in args[1] if x is not None] if func in INDEXING else []
    for x in tensors:
        is_written = x is args[0] and func._schema.is_mutable
        as_number = x.dim() == 0 and torch.Tag.pointwise in func.tags and not is_written
        if not (isinstance(x, Pretended) or as_number or id(x) in indices):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and {x.device}!"
                f" ({func})"
            )


class Pretence(TorchDispatchMode):
    """What PyTorch computes, also inside its own functions and in the backward pass.

    Tensors made on `meta` are pretended ones, and copies to `meta` or from there keep the data.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Names(TorchFunctionMode):
    """What PyTorch's Python functions are called with: "cuda" becomes `meta`; under autocast, other precisions."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")) == "meta":  # this project's own use of it, for modules that are filled later
            with _disable_current_modes():
                return func(*args, **kwargs)
        moves = func in (torch.Tensor.to, torch.Tensor.cuda)
        args = tuple("meta" if moves and is_cuda(x) else x for x in args)
        if func in FROM_DATA:  # `meta` would drop the data
            device = kwargs.pop("device", "meta" if isinstance(args[0], Pretended) else "cpu")
            made = torch.tensor(*args[func is torch.Tensor.new_tensor :], **kwargs)
            return made.to("meta" if is_cuda(device) else device)
        if is_cuda(kwargs.get("device")):
            kwargs["device"] = "meta"
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):  # a list is an index with data
            args = (args[0], tree_of_indices(args[1]), *args[2:])
        if torch.is_autocast_enabled("cuda") and func.__name__ in LOWER | FULL:
            dtype = torch.get_autocast_dtype("cuda") if func.__name__ in LOWER else torch.float32
            args, kwargs = tree_map(lambda x: x.to(dtype) if is_castable(x) else x, (args, kwargs))
        return func(*args, **kwargs)


def is_cuda(name) -> bool:
    """Is this the GPU's name, as "cuda", "cuda:0" or a torch.device?"""
    return isinstance(name, (str, torch.device)) and torch.device(name).type == "cuda"


def is_castable(x) -> bool:
    """Does autocast change this argument's precision?"""
    return isinstance(x, Pretended) and x.dtype in (torch.bfloat16, torch.float32)


def tree_of_indices(index):
    """An index, or a tuple of them, with tensors in place of lists."""
    if isinstance(index, tuple):
        return tuple(map(tree_of_indices, index))
    return torch.tensor(index, dtype=torch.long) if isinstance(index, list) else index


@contextmanager
def cuda():
    """A block in which the device "cuda" works; gives its name."""
    if torch.cuda.is_available():
        yield "cuda"
        return
    noise = torch.zeros(16, dtype=torch.uint8)
    says = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_name": lambda device=None: "a pretended GPU",
        "is_current_stream_capturing": lambda: False,  # the optimizer asks
        "set_device": lambda device: None,
        "get_rng_state": lambda device="cuda": noise,
        "set_rng_state": lambda state, device="cuda": None,
    }
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to makes new parameters: see `inner`
    try:
        with ExitStack() as inside:
            for name, function in says.items():
                inside.enter_context(mock.patch.object(torch.cuda, name, function))
            inside.enter_context(Pretence())
            inside.enter_context(Names())
            yield "cuda"
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
