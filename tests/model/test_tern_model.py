"""tern-model as people meet it: help, exit statuses, what inspect says of the shipped model and of odd ones, and perplexity
against a figure that numpy computed from the same weights (data/bitllama2/SOURCE.txt in the shared files)."""
import json, os, re, resource, shutil, struct, subprocess, sys, tempfile

SOURCE, BUILD, SHARED = (os.environ[k] for k in ("TERN_SOURCE", "TERN_BUILD", "TERN_SHARED"))
TOOL = os.path.join(BUILD, "model/tern-model")
BITLLAMA2 = os.path.join(SHARED, "data/bitllama2")
NANO = os.path.join(SOURCE, "models/tern-nano.gguf")
skipped = []


def tool(*args, status=0):
    p = subprocess.run([TOOL, *args], capture_output=True, text=True, timeout=120)
    assert p.returncode == status, (args, p.returncode, p.stdout, p.stderr)
    assert not re.search("Sanitizer|runtime error", p.stderr), p.stderr
    return p.stdout if status == 0 else p.stderr


def inspect(path):
    return json.loads(tool("inspect", "--json", path))


def test_help_and_usage():
    whole = tool("--help")
    for verb in ("inspect", "convert", "synth", "perplexity"):
        assert verb in whole
        assert tool(verb, "--help").startswith(f"Usage: tern-model {verb} ")
        assert "unknown option" in tool(verb, "--nonsense", status=2)
        tool(verb, status=2)
    assert "tern-model" in tool("--version")
    assert "unknown verb" in tool("frobnicate", status=2)
    tool(status=2)
    assert "/nonexistent" in tool("inspect", "/nonexistent", status=1)
    assert "GGUF" in tool("inspect", os.path.join(SOURCE, "README.md"), status=1)


def test_inspect_the_shipped_model():
    text = tool("inspect", NANO)
    for words in ("tern-nano", "ternary weights", "28 tensors of type I2_S", "embedding", "byte-level BPE", "2048 tokens",
                  "bitnet", "Runs here        yes", "squared ReLU", "4, each 256 wide", "pre-tokenizer llama-bpe"):
        assert words in text, (words, text)
    j = inspect(NANO)
    assert j["shape"] == {"layers": 4, "width": 256, "feed_forward": 768, "heads": 4, "kv_heads": 2, "head_width": 64, "context": 512}
    assert j["bytes"] == os.path.getsize(NANO) == sum(r["bytes"] for r in j["tensors"])
    assert abs(sum(r["share"] for r in j["tensors"]) - 1) < 1e-9
    assert 0.2 < j["quantisation"]["zero_share"] < 0.6 and 0 < j["quantisation"]["scale_min"] <= j["quantisation"]["scale_max"]
    assert j["ternary_parameters"] == 4 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 768)
    assert j["runs"] is True and j["why_not"] is None


def string(s):
    return struct.pack("<Q", len(s)) + s


def test_inspect_says_what_is_odd():
    """The official 2B4T file: no pre-tokenizer, a placeholder template, one end token. And a file that cannot be run."""
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "m.gguf")
        tool("synth", "--shape", "tiny", path)
        assert len(inspect(path)["warnings"]) == 1
        with open(path, "rb") as f:
            data = f.read()
        pre = string(b"tokenizer.ggml.pre") + struct.pack("<I", 8) + string(b"llama-bpe")
        eot = string(b"tokenizer.ggml.eot_token_id") + data[data.index(b"tokenizer.ggml.eot_token_id") + 27:][:8]
        template = string(b"tokenizer.chat_template") + struct.pack("<I", 8)
        assert pre in data and eot in data
        room = len(pre) + len(eot) - len(template) - 8
        odd = data.replace(pre, template + string(b"x" * room)).replace(eot, b"")
        odd = odd[:16] + struct.pack("<Q", struct.unpack_from("<Q", odd, 16)[0] - 1) + odd[24:]
        with open(path, "wb") as f:
            f.write(odd)
        j = inspect(path)
        assert j["tokenizer"]["pre"] is None
        for words in ("tokenizer.ggml.pre", "chat template", "<|eot_id|>", "activation"):
            assert any(words in w for w in j["warnings"]), (words, j["warnings"])
        assert j["template"] == "bitnet" and j["runs"] is True
        with open(path, "wb") as f:
            f.write(data.replace(b"blk.1.attn_v.weight", b"blk.1.attn_w.weight"))
        j = inspect(path)
        assert j["runs"] is False and "blk.1.attn_v" in j["why_not"]
        assert "Runs here        no: " in tool("inspect", path)


def test_big_synth_needs_little_memory():
    """A quarter of a gigabyte is written, and far less held."""
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "m.gguf")
        tool("synth", "--shape", "7b", "--layers", "4", path)
        held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        assert os.path.getsize(path) > 4e8, os.path.getsize(path)
        if "asan" not in BUILD:
            assert held < 1e8, held


def test_perplexity():
    if not os.path.exists(os.path.join(BITLLAMA2, "tok512.bin")):
        skipped.append("the shared files have no data/bitllama2")
        return
    sample = os.path.join(BITLLAMA2, "tinystories_sample.txt")
    with tempfile.TemporaryDirectory() as d:
        for name, want in (("bit1M", 1.3258), ("bit3M", 1.1899)):
            path = os.path.join(d, name)
            subprocess.run([os.path.join(BUILD, "tests/engine/bitllama2_convert"), os.path.join(BITLLAMA2, name + ".msb.bin"),
                            os.path.join(BITLLAMA2, "tok512.bin"), path], check=True)
            out = tool("perplexity", path, sample)
            ppl, nats, tokens = re.match(r"perplexity ([\d.]+), ([\d.]+) nats/token, (\d+) tokens", out).groups()
            assert abs(float(nats) / want - 1) < 0.01 and tokens == "1804", out
        assert float(re.search(r"([\d.]+) nats", tool("perplexity", "--context", "32", path, sample))[1]) > want
        # Scales of one number of the file are no 16-bit number, so the two types differ in what can be said at all.
        tool("convert", "--type", "iq2_bn", path, path + ".bn")
        assert tool("perplexity", "--threads", "1", path + ".bn", sample) == tool("perplexity", path, sample)
        empty = os.path.join(d, "empty")
        open(empty, "w").close()
        tool("perplexity", path, empty, status=1)
        tool("perplexity", path, empty + "x", status=1)
        with open(empty, "w") as f:
            f.write("<|endoftext|> \n<|endoftext|>")
        assert "nothing to foretell" in tool("perplexity", path, empty, status=1)


def test_manual():
    man = os.path.join(SOURCE, "man/tern-model.1")
    if not shutil.which("mandoc"):
        skipped.append("no mandoc")
        return
    p = subprocess.run(["mandoc", "-Tlint", "-Werror", man], capture_output=True, text=True)
    assert p.returncode == 0, p.stdout
    with open(man) as f:
        text = f.read()
    for verb in ("inspect", "convert", "synth", "perplexity"):
        for option in re.findall(r"(?m)^  --([a-z0-9-]+)", tool(verb, "--help")):
            assert "Fl -" + option in text, (verb, option)


tests = [v for k, v in list(globals().items()) if k.startswith("test_")]
for t in tests:
    t()
    print("ok", t.__name__)
for s in skipped:
    print("skipped:", s)
sys.exit(77 if len(skipped) == len(tests) else 0)
