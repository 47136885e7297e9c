"""Every graph of tests/oracle, from GGUF and from safetensors: inspect tells of it, and what convert writes of it gives the
same logits (or vectors) to the bit as what it was made from."""
import json, os, re, subprocess, sys, tempfile

SOURCE, BUILD = os.environ["TERN_SOURCE"], os.environ["TERN_BUILD"]
sys.path.insert(0, os.path.join(SOURCE, "tests/oracle"))
try:
    import models
except ImportError as e:
    print("skipped:", e)
    sys.exit(77)

TOOL, DUMP = os.path.join(BUILD, "model/tern-model"), os.path.join(BUILD, "tests/engine/test_engine_dump")


def run(*args):
    p = subprocess.run(args, capture_output=True, text=True, timeout=60)
    assert p.returncode == 0, (args, p.stderr)
    return p.stdout


def write(folder, files):
    for name, data in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)


def result(path, pooling):
    out = run(DUMP, path, *map(str, (5, 200, 31, 77, 5, 128)), *(["--embed"] if pooling else []))
    assert '"data"' in out
    return out


def check(path, graph, folder, to):
    """to: arguments of convert."""
    out = os.path.join(folder, "out.gguf")
    run(TOOL, "convert", *to, path, out)
    pooling = graph.spec.get("pooling")
    assert result(out, pooling) == result(path, pooling), (path, to)
    before, after = (json.loads(run(TOOL, "inspect", "--json", p)) for p in (path, out))
    assert before["runs"] and after["runs"]
    for k in "graph", "shape", "parameters", "ternary_parameters", "template", "architecture":
        assert before[k] == after[k], (path, k, before[k], after[k])
    assert "Runs here        yes" in run(TOOL, "inspect", path)


def main():
    for name, graph in models.GRAPHS.items():
        tiny = models.Tiny(name)
        blocks = 64 if all(n % 64 == 0 for n in (tiny.spec.n_embd, tiny.spec.n_ff)) else 1
        kind = "iq2_bn" if blocks == 64 else "i2_s"
        with tempfile.TemporaryDirectory() as d:
            source = "i2_s" if name != "1bitllm" else "f32"
            write(d, tiny.gguf(source))
            check(os.path.join(d, "model.gguf"), graph, d, ["--type", kind])
            if name == "2b4t":
                write(d, tiny.gguf("tq2_0", split=3))
                check(os.path.join(d, next(n for n in os.listdir(d) if "00001" in n)), graph, d, ["--type", "tq1_0"])
            if graph.hf and not graph.keys:         # research variants: tests/oracle has them
                hf = os.path.join(d, "hf")
                write(hf, tiny.hf(masters="bf16") if name == "1bitllm" else tiny.hf())
                check(hf, graph, d, ["--type", kind])
        print("ok", name, "and from safetensors" if graph.hf else "")


main()
