"""Needs the packages of .deps/venv-peers (make deps-bench)."""
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

    def test_pinned(self):
        self.assertEqual(set(c.pinned(c.ROOT / "benchmarks/openvino.txt", "nncf", "openvino")), {"nncf", "openvino"})
        with self.assertRaises(KeyError):
            c.pinned(c.ROOT / "benchmarks/openvino.txt", "torch")


if __name__ == "__main__":
    unittest.main()
