"""The server as kserve's own clients see it, over REST and gRPC.

A process of its own: kserve and tritonclient describe the same messages and cannot be imported together.
usage: kserve_client.py HOST:PORT GRPC_HOST:PORT, with the model minilm uploaded.
"""

import sys
import unittest

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

HTTP, GRPC = sys.argv[1:3]
MODEL = "minilm"
IDS = np.arange(18, dtype=np.int64).reshape(2, 9) + 1000
ARRAYS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "token_type_ids": np.zeros_like(IDS)}


class KServe(unittest.IsolatedAsyncioTestCase):
    """kserve's own client for both transports."""

    def request(self, binary):
        made = []
        for name, array in ARRAYS.items():
            tensor = InferInput(name=name, shape=list(array.shape), datatype="INT64")
            tensor.set_data_from_numpy(array, binary_data=binary)
            made.append(tensor)
        return InferRequest(model_name=MODEL, infer_inputs=made, request_id="k1")

    seen = None

    def agree(self, values):
        """What either transport answers, in either form, is the same."""
        if KServe.seen is None:
            KServe.seen = values
        np.testing.assert_allclose(values, KServe.seen, atol=1e-5)

    async def test_rest(self):
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        base = f"http://{HTTP}"
        self.assertTrue(await client.is_server_live(base))
        self.assertTrue(await client.is_server_ready(base))
        self.assertTrue(await client.is_model_ready(base, MODEL))
        for binary in (False, True):
            answer = await client.infer(base, self.request(binary), model_name=MODEL)
            self.assertEqual((answer.model_name, answer.id), (MODEL, "k1"))
            values = answer.outputs[0].as_numpy()
            self.assertEqual(values.shape[0], 2)
            self.agree(values)
        with self.assertRaisesRegex(httpx.HTTPStatusError, "nobody"):
            await client.infer(base, self.request(True), model_name="nobody")
        await client.close()

    async def test_grpc(self):
        client = InferenceGRPCClient(GRPC)
        self.assertTrue(await client.is_server_live())
        self.assertTrue(await client.is_server_ready())
        self.assertTrue(await client.is_model_ready(MODEL))
        for binary in (False, True):
            answer = await client.infer(self.request(binary))
            self.agree(answer.outputs[0].as_numpy())
        request = self.request(True)
        request.model_name = "nobody"
        with self.assertRaises(grpc.RpcError) as caught:
            await client.infer(request)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        await client.close()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
