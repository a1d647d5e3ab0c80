"""Reads the tensors of a PyTorch checkpoint without PyTorch.

Only the old (not zipped) format, and only what a state dict of plain tensors
needs: an unpickler that knows four names and refuses every other one, so a
checkpoint cannot run code. Format: torch/serialization.py, _legacy_save.
"""
import collections
import io
import pickle
import struct

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
TYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
         "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?"}


class Storage:
    def __init__(self, dtype, count):
        self.dtype, self.count, self.data = np.dtype(dtype), count, None


class Lazy:
    """A tensor whose storage is read later."""

    def __init__(self, storage, offset, size, stride, *_):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self):
        item = self.storage.dtype.itemsize
        need = self.offset + 1 + sum((n - 1) * s for n, s in zip(self.size, self.stride)) if all(self.size) else 0
        if need > self.storage.count or self.offset < 0 or min(self.stride, default=0) < 0:
            raise ValueError("tensor of shape %s lies outside its storage" % (self.size,))
        view = np.lib.stride_tricks.as_strided(self.storage.data[self.offset:], self.size, [s * item for s in self.stride])
        return np.ascontiguousarray(view)


class Unpickler(pickle.Unpickler):
    def __init__(self, file, storages=None):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Lazy
        if module == "torch" and name in TYPES:
            return TYPES[name]
        raise pickle.UnpicklingError("the checkpoint asks for %s.%s, only plain tensors are read" % (module, name))

    def persistent_load(self, pid):
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or self.storages is None:
            raise pickle.UnpicklingError("unknown reference %r" % (kind,))
        return self.storages.setdefault(key, Storage(dtype, count))


def load(path):
    """Returns {name: array} of the state dict in path."""
    with open(path, "rb") as f:
        body = io.BytesIO(f.read())
    if Unpickler(body).load() != MAGIC or Unpickler(body).load() != PROTOCOL:
        raise ValueError("%s is not a PyTorch checkpoint of the old format" % path)
    if not Unpickler(body).load().get("little_endian"):
        raise ValueError("%s is big-endian" % path)
    storages = {}
    state = Unpickler(body, storages).load()
    for key in Unpickler(body).load():
        s = storages[key]
        count = struct.unpack("<q", body.read(8))[0]
        if count != s.count:
            raise ValueError("storage %s has %d elements, expected %d" % (key, count, s.count))
        s.data = np.frombuffer(body.read(count * s.dtype.itemsize), s.dtype)
    return {name: t.array() for name, t in state.items()}
