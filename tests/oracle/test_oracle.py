"""Every graph, container and type: a tiny model is written, run by the engine, and compared with the oracle.

    test_oracle.py GRAPH [ROW]      the rows of one graph of models.py (whose names contain ROW)
    test_oracle.py --search [GRAPH...]  find the prompts anew and write them to prompts.json

A row passes when every traced stage is within rel L2 1e-5 of the oracle, logits within 1e-3, 64 greedy tokens are the
same (an embedding model: its vector within 1e-5), and its logits are, to the bit, those of the rows before it that hold
the same numbers some other way."""
import importlib.util, json, os, sys, tempfile

if not importlib.util.find_spec("numpy"):
    print("skipped: this Python has no numpy")
    sys.exit(77)

import compare, models
from compare import Computed, Difference, Expected

CORE = {"q", "k", "v", "q_rope", "k_rope", "attn", "o", "x_attn", "gate", "up", "f", "down", "out"}
EVERY_TERNARY = ["tq2_0", "tq1_0", "iq2_bn", "iq1_bn"]
FLOATS = ["f32", "f16", "bf16"]
EXACT = ["exact-f32", "exact-f16", "exact-bf16"]


class Row:
    """Write with maker(tiny) and open `path` of what it gives. embd, head: the values of the ends; flags: the dump's;
    permuted, scales: which oracle (models.Tiny.oracle); follow: a greedy run too."""

    def __init__(self, name, maker, path="model.gguf", embd="grid", head=None, flags=(), permuted=None, scales="one",
                 follow=True):
        self.name, self.maker, self.path, self.flags = name, maker, path, tuple(flags)
        self.embd, self.head, self.permuted, self.scales, self.follow = embd, head, permuted, scales, follow
        # What an oracle model is made from; the layout of I2_S is no part of it.
        self.same = embd, head, permuted, scales, "--weight-only" in flags


def gguf(name, weights="i2_s", embd_type="f16", head_type=None, path="model.gguf", embd="grid", head=None, flags=(),
         permuted=None, scales="one", follow=True, **how):
    how.update(embd=embd_type, head=head_type, permuted=permuted, scales=scales)
    return Row(name, lambda tiny: tiny.gguf(weights, **how), path, embd, head, flags, permuted, scales, follow)


def hf(name, permuted=None, scales="one", follow=True, **how):
    return Row(name, lambda tiny: tiny.hf(**how), "", permuted=permuted, scales=scales, follow=follow)


def types(weights, **how):
    return [gguf(w, w, **how) for w in weights]


def hf_rows(**how):
    return [hf("hf autobitlinear", **how), hf("hf autobitlinear, f32 scales", scale="f32", floats="f32", **how),
            hf("hf autobitlinear, 3 shards", shards=3, **how),
            hf("hf bitlinear, divides", linear_class="bitlinear", scale="f32", **how),
            hf("hf no linear_class, divides", linear_class=None, scale="f32", floats="f16", **how),
            hf("hf bitlinear, bf16 scales", linear_class="bitlinear", scales="inverse-bf16", **how),
            *(hf(f"hf online {m}", masters=m, **how) for m in FLOATS)]


LAYOUTS = [gguf(f"i2_s layout {l}", f"i2_s-{l}", flags=("--i2s-layout", l)) for l in "bc"]
QUANTISED = ["q8_0", "q6_k", "q5_0", "q4_0"]
HEADS = {"head_type": "f16"}

