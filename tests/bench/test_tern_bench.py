"""tern-bench from outside: exit codes, the table, JSON whose numbers fit together, exact accounting of bytes."""
import json
import os
import subprocess
import tempfile
import unittest

BUILD = os.environ["TERN_BUILD"]
BENCH = os.path.join(BUILD, "bench", "tern-bench")
MODEL_TOOL = os.path.join(BUILD, "model", "tern-model")


def run(*args):
    return subprocess.run([BENCH, *args], capture_output=True, text=True, timeout=200)


class TernBench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.model = os.path.join(cls.dir.name, "tiny.gguf")
        subprocess.run([MODEL_TOOL, "synth", "--shape", "tiny", cls.model], check=True, timeout=60)

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def test_usage(self):
        for args in ([], ["-m"], ["--frobnicate"], ["-m", "x", "extra"], ["-m", "x", "-r", "0"], ["-m", "x", "-p", "1,"],
                     ["-m", "x", "-t", "x"], ["-m", "x", "-b", "0"], ["-m", "x", "--kv", "f64"], ["-m", "x", "-p", ",".join("1" * 17)]):
            r = run(*args)
            self.assertEqual(r.returncode, 2, args)
            self.assertIn("Usage:", r.stderr)
            self.assertEqual(r.stdout, "")
        self.assertEqual(run("--help").returncode, 0)
        self.assertIn("tern-bench", run("--version").stdout)

    def test_failures(self):
        for args in (["-m", "/nonexistent"], ["-m", self.model, "-p", "100000"], ["-m", MODEL_TOOL]):
            r = run(*args)
            self.assertEqual(r.returncode, 1, args)
            self.assertTrue(r.stderr.startswith("tern-bench: "), r.stderr)
            self.assertEqual(r.stdout, "")

    def test_json(self):
        r = run("-m", self.model, "-p", "16,40", "-n", "4", "-d", "0,32", "-b", "1,3", "-t", "1,2", "-r", "2", "-c", "24",
                "--json")
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        j = json.loads(r.stdout)
        self.assertEqual(j["architecture"], "bitnet-b1.58")
        self.assertEqual(j["file_bytes"], os.path.getsize(self.model))
        # Two bits a weight, padded to 128 columns, and the norms in floats; the tied head in half precision.
        weights = 2 * (256 * (2 * 256 + 2 * 128) + 3 * 256 * 768) // 4
        norms = 4 * (2 * (3 * 256 + 768) + 256)
        self.assertEqual(j["weight_bytes"], weights + norms)
        self.assertEqual(j["head_bytes"], 512 * 256 * 2)
        self.assertGreater(j["peak_rss_bytes"], j["weight_bytes"])
        self.assertGreater(j["cold_seconds"], 0)
        kinds = [m["kind"] for m in j["measures"]]
        self.assertEqual((kinds.count("prefill"), kinds.count("decode")), (4, 8))
        for m in j["measures"]:
            self.assertGreater(m["tokens_per_second"], 0)
            self.assertLessEqual(m["least"], m["tokens_per_second"])
            self.assertLessEqual(m["tokens_per_second"], m["most"])
            self.assertIn("joules_per_token", m)
            if m["kind"] == "prefill":
                continue
            self.assertGreater(m["memory_bytes_per_second"], 1e8)
            self.assertAlmostEqual(m["share_of_memory"], m["bytes_per_second"] / m["memory_bytes_per_second"], 4)
            self.assertAlmostEqual(m["bytes_per_second"] / (m["bytes_per_token"] * m["tokens_per_second"]), 1, 3)
            once = (j["weight_bytes"] + j["head_bytes"]) / m["batch"]
            kv = m["bytes_per_token"] - once
            # The mean of depth + 1 .. depth + 4 tokens, keys and values of two layers and two heads of 64.
            tokens = m["depth"] + 2.5
            self.assertAlmostEqual(kv / (tokens * 2 * 2 * 128), 2, 2, m)      # f16

    def test_text(self):
        r = run("-m", self.model, "-p", "0", "-n", "2", "-r", "1", "-t", "1", "--cache", os.path.join(self.dir.name, "kept"))
        self.assertTrue(os.listdir(os.path.join(self.dir.name, "kept")))
        self.assertEqual((r.returncode, r.stderr), (0, ""))
        self.assertIn("decode", r.stdout)
        self.assertNotIn("prefill", r.stdout)
        self.assertNotIn("nan", r.stdout)


if __name__ == "__main__":
    unittest.main()
