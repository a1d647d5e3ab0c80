"""Needs the packages of .deps/venv-peers (make deps-bench)."""
import subprocess
import sys
import unittest

try:
    import servers
except ImportError as e:
    raise unittest.SkipTest("needs the packages of .deps/venv-peers: %s" % e)

MB = 10**6
PARENT = """
import subprocess, sys
held = b"x" * 40_000_000
worker = subprocess.Popen([sys.executable, "-c", "import sys; held = b'x' * 60_000_000; print(flush=True); sys.stdin.read()"])
worker.wait()
"""


class TestMemory(unittest.TestCase):
    def test_counts_workers(self):
        p = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        p.stdout.readline()  # both hold theirs
        held = servers.memory(p.pid)
        p.stdin.close()
        p.wait(20)
        p.stdout.close()
        self.assertTrue(100 * MB < held < 180 * MB, held)
        self.assertIsNone(servers.memory(p.pid))  # it ended


if __name__ == "__main__":
    unittest.main()