ROWS = {
    "2b4t": [
        *types(["i2_s"]), *LAYOUTS, *types(EVERY_TERNARY + FLOATS + EXACT),
        *(gguf(f"{w}, .scale", w, scale_tensors=True) for w in ["i2_s", *EVERY_TERNARY, *EXACT]),
        gguf("GGUF v2", version=2), gguf("alignment 64", alignment=64), gguf("norms f16", norms="f16"),
        gguf("norms bf16", norms="bf16"), gguf("3 parts", split=3, path="model-00001-of-00003.gguf"),
        *(gguf(f"embedding {t}", embd_type=t) for t in ["f32", "bf16", "q8_0"]),
        *(gguf(f"embedding {q} as {t}", embd_type=t, embd=q) for q in QUANTISED for t in ("f32", q)),
        *hf_rows(),
        *(gguf(f"{w}, weights only", w, flags=("--weight-only",)) for w in ["i2_s", "tq2_0", "iq1_bn", "exact-f16"]),
        *(gguf(f"{w}, a scale a row", w, scales="rows") for w in EVERY_TERNARY),
    ],
    "2b4t-untied": [
        gguf("i2_s", **HEADS),
        *(gguf(f"head {t}", head_type=t) for t in ["f32", "bf16", "q8_0"]),
        *(gguf(f"head {q} as {t}", head_type=t, head=q) for q in QUANTISED for t in ("f32", q)),
        hf("hf autobitlinear"),
    ],
    "bitnet-25": [gguf("i2_s"), gguf("i2_s, the embedding again as output", head_type="copy"), *types(["tq2_0"])],
    "bitnet": [*types(["i2_s"] + EVERY_TERNARY + ["f16"]), *LAYOUTS,
               *(gguf(f"{w}, .scale", w, scale_tensors=True) for w in ["exact-f16", "tq1_0", "iq2_bn"])],
    "bitnet-tail": [*types(["i2_s", "iq2_bn", "iq1_bn", "f16", "exact-f16"]), *LAYOUTS],
    "1bitllm": [*types(["i2_s", "f16", "exact-bf16"]), LAYOUTS[1],
                hf("hf f16 masters", masters="f16", linear_class=None),
                hf("hf f32 masters", masters="f32", floats="f32", linear_class=None)],
    "llama": [
        *types(["i2_s"] + EVERY_TERNARY + ["f16"], **HEADS),
        gguf("i2_s, half-rotated", permuted=False, keys={"tern.rope": ("str", "half")}, **HEADS),
        *hf_rows(permuted=False),
        gguf("i2_s, weights only", flags=("--weight-only",), **HEADS),
        gguf("tq2_0, weights only", "tq2_0", flags=("--weight-only",), **HEADS),
    ],
    "llama-freqs": types(["i2_s", "tq2_0"]),
    "falcon3": [*types(["i2_s", "tq2_0", "iq2_bn"], **HEADS),
                gguf("i2_s, half-rotated", permuted=False, keys={"tern.rope": ("str", "half")}, **HEADS),
                hf("hf bitlinear, divides", linear_class="bitlinear", scale="f32", permuted=False)],
    "qwen3-last": [gguf("i2_s", norms="f16"), *types(["tq2_0", "iq2_bn", "bf16"]), hf("hf online", masters="bf16")],
    "qwen3-mean": [gguf("i2_s", norms="f16"), *types(["tq1_0"]), hf("hf online", masters="bf16")],
    "gemma3-last": [gguf("i2_s", norms="f16"), *types(["tq2_0", "iq1_bn", "bf16"]), hf("hf online", masters="bf16")],
    "gemma3-mean": [gguf("i2_s", norms="f16"), *types(["tq1_0"]), hf("hf online", masters="bf16")],
    "gemma3-window": [*types(["i2_s"]), hf("hf online", masters="bf16")],
    "distill-qwen3": [*types(["i2_s", "tq2_0"]), hf("hf autobitlinear"), hf("hf online", masters="bf16")],
    "distill-gemma3": [*types(["i2_s", "tq2_0"]), hf("hf autobitlinear"), hf("hf online", masters="bf16")],
    "qwen3-rms": [*types(["i2_s"]), hf("hf bitlinear, divides", linear_class="bitlinear", scale="f32"),
                  hf("hf autobitlinear")],
    "paper": types(["i2_s", "iq2_bn", "bf16"]),
    "b1": [*types(["i2_s"] + EVERY_TERNARY + FLOATS), gguf("exact-f16", "exact-f16"), *LAYOUTS,
           hf("hf autobitlinear"), hf("hf online", masters="bf16")],
    # Values of one scale are small integers times one number, and rounding them to few levels meets exact halves at
    # every other token: a long run would be a matter of luck. A scale a row, all different, ends that.
    "a4.8": [*types(["i2_s", "tq2_0", "iq1_bn"], follow=False), hf("hf autobitlinear", follow=False, floats="f32"),
             gguf("iq2_bn, a scale a row", "iq2_bn", scales="fine")],
    "a4.8-kv4": [*types(["i2_s", "tq1_0"], follow=False), gguf("iq2_bn, a scale a row", "iq2_bn", scales="fine")],
    "v2-a8": types(["i2_s", "tq2_0", "f16"]),
    "v2": [*types(["i2_s", "tq2_0", "iq2_bn"]), hf("hf autobitlinear")],
    "weight-only": types(["i2_s", "tq2_0", "exact-f16", "f16"]),
}


