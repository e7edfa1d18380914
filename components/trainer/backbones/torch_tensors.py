"""Reads the tensors of a PyTorch file without PyTorch, and without running anything in it.

The file is PyTorch's old format: a stream of pickles (magic number, protocol, system info, the
tensors by name, the keys of the storages), then for each key the count of its values and the
values. Only the names that make up tensors are admitted in a pickle; any other is refused, so that
a file cannot make this process call anything.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from graftline.serving.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_rest = pid
        return _Storage(key, dtype)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads every tensor of a file.

    Args:
        path: a file in PyTorch's format of before version 1.6.

    Returns:
        Arrays by name, laid out as their strides say.

    Raises:
        UserError: the file is torn, in another format, or holds anything but tensors.
    """
    stream = io.BytesIO(path.read_bytes())
    try:
        if _Unpickler(stream).load() != _MAGIC:
            raise pickle.UnpicklingError("it is not in PyTorch's old format")
        for _ in ("protocol", "system info"):
            _Unpickler(stream).load()
        tensors: dict[str, _Tensor] = _Unpickler(stream).load()
        dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
        storages = {}
        for key in _Unpickler(stream).load():
            count = int.from_bytes(stream.read(8), "little")
            values = stream.read(count * dtypes[key].itemsize)
            storages[key] = np.frombuffer(values, dtypes[key], count)
        return {name: _lay_out(tensor, storages) for name, tensor in tensors.items()}
    # A damaged pickle raises whatever its first wrong byte leads to.
    except Exception as error:
        raise UserError(f"The weight file {path} cannot be read: {error}.") from error


def _lay_out(tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    values = storages[tensor.storage.key]
    index = np.full(tensor.shape, tensor.offset)
    for axis, (length, stride) in enumerate(zip(tensor.shape, tensor.strides, strict=True)):
        shape = [1] * len(tensor.shape)
        shape[axis] = length
        index = index + stride * np.arange(length).reshape(shape)
    return values[index]
