"""A runtime of MLServer with the model in onnxruntime (MLServer has none of its own for ONNX)."""
import os

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Model(MLModel):
    async def load(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        feeds = {i.name: np.asarray(i.data, np.int64).reshape(i.shape) for i in payload.inputs}
        output = self.session.run([os.environ["OUTPUT"]], feeds)[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", output)])