# How the work is cut must not show either.
for rows in ROWS.values():
    whole = rows[0]
    rows.insert(1, Row(f"{whole.name}, 3 threads, 3 rows at once", whole.maker, whole.path, whole.embd, whole.head,
                       (*whole.flags, "--threads", "3", "--batch", "3"), whole.permuted, whole.scales, whole.follow))


def needed(model):
    """The stages that the engine has to trace."""
    norms = {n for n in model.layers[0] if n.endswith("_norm") and n not in ("attn_q_norm", "attn_k_norm")}
    return {f"l{i}.{s}" for i in range(model.spec.n_layer) for s in CORE | norms} | {"final_norm"}


def write(directory, files):
    for name, data in files.items():
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)


class Bench:
    """The models and expectations of one graph, each made once."""

    def __init__(self, graph):
        self.graph, self.tinies, self.expected, self.first = graph, {}, {}, {}

    def tiny(self, row):
        key = row.embd, row.head
        if key not in self.tinies:
            self.tinies[key] = models.Tiny(self.graph, *key)
        return self.tinies[key]

    def expect(self, row):
        if row.same not in self.expected:
            name = "/".join([self.graph, *(str(s) for s in row.same)])
            model = self.tiny(row).oracle(row.permuted, row.scales)
            self.expected[row.same] = Expected(name, model, "--weight-only" in row.flags, row.follow)
        return self.expected[row.same]

    def run(self, row):
        expected = self.expect(row)
        with tempfile.TemporaryDirectory(prefix="tern-oracle-") as directory:
            write(directory, row.maker(self.tiny(row)))
            computed = Computed(os.path.join(directory, row.path), expected, row.flags)
        words = compare.check(expected, computed, needed(expected.model))
        name, first = self.first.setdefault(row.same, (row.name, computed))
        if not compare.same_bits(first, computed):
            raise Difference(f"not the bits of {name}")
        return words if first is computed else f"{words}, bits of {name}"


def search(graphs):
    for graph in graphs:
        bench = Bench(graph)
        for row in ROWS[graph]:
            bench.expect(row)
        found = {k: v for e in bench.expected.values() for k, v in e.found.items()}
        with open(compare.FOUND_FILE, "a+") as f:
            f.seek(0)
            found = {**json.loads(f.read() or "{}"), **found}
            f.truncate(0)
            json.dump(found, f, indent=0, sort_keys=True)
        print(graph, flush=True)
    return 0


def main():
    if sys.argv[1:2] == ["--search"]:
        return search(sys.argv[2:] or ROWS)
    graph, only = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    bench, failed = Bench(graph), 0
    for row in ROWS[graph]:
        if only not in row.name:
            continue
        try:
            print(f"ok    {graph}: {row.name}: {bench.run(row)}", flush=True)
        except Difference as e:
            failed += 1
            print(f"FAIL  {graph}: {row.name}: {e}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    assert set(ROWS) == set(models.GRAPHS)
    sys.exit(main())
