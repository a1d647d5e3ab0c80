"""Needs the packages of .deps/venv-peers (make deps-bench)."""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

try:
    import common as c
except ImportError as e:
    raise unittest.SkipTest("needs the packages of .deps/venv-peers: %s" % e)


class TestEnvironment(unittest.TestCase):
    def test_a_peer_that_cannot_be_installed(self):
        def fails(*_):
            raise subprocess.CalledProcessError(1, "pip")
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(c, "DEPS", Path(folder)), mock.patch.object(c, "install", fails):
            with self.assertRaisesRegex(c.Missing, "nosuch cannot be installed from benchmarks/openvino.txt"):
                c.environment("nosuch", c.ROOT / "benchmarks/openvino.txt")

    def test_is_installed_once(self):
        made = []
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(c, "DEPS", Path(folder)), mock.patch.object(c, "install", lambda path, _: (path.mkdir(), made.append(path))):
            for _ in range(2):
                c.environment("peer", c.ROOT / "benchmarks/openvino.txt")
        self.assertEqual(len(made), 1)

    def test_one_line_instead_of_a_traceback(self):
        for what, line in (("c.Missing('no peer')", "bench: error: no peer\n"), ("KeyboardInterrupt", "bench: stopped\n")):
            p = subprocess.run([sys.executable, "-B", "-c", "import common as c; raise " + what], cwd=Path(c.__file__).parent, stderr=subprocess.PIPE, text=True)
            self.assertNotEqual(p.returncode, 0)
            self.assertEqual(p.stderr, line)

    def test_results_of_another_processor(self):
        new, newer, old = {"processor": "A family 1 model 2", "flags": ["avx2"]}, {"processor": "A family 2 model 1", "flags": ["avx2"]}, {"flags": ["avx2", "fma"]}
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(c, "RESULTS", Path(folder)):
            path = Path(folder) / "x.json"
            self.assertEqual(c.result_path("x", new), path) # there is none yet
            for there, here, want in ((new, new, path), (new, newer, Path(folder) / "a-family-2-model-1/x.json"), (old, {**new, "flags": old["flags"]}, path), (old, new, Path(folder) / "a-family-1-model-2/x.json")):
                path.write_text(json.dumps({"machine": there}))
                self.assertEqual(c.result_path("x", here), want)

    def test_pinned(self):
        self.assertEqual(set(c.pinned(c.ROOT / "benchmarks/openvino.txt", "nncf", "openvino")), {"nncf", "openvino"})
        with self.assertRaises(KeyError):
            c.pinned(c.ROOT / "benchmarks/openvino.txt", "torch")


if __name__ == "__main__":
    unittest.main()
