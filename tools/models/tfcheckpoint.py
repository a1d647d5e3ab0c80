"""Reads a TensorFlow checkpoint (tensor bundle, format V2) without TensorFlow.

Format: tensorflow/core/util/tensor_bundle and the table format of LevelDB: an
.index file of key -> BundleEntryProto, and one .data file of tensor bytes.
"""
import struct

import numpy as np

DTYPES = {1: np.float32, 3: np.int32, 9: np.int64}
FOOTER = 48  # two block handles and the magic number


def varint(b, i):
    value = shift = 0
    while True:
        c = b[i]
        i += 1
        value |= (c & 127) << shift
        shift += 7
        if c < 128:
            return value, i


def block(b, offset, size):
    """The (key, value) pairs of one uncompressed table block."""
    if b[offset + size] != 0:
        raise ValueError("the checkpoint's index is compressed")
    d = b[offset:offset + size]
    restarts = struct.unpack("<I", d[-4:])[0]
    end, i, key, pairs = len(d) - 4 - 4 * restarts, 0, b"", []
    while i < end:
        shared, i = varint(d, i)
        unshared, i = varint(d, i)
        length, i = varint(d, i)
        key = key[:shared] + d[i:i + unshared]
        i += unshared
        pairs.append((key, d[i:i + length]))
        i += length
    return pairs


def fields(b):
    """The (number, value) pairs of a protobuf message; nested ones stay bytes."""
    i, out = 0, []
    while i < len(b):
        tag, i = varint(b, i)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, i = varint(b, i)
        else:
            if wire == 2:
                size, i = varint(b, i)
            else:
                size = {1: 8, 5: 4}[wire]
            value, i = b[i:i + size], i + size
        out.append((number, value))
    return out


def load(index, data):
    """{name: array} of the tensors in the files' bytes; arrays alias data."""
    footer = index[-FOOTER:]
    _, i = varint(footer, 0)
    _, i = varint(footer, i)
    offset, i = varint(footer, i)
    size, _ = varint(footer, i)
    tensors = {}
    for _, handle in block(index, offset, size):
        o, j = varint(handle, 0)
        s, _ = varint(handle, j)
        for key, value in block(index, o, s):
            entry = dict(fields(value))
            dtype = DTYPES.get(entry.get(1, 1))
            if not key or dtype is None:
                continue
            shape = [dict(fields(d)).get(1, 0) for n, d in fields(entry.get(2, b"")) if n == 2]
            at, count = entry.get(4, 0), entry.get(5, 0)
            tensors[key.decode()] = np.frombuffer(data, np.uint8, count, at).view(dtype).reshape(shape)
    return tensors
