"""EfficientNet-lite0's features with a linear head on Fashion-MNIST: INT8 against FP32 on the 10,000 test images.

The head is a logistic regression on the FP32 features of 5,000 training images,
folded into the graph in place of the one for ImageNet. fewbit quantizes encoder
and head with its default command, calibrated on 64 other training images. The
images are 28 x 28 and grey; they are enlarged bicubically to 224 x 224. The judge
is onnxruntime in Python; the test images judge and do nothing else.
"""
import gzip
import math

import numpy as np
import onnx
from onnx import numpy_helper

import common as c

FASHION = c.DEPS / "data/fashion-mnist"
TRAIN, CALIB, BATCH, SIZE, BAR = 5000, 64, 16, 224, 0.003


def load(name, count):
    """The first images as bytes [count,28,28], and their classes."""
    def array(kind, head):
        path = FASHION / ("%s-%s-ubyte.gz" % (name, kind))
        if not path.exists():
            raise SystemExit("bench: %s is missing; run python3 tools/fetch/fetch.py fashion-mnist" % path.relative_to(c.ROOT))
        with gzip.open(str(path)) as f:
            return np.frombuffer(f.read(), np.uint8, offset=head)
    return array("images-idx3", 16).reshape(-1, 28, 28)[:count], array("labels-idx1", 8)[:count].astype(int)


def enlarged(images):
    """As EfficientNet-lite0 takes them: [n,3,224,224], -1..1."""
    from PIL import Image
    x = np.stack([np.asarray(Image.fromarray(i).resize((SIZE, SIZE), Image.BICUBIC), np.float32) for i in images]) / 127.5 - 1
    return np.repeat(x[:, None], 3, 1)


def outputs(path, images):
    s, out = c.session(path), []
    for i in range(0, len(images), BATCH):
        out.append(s.run(None, {"input": enlarged(images[i:i + BATCH])})[0])
        if i % 2000 < BATCH:
            c.say("%s: %d of %d images" % (path.name, i, len(images)))
    return np.concatenate(out)


def features(path):
    """The model with the values in front of its head as output."""
    m = onnx.load(str(c.EFFICIENTNET / "model.onnx"))
    head = m.graph.node[-1]
    m.graph.node.remove(head)
    del m.graph.output[:]
    m.graph.output.append(onnx.helper.make_tensor_value_info(head.input[0], onnx.TensorProto.FLOAT, ["batch", 1280]))
    onnx.save(m, str(path))


def classifier(path, x, y):
    """Trains the head and writes the model with it."""
    from sklearn.linear_model import LogisticRegression
    mean, std = x.mean(0), x.std(0) + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=300).fit((x - mean) / std, y)
    w = fit.coef_ / std
    b = fit.intercept_ - w @ mean
    m = onnx.load(str(c.EFFICIENTNET / "model.onnx"))
    head = m.graph.node[-1]
    new = {head.input[1]: w, head.input[2]: b}
    for t in m.graph.initializer:
        if t.name in new:
            t.CopyFrom(numpy_helper.from_array(new[t.name].astype(np.float32), t.name))
    m.graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(b)
    onnx.checker.check_model(m)
    onnx.save(m, str(path))


def main():
    r = c.Result("fashion", "EfficientNet-lite0 on Fashion-MNIST", __doc__.strip())
    images, labels = load("train", TRAIN + CALIB)
    test, y = load("t10k", 10000)
    model, out, calib = c.WORK / "fashion.onnx", c.WORK / "fashion-int8.onnx", c.WORK / "fashion-calib.npz"
    cut = c.WORK / "fashion-features.onnx"
    features(cut)
    classifier(model, outputs(cut, images[:TRAIN]), labels[:TRAIN])
    np.savez(str(calib), input=enlarged(images[TRAIN:]))
    c.fewbit("quantize", model, "-o", out, "--calib", calib, "--samples", CALIB - 8, "--force", "--no-latency")
    a, b = outputs(model, test).argmax(1), outputs(out, test).argmax(1)
    n, fp32, int8, same = len(y), int((a == y).sum()), int((b == y).sum()), int((a == b).sum())
    difference = (b == y).astype(float) - (a == y)
    half = 1.96 * difference.std() / math.sqrt(n)
    mean = difference.mean()
    show = lambda k: "%.2f %% [%.2f, %.2f]" % ((100 * k / n,) + tuple(100 * v for v in c.wilson(k, n)))
    r.row("EfficientNet-lite0 features and head, Fashion-MNIST, %d images" % n, show(int8), "FP32: " + show(fp32), None, "within 0.3 points", bool(mean >= -BAR), n=n, fp32_right=fp32,
          int8_right=int8, difference_points=[100 * mean, 100 * (mean - half), 100 * (mean + half)])
    r.row("the same: answers equal to FP32", show(same), "", None, n=n)
    r.save()


if __name__ == "__main__":
    main()
