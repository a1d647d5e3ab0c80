import unittest

import log

# Lines as LoadGen 6.0 writes them, shortened.
DETAIL = """:::MLLOG {"key": "loadgen_version", "value": "6.0.17 @ b1ac5a8", "time_ms": 0.01, "namespace": "mlperf::logging"}
:::MLLOG {"key": "result_validity", "value": "INVALID", "time_ms": 1.0}
not a log line
:::MLLOG {"key": "result_99.00_percentile_latency_ns", "value": 61743211, "time_ms": 1.0}
:::MLLOG {"key": "result_validity", "value": "VALID", "time_ms": 2.0}
"""


class TestLog(unittest.TestCase):
    def test_detail(self):
        d = log.detail(DETAIL)
        self.assertEqual(d["result_validity"], "VALID")  # the last one counts
        self.assertAlmostEqual(log.latency_ms(d, 99), 61.743211)
        with self.assertRaises(KeyError):
            log.latency_ms(d, 90)

    def test_classes(self):
        text = '[{"seq_id": 0, "qsl_idx": 7, "data": "03000000"}, {"seq_id": 1, "qsl_idx": 2, "data": ""}, {"seq_id": 2, "qsl_idx": 5, "data": "FFFFFFFF"}]'
        self.assertEqual(log.classes(text), {7: 3, 5: -1})

    def test_void(self):
        self.assertEqual(log.void(0, None, 0, 0.02, 0.1, 0.2, 5), [])
        self.assertEqual(log.void(0, None, None, 0.02, 0.1, 0.2, 5), [])  # a server that counts no hits
        self.assertEqual(len(log.void(3, "HTTP 503", 2, 0.8, 0.1, 6.0, 5)), 4)

    def test_verdict(self):
        met = {"result_perf_constraints_met": True, "result_min_duration_met": True}
        self.assertEqual(log.verdict({}), "")
        self.assertEqual(log.verdict({"result_validity": "VALID", **met}), "")
        self.assertEqual(log.verdict({"result_validity": "INVALID", **met}), log.TOO_FEW)
        self.assertEqual(log.verdict({"result_validity": "INVALID", **met, "result_min_duration_met": False}), "too short")
        self.assertEqual(log.verdict({"result_validity": "INVALID", **met, "result_perf_constraints_met": False}), "past the target")


if __name__ == "__main__":
    unittest.main()
