"""Needs the packages of .deps/venv-peers (make deps-bench)."""
import unittest

try:
    import levels_cpu
except ImportError as e:
    raise unittest.SkipTest("needs the packages of .deps/venv-peers: %s" % e)


class TestSplit(unittest.TestCase):
    def test_skips_what_the_processor_lacks(self):
        def run(level):
            if level in ("amx", "avx512-bf16"):
                raise RuntimeError("fewbit bench: exit 1: engine unavailable: FEWBIT_CPU_LEVEL=%s cannot be taken: this processor has no such level" % level)
        self.assertEqual(levels_cpu.split(["amx", "avx512-bf16", "avx2"], run), (["avx2"], ["amx", "avx512-bf16"]))

    def test_tells_of_other_failures(self):
        def run(level):
            raise RuntimeError("fewbit bench: exit 1: no such file")
        with self.assertRaisesRegex(RuntimeError, "no such file"):
            levels_cpu.split(["avx2"], run)


if __name__ == "__main__":
    unittest.main()
