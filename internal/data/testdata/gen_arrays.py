#!/usr/bin/env python3
"""Writes the arrays of this folder with numpy itself. Run in this folder."""
import io, zipfile
import numpy as np

n = 10
ids = (np.arange(n * 6).reshape(n, 6) + 100).astype(np.int64)
mask = np.array([[1] * (1 + i % 6) + [0] * (5 - i % 6) for i in range(n)], np.int64)
types = np.zeros((n, 6), np.int64)
label = np.arange(n) % 3
np.savez("text.npz", input_ids=ids, attention_mask=mask, token_type_ids=types, label=label)
np.savez_compressed("text_deflated.npz", input_ids=ids, attention_mask=mask, token_type_ids=types, label=label)
np.savez("text_int32.npz", input_ids=ids.astype(np.int32), attention_mask=mask.astype(bool), token_type_ids=types.astype(np.uint8), label=label.astype(np.int8).reshape(-1, 1))
x = (np.arange(4 * 3 * 2 * 2, dtype=np.float32) / 8 - 2).reshape(4, 3, 2, 2)
np.save("image_f4.npy", x)
np.save("image_f8.npy", x.astype(np.float64))
np.save("image_f2.npy", x.astype(np.float16))
np.save("image_u1.npy", (x * 8 + 16).astype(np.uint8))
np.save("image_nhwc.npy", np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
np.savez("image_arr0.npz", x)
np.save("fortran.npy", np.asfortranarray(x))
np.save("big_endian.npy", x.astype(">f4"))
np.save("objects.npy", np.array([np.zeros(2), np.zeros(3)], dtype=object), allow_pickle=True)
np.save("records.npy", np.zeros(4, dtype=[("a", "<f4"), ("b", "<i8", (2, 2))]))
np.save("strings.npy", np.array(["a", "bc"]))
np.save("scalar.npy", np.float32(1))
for v in (1, 2, 3):
    b = io.BytesIO()
    np.lib.format.write_array(b, x, version=(v, 0))
    open(f"version{v}.npy", "wb").write(b.getvalue())
with zipfile.ZipFile("bzip2.npz", "w", zipfile.ZIP_BZIP2) as z:
    b = io.BytesIO()
    np.save(b, x)
    z.writestr("pixels.npy", b.getvalue())
with zipfile.ZipFile("zip64.npz", "w") as z:
    b = io.BytesIO()
    np.save(b, x)
    with z.open("pixels.npy", "w", force_zip64=True) as f:
        f.write(b.getvalue())
