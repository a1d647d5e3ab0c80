#!/usr/bin/env python3
"""Writes the images of this folder and golden.json: what Pillow and numpy make of them.

All pictures are computed here. Exact results are kept as SHA-256; decoded JPEG
and lossy WebP, which need not be exact, in raw.npz.zlib.
Run in this folder: python3 gen_golden.py
"""
import base64, hashlib, io, json, math, zlib
import numpy as np
from PIL import Image, ImageOps
import PIL

rng = np.random.default_rng(7)

def picture(w, h):
    """Gradients, a disc, stripes and a little noise: edges of every colour."""
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([x * 255 // max(w - 1, 1), y * 255 // max(h - 1, 1), (x + y) * 255 // max(w + h - 2, 1)], -1).astype(np.int32)
    a[(x - w * .6) ** 2 + (y - h * .4) ** 2 < (min(w, h) * .25) ** 2] = (220, 30, 60)
    a[(x // 3 % 4 == 0) & (y > h * .7)] = (10, 200, 250)
    a += rng.integers(-6, 7, a.shape)
    return np.clip(a, 0, 255).astype(np.uint8)

sha = lambda a: hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()
gold = {"pillow": PIL.__version__, "decode": [], "lossy": [], "resize": [], "prepare": []}
raw = b""

def save(name, im, lossy=False, **kw):
    global raw
    im.save(name, **kw)
    a = np.asarray(ImageOps.exif_transpose(Image.open(name)).convert("RGB"))
    h, w, _ = a.shape
    if lossy:
        gold["lossy"].append({"file": name, "width": w, "height": h, "at": len(raw)})
        raw += a.tobytes()
    else:
        gold["decode"].append({"file": name, "width": w, "height": h, "sha": sha(a)})

rgb = Image.fromarray(picture(61, 47))
save("rgb.png", rgb)
rgba = np.dstack([picture(40, 30), rng.integers(0, 256, (30, 40), np.uint8)])
save("rgba.png", Image.fromarray(rgba))
save("gray.png", rgb.convert("L"))
save("palette.png", rgb.quantize(32))
save("onebit.png", rgb.convert("1"))
pal = rgb.quantize(16)
save("palette_alpha.png", pal, transparency=3)
save("gray_alpha.png", rgb.convert("LA"))
save("rgba.webp", Image.fromarray(rgba), lossless=True, exact=True)
save("lossless.webp", Image.fromarray(picture(40, 30)), lossless=True)
big = Image.fromarray(picture(97, 65))
for sub, tag in ((0, "444"), (1, "422"), (2, "420")):
    save(f"q90_{tag}.jpg", big, True, quality=90, subsampling=sub)
save("q60_420.jpg", big, True, quality=60, subsampling=2)
save("progressive.jpg", big, True, quality=85, progressive=True)
save("gray.jpg", rgb.convert("L"), True, quality=90)
save("cmyk.jpg", rgb.convert("CMYK"), True, quality=90)
save("tiny.jpg", Image.fromarray(picture(3, 5)), True, quality=90)
for w, h in ((40, 30), (41, 31)):
    save(f"lossy{w}.webp", Image.fromarray(picture(w, h)), quality=80)
save("lossy_alpha.webp", Image.fromarray(rgba), quality=80)
for o in range(2, 9):
    ex = Image.Exif(); ex[0x0112] = o
    save(f"exif{o}.jpg", Image.fromarray(picture(20, 12)), True, quality=95, subsampling=0, exif=ex)

ex = Image.Exif(); ex[0x0112] = 6
save("exif6.png", Image.fromarray(picture(20, 12)), exif=ex)
save("exif6.webp", Image.fromarray(picture(20, 12)), lossless=True, exif=ex)

src = Image.open("rgb.png").convert("RGB")
for f in range(6):
    for w, h in ((61, 20), (30, 47), (224, 224), (7, 5), (1, 1), (60, 46), (64, 3), (200, 11), (40, 5), (60, 44), (60, 45), (50, 25), (50, 24), (62, 48)):
        gold["resize"].append({"filter": f, "width": w, "height": h, "sha": sha(np.asarray(src.resize((w, h), f)))})
        if f in (2, 3):
            gold["resize"].append({"filter": f, "width": w, "height": h, "gray": True, "sha": sha(np.asarray(src.convert("L").resize((w, h), f)))})

def center_crop(a, ch, cw):  # transformers.image_transforms.center_crop
    h, w = a.shape[:2]
    top, left = (h - ch) // 2, (w - cw) // 2
    if top >= 0 and top + ch <= h and left >= 0 and left + cw <= w:
        return a[top:top + ch, left:left + cw]
    nh, nw = max(ch, h), max(cw, w)
    b = np.zeros((nh, nw) + a.shape[2:], a.dtype)
    tp, lp = math.ceil((nh - h) / 2), math.ceil((nw - w) / 2)
    b[tp:tp + h, lp:lp + w] = a
    top, left = top + tp, left + lp
    return b[max(0, top):min(nh, top + ch), max(0, left):min(nw, left + cw)]

def shortest(im, e, f):
    w, h = im.size
    return im.resize((e, int(e * h / w)) if w <= h else (int(e * w / h), e), f)

def norm(a, scale=1 / 255, mean=None, std=None):
    x = (a.astype(np.float64) * scale).astype(np.float32)
    if mean is not None:
        x = (x - np.array(mean, np.float32)) / np.array(std, np.float32)
    return x

CLIP = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
IMNET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
HALF = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
def case(name, cfg, out, dims, file="rgb.png"):
    """out: HWC float32"""
    gold["prepare"].append({"name": name, "config": cfg, "file": file, "dims": dims, "sha": sha(out.transpose(2, 0, 1))})

case("default", None, norm(np.asarray(src.resize((32, 24), 2)), 1 / 255, [0.5] * 3, [0.5] * 3), [-1, 3, 24, 32])
case("vit", dict(image_processor_type="ViTImageProcessor", do_resize=True, size={"height": 32, "width": 32}, resample=2, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, **HALF),
     norm(np.asarray(src.resize((32, 32), 2)), 1 / 255, *HALF.values()), [1, 3, 32, 32])
case("vit old", dict(feature_extractor_type="ViTFeatureExtractor", do_resize=True, size=32, resample=2, do_normalize=True, **HALF), norm(np.asarray(src.resize((32, 32), 2)), 1 / 255, *HALF.values()), [-1, 3, -1, -1])
case("clip", dict(image_processor_type="CLIPImageProcessor", do_resize=True, size={"shortest_edge": 32}, resample=3, do_center_crop=True, crop_size={"height": 32, "width": 32}, do_rescale=True, rescale_factor=0.00392156862745098, do_normalize=True, **CLIP),
     norm(center_crop(np.asarray(shortest(src, 32, 3)), 32, 32), 0.00392156862745098, *CLIP.values()), [-1, 3, 32, 32])
case("clip old", dict(feature_extractor_type="CLIPFeatureExtractor", do_resize=True, size=32, resample=3, do_center_crop=True, crop_size=32, do_normalize=True, **CLIP),
     norm(center_crop(np.asarray(shortest(src, 32, 3)), 32, 32), 1 / 255, *CLIP.values()), [-1, 3, 32, 32])
case("convnext", dict(feature_extractor_type="ConvNextFeatureExtractor", crop_pct=0.875, do_resize=True, size=28, resample=3, do_normalize=True, **IMNET),
     norm(center_crop(np.asarray(shortest(src, int(28 / 0.875), 3)), 28, 28), 1 / 255, *IMNET.values()), [-1, 3, 28, 28])
case("crop with padding", dict(do_resize=False, do_center_crop=True, crop_size={"height": 60, "width": 50}, do_normalize=False), norm(center_crop(np.asarray(src), 60, 50)), [-1, 3, 60, 50])
case("crop odd", dict(do_resize=False, do_center_crop=True, crop_size={"height": 20, "width": 71}, do_normalize=False), norm(center_crop(np.asarray(src), 20, 71)), [-1, 3, 20, 71])
case("no rescale", dict(do_resize=True, size={"height": 9, "width": 11}, resample=1, do_rescale=False, do_normalize=False), np.asarray(src.resize((11, 9), 1)).astype(np.float32), [-1, 3, 9, 11])
case("tensorflow", dict(do_resize=True, size={"height": 9, "width": 11}, resample=2, do_rescale=True, rescale_factor=1 / 127.5, do_normalize=True, image_mean=[1, 1, 1], image_std=[1, 1, 1]),
     norm(np.asarray(src.resize((11, 9), 2)), 1 / 127.5, [1] * 3, [1] * 3), [-1, 3, 9, 11])
case("gray", None, norm(np.asarray(src.convert("L").resize((28, 28), 2))[..., None], 1 / 255, [0.5], [0.5]), [-1, 1, 28, 28])
json.dump(gold, open("golden.json", "w"), indent=1)
open("lossy.raw.z", "wb").write(zlib.compress(raw, 9))
