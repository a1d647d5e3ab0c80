"""BentoML with the model in onnxruntime; started by bentoml serve. MODEL, OUTPUT and THREADS come from the environment."""
import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Model:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api
    def predict(self, input_ids: list, attention_mask: list, token_type_ids: list) -> list:
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.session.run([os.environ["OUTPUT"]], {k: np.asarray(v, np.int64) for k, v in feeds.items()})[0].tolist()
