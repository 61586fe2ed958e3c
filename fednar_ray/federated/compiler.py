"""Compiles a function of tensors to machine code, once per machine: torch's AOTInductor and a C++ compiler.

The code lies in the directory where torch keeps what it compiles (``TORCHINDUCTOR_CACHE_DIR``). A lock per program lets
one process compile it while the others wait. A program that is there already is loaded in milliseconds.
"""

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, fx

from fednar_ray.federated.recorder import record

OLDEST_TORCH = (2, 7)
OPTIONS: Mapping[str, Any] = {
    "cpp.threads": 1,  # as an actor has; more would also add in another order
    "aot_inductor.compile_wrapper_opt_level": "O0",  # compiled in half the time; the kernels are optimized as always
}
FORMAT = 1
"""Part of every file's name. Raise it to have programs compiled anew, for example when ``OPTIONS`` change."""

Program = Callable[[list[Tensor]], list[Tensor]]
"""Takes the tensors of a traced function in order, and returns the function's results."""


def find_compiler_problem() -> str | None:
    """Returns why nothing can be compiled on this machine; None if it can."""
    if sys.platform == "win32":
        return "compiling is not supported on Windows"
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        return f"torch {torch.__version__} cannot; {'.'.join(map(str, OLDEST_TORCH))} or newer can"
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(command) else f"there is no C++ compiler ({command}; set CXX to name another)"


def compile_function(
    function: Callable[..., Any], arguments: Sequence[Tensor], open_rows: frozenset[int] = frozenset()
) -> Program:
    """Compiles a function for arguments of these shapes, or loads what was compiled before.

    Args:
        function: A function of tensors. It is run once, on copies of the arguments, while it is traced.
        arguments: Examples of its arguments. Those that it changes are changed in place by the program, too.
        open_rows: Which arguments may have any number of rows.

    Returns:
        The program.
    """
    graph = record(function, *(each.clone() for each in arguments))
    path = _find_path(graph, arguments, open_rows)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _compile(graph, arguments, open_rows, path)
    return _load(path)


def _find_path(graph: fx.GraphModule, arguments: Sequence[Tensor], open_rows: frozenset[int]) -> Path:
    """Returns the file of a program. Its name follows from all that decides the machine code."""
    identity = hashlib.sha256()
    processor = platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_float32_matmul_precision()
    for part in (FORMAT, torch.__version__, *processor, graph.code):
        identity.update(f"{part}\n".encode())
    for number, each in enumerate(arguments):
        shape = list(each.shape[1:] if number in open_rows else each.shape)
        identity.update(f"{shape} {each.dtype} {each.stride()} {each.device}\n".encode())
    for name, constant in sorted({**dict(graph.named_parameters()), **dict(graph.named_buffers())}.items()):
        identity.update(f"{name} {list(constant.shape)}\n".encode())
        identity.update(constant.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return _find_directory() / f"{identity.hexdigest()[:32]}.pt2"


def _find_directory() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "fednar_ray"


def _compile(graph: fx.GraphModule, arguments: Sequence[Tensor], open_rows: frozenset[int], path: Path) -> None:
    """Writes the program to ``path``, whole or not at all."""
    from torch._inductor import aoti_compile_and_package

    shapes = tuple({0: torch.export.Dim.DYNAMIC} if each in open_rows else None for each in range(len(arguments)))
    copies = tuple(each.clone() for each in arguments)
    exported = torch.export.export(graph, copies, dynamic_shapes=shapes, strict=False)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        written = aoti_compile_and_package(
            exported, package_path=str(Path(directory) / path.name), inductor_configs=dict(OPTIONS)
        )
        os.replace(written, path)


def _load(path: Path) -> Program:
    try:  # what ``aoti_load_package`` opens, without importing torch's compiler for seconds
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)
    except (AttributeError, TypeError):
        from torch._inductor import aoti_load_package

        loader = aoti_load_package(str(path), run_single_threaded=True).loader
    program: Program = loader.run
    return program
