"""Tiny seeded models of every graph of the family, and the files that hold them.

All numbers come from splitmix64, so a seed is a model. Weights are kept as trits with a scale, and also as float
masters whose absolute values sum, exactly and in any order, to the element count times that scale: absmean gives back the same
trits and scale, so one model can be written as any type in any container and must compute the same bits. Norm gains and
embeddings are on grids that F16 and BF16 hold exactly."""
import json, zlib
import numpy as np
import formats
from formats import float_bytes
from oracle import Linear, Model, Spec

VOCAB = 320
CONTEXT = 128


class Rng:
    """splitmix64, a stream a name."""

    def __init__(self, name):
        self.state = np.uint64(zlib.crc32(name.encode())) << np.uint64(17)

    def u64(self, n):
        gamma = np.uint64(0x9e3779b97f4a7c15)
        with np.errstate(over="ignore"):
            z = self.state + np.arange(1, n + 1, dtype=np.uint64) * gamma
            self.state = self.state + np.uint64(n) * gamma
            z = (z ^ z >> np.uint64(30)) * np.uint64(0xbf58476d1ce4e5b9)
            z = (z ^ z >> np.uint64(27)) * np.uint64(0x94d049bb133111eb)
        return z ^ z >> np.uint64(31)

    def integers(self, n, low, high):
        return low + (self.u64(n) >> np.uint64(33)).astype(np.int64) % (high - low)


# ---- weights ---------------------------------------------------------------------------------------------------------

UNIT = 2.0 ** -10       # masters are whole multiples of it
# Scales in units: their reciprocal rounded to f32 has them as its own, so that dividing checkpoints lose nothing.
SCALES = [k for k in range(64, 100) if np.float32(1) / (np.float32(1) / np.float32(k)) == k]


def round_bf16(x):
    bits = np.array(x, "<f4").view("<u4")
    return ((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000).astype("<u4").view("<f4")


class Weights:
    """A ternary (or binary) matrix (rows, cols)."""

    def __init__(self, rng, rows, cols, binary=False):
        self.binary = binary
        self.trits = rng.integers(rows * cols, 0, 2) * 2 - 1 if binary else rng.integers(rows * cols, -1, 2)
        scales = [k for k in SCALES if k * rows * cols < 1 << 24]       # sums stay exact in f32
        self.units = scales[int(rng.integers(1, 0, len(scales))[0])]
        self.scale = self.units * UNIT
        low, high = (self.units // 2, self.units * 3 // 2) if binary else (self.units * 3 // 4, self.units * 33 // 16)
        small, large = rng.integers(rows * cols, 0, self.units // 3), rng.integers(rows * cols, low, high)
        size = np.where(self.trits == 0, small, large)
        # A unit more or less on enough weights that are clear of every threshold, until the mean is the scale.
        lacking = self.units * size.size - int(np.sum(size))
        at = np.flatnonzero(self.trits)
        each, rest = divmod(abs(lacking), len(at))
        size[at] += np.sign(lacking) * each
        size[at[:rest]] += np.sign(lacking)
        sign = np.where(self.trits == 0, rng.integers(rows * cols, 0, 2) * 2 - 1, self.trits)
        self.signed = (size * sign).reshape(rows, cols)
        self.trits = self.trits.reshape(rows, cols).astype(np.int8)
        assert np.max(size) < 256 and np.sum(size) == self.units * size.size

    def masters(self):
        return self.signed * UNIT

    def scales(self, how):
        """What multiplies the trits in a file: "one" the scale; "rows" one a row, "fine" one a row that needs F32;
        "inverse-bf16" what is left of the scale when a file holds its reciprocal as BF16."""
        if how == "rows":
            return self.scale * (1 + np.arange(len(self.trits)) % 8 / 8)
        if how == "fine":
            return self.scale * (1 + np.arange(len(self.trits)) * 1597 % 4096 / 4096)
        if how == "inverse-bf16":
            return 1 / np.float64(round_bf16(1 / self.scale))
        return self.scale

    def permuted(self, head_dim):
        """Rows of each head as the llama converter puts them: old j to 2j, old j + d/2 to 2j + 1."""
        other = object.__new__(Weights)
        vars(other).update(vars(self))
        rows, cols = self.trits.shape
        view = lambda m: m.reshape(rows // head_dim, 2, head_dim // 2, cols).swapaxes(1, 2).reshape(rows, cols)
        other.trits, other.signed = view(self.trits), view(self.signed)
        return other


# ---- vocabularies ----------------------------------------------------------------------------------------------------

def byte_names():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


MERGES = ["Ġ t", "h e", "Ġt he", "i n", "e r", "Ġ a", "r e", "o n", "Ġ s", "a t", "e n", "o r", "Ġ c", "i s", "Ġ o",
          "i t", "e s", "Ġ w", "a n", "in g", "Ġa n", "Ġan d", "o u", "Ġ f", "a r", "l l", "Ġ h", "e d", "a l", "o m"]
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
SPM_WORDS = ["▁t", "he", "▁the", "in", "er", "▁a", "re", "on", "▁s", "at", "en", "or", "▁c", "is", "▁o", "it", "es"]


class Vocabulary:
    """names, types (GGUF's) and, by kind, merges or scores; specials are (bos, eos)."""

    def __init__(self, kind, specials=("<|begin_of_text|>", "<|end_of_text|>"), pre=None, add_bos=True, add_eos=False):
        self.kind, self.pre, self.add_bos, self.add_eos = kind, pre, add_bos, add_eos
        self.spm = kind == "llama"
        if self.spm:
            self.names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *LETTERS, *SPM_WORDS]
            self.types = [2, 3, 3] + [6] * 256 + [1] * (len(self.names) - 259)
            specials = "<s>", "</s>"
        else:
            self.names = byte_names() + [m.replace(" ", "") for m in MERGES]
            self.types = [1] * len(self.names)
            self.names += [*specials, "<|eot_id|>"]
            self.types += [3] * 3
        spare = VOCAB - len(self.names)
        self.names += [f"<|reserved_special_token_{i}|>" for i in range(spare)]
        self.types += [3] * spare
        assert len(set(self.names)) == VOCAB
        self.bos, self.eos = (self.names.index(s) for s in specials)

    def keys(self):
        keys = {"model": ("str", self.kind), "tokens": ("[str]", self.names), "token_type": ("[i32]", self.types),
                "bos_token_id": ("u32", self.bos), "eos_token_id": ("u32", self.eos),
                "add_bos_token": ("bool", self.add_bos), "add_eos_token": ("bool", self.add_eos)}
        if self.spm:
            scores = [-float(i - 259) if t == 1 else 0.0 for i, t in enumerate(self.types)]
            keys |= {"scores": ("[f32]", scores), "unknown_token_id": ("u32", 0), "add_space_prefix": ("bool", False)}
        else:
            keys["merges"] = ("[str]", MERGES)
            if self.pre:
                keys["pre"] = ("str", self.pre)
        return {"tokenizer.ggml." + k: v for k, v in keys.items()}

    def json(self):
        added = [{"id": i, "content": n, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                  "special": True} for i, (n, t) in enumerate(zip(self.names, self.types)) if t in (2, 3)]
        plain = {n: i for i, (n, t) in enumerate(zip(self.names, self.types)) if t in (1, 6) or self.spm}
        if self.spm:
            cuts = [(w[:i], w[i:]) for w in SPM_WORDS for i in range(1, len(w))]
            pairs = [f"{a} {b}" for a, b in cuts if a in plain and b in plain]
            model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": plain,
                     "merges": pairs}
            rest = {"normalizer": {"type": "Sequence", "normalizers": [
                        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}, "pre_tokenizer": None,
                    "decoder": {"type": "Sequence", "decoders": [
                        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                        {"type": "Fuse"}]}}
        else:
            digits = "\\p{N}" if self.pre == "qwen2" else "\\p{N}{1,3}"
            regex = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" + digits +
                     "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
            model = {"type": "BPE", "ignore_merges": self.pre != "qwen2", "byte_fallback": False, "vocab": plain,
                     "merges": MERGES}
            rest = {"normalizer": {"type": "NFC"} if self.pre == "qwen2" else None,
                    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
                    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
        whole = {"version": "1.0", "added_tokens": added, **rest, "post_processor": None, "model": model}
        return json.dumps(whole).encode()


LLAMA = Vocabulary("gpt2", pre="llama-bpe")
NO_PRE = Vocabulary("gpt2")
QWEN = Vocabulary("gpt2", ("<|im_start|>", "<|endoftext|>"), "qwen2", add_bos=False, add_eos=True)
SPM = Vocabulary("llama")

# ---- graphs ----------------------------------------------------------------------------------------------------------

BITNET = {"attn_sub_norm", "ffn_sub_norm"}
PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NORMS_IN = {p + "_norm_in" for p in PROJECTIONS}
QK = {"attn_q_norm", "attn_k_norm"}
GEMMA = {"post_attention_norm", "post_ffw_norm"}
INT4 = "int4-absmean"


class Graph:
    """arch: the file's architecture; norms: those beyond attn_norm and ffn_norm, or with bare the only ones; spec:
    what differs from Spec's defaults and the common shape; keys: written as they
    stand; hf: config.json's own members, when the graph exists there."""

    def __init__(self, arch, vocabulary, norms=(), tied=True, rope_freqs=False, keys=None, hf=None, bare=False, **spec):
        self.arch, self.vocabulary, self.tied = arch, vocabulary, tied
        self.norms = set(norms) if bare else {"attn_norm", "ffn_norm", *norms}
        self.rope_freqs, self.keys, self.hf = rope_freqs, keys or {}, hf
        shape = dict(n_embd=256, n_ff=512, n_layer=2, n_head=4, n_kv=2, head_dim=64, n_vocab=VOCAB)
        self.spec = {**shape, **spec}


def quant(qkv="int8-absmax", o="int8-absmax", gate_up="int8-absmax", down="int8-absmax"):
    return dict(qkv=qkv, o=o, gate_up=gate_up, down=down)


def research(spec, **more):
    """The tern.* keys that say what a Spec says."""
    keys = {f"tern.quant.{k}": ("str", v) for k, v in spec.get("quant", {}).items()}
    keys |= {f"tern.hadamard.{k}": ("bool", True) for k in spec.get("hadamard", ())}
    if "kv_bits" in spec:
        keys["tern.kv_bits"] = ("u32", spec["kv_bits"])
    if "norm" in spec:
        keys["tern.norm"] = ("str", spec["norm"])
    if "activation" in spec:
        keys["tern.activation"] = ("str", spec["activation"])
    return dict(spec, keys={**keys, **{k: ("str", v) for k, v in more.items()}})


HF_BITNET = dict(architectures=["BitNetForCausalLM"], model_type="bitnet", hidden_act="relu2")
HF_1BIT = dict(architectures=["BitnetForCausalLM"], model_type="llama", hidden_act="silu", weight_bits=1, input_bits=8)
HF_LLAMA = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu")
HF_QWEN = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_act="silu")
HF_QWEN_EMBED = dict(HF_QWEN, architectures=["Qwen3Model"])
HF_GEMMA = dict(architectures=["Gemma3TextModel"], model_type="gemma3_text", hidden_activation="gelu_pytorch_tanh",
                query_pre_attn_scalar=128, sliding_window=512, rope_local_base_freq=10000.0)

GRAPHS = {
    "2b4t": Graph("bitnet-b1.58", NO_PRE, BITNET, theta=500000.0, hf=HF_BITNET),
    "2b4t-untied": Graph("bitnet-b1.58", NO_PRE, BITNET, tied=False, theta=500000.0, hf=HF_BITNET),
    "bitnet-25": Graph("bitnet-25", LLAMA, BITNET, theta=500000.0),
    "bitnet": Graph("bitnet", LLAMA, BITNET, n_kv=4, activation="silu"),
    "bitnet-tail": Graph("bitnet", LLAMA, BITNET, n_ff=320, activation="silu"),
    "1bitllm": Graph("bitnet-b1.58", SPM, BITNET, n_embd=400, head_dim=100, n_kv=4, n_ff=360, n_layer=1,
                     activation="silu", hf=HF_1BIT),
    "llama": Graph("llama", LLAMA, tied=False, theta=500000.0, activation="silu", hf=HF_LLAMA),
    "llama-freqs": Graph("llama", LLAMA, rope_freqs=True, theta=500000.0, activation="silu"),
    "falcon3": Graph("llama", Vocabulary("gpt2", pre="falcon3"), tied=False, n_head=2, n_kv=1, head_dim=256, eps=1e-6,
                     theta=1000042.0, activation="silu", hf=HF_LLAMA),
    "qwen3-last": Graph("qwen3", QWEN, NORMS_IN | QK, head_dim=128, eps=1e-6, theta=1e6, activation="silu",
                        pooling="last", hf=HF_QWEN_EMBED),
    "qwen3-mean": Graph("qwen3", QWEN, NORMS_IN | QK, eps=1e-6, theta=1e6, activation="silu", pooling="mean",
                        hf=dict(HF_QWEN_EMBED, head_dim=64)),
    "gemma3-last": Graph("gemma3", SPM, NORMS_IN | QK | GEMMA, n_kv=1, head_dim=128, eps=1e-6, activation="gelu",
                         embd_scale=16.0, pooling="last", hf=HF_GEMMA),
    "gemma3-mean": Graph("gemma3", SPM, NORMS_IN | QK | GEMMA, n_kv=1, head_dim=128, eps=1e-6, activation="gelu",
                         embd_scale=16.0, pooling="mean", hf=HF_GEMMA),
    "gemma3-window": Graph("gemma3", SPM, NORMS_IN | QK | GEMMA, n_kv=1, head_dim=128, eps=1e-6, activation="gelu",
                           embd_scale=16.0, pooling="last", theta=1e6, window=3, pattern=2, theta_local=5000.0,
                           rope_shrink=8.0, attn_scale=200 ** -0.5,
                           hf=dict(HF_GEMMA, sliding_window=3, sliding_window_pattern=2, rope_local_base_freq=5000.0,
                                   query_pre_attn_scalar=200, rope_scaling={"rope_type": "linear", "factor": 8.0})),
    "distill-qwen3": Graph("qwen3", QWEN, QK | BITNET, eps=1e-6, theta=1e6, head_dim=128, activation="silu",
                           hf=HF_QWEN),
    "distill-gemma3": Graph("gemma3", SPM, QK | GEMMA | BITNET, n_kv=1, head_dim=128, eps=1e-6, activation="gelu",
                            embd_scale=16.0, hf=dict(HF_GEMMA, architectures=["Gemma3ForCausalLM"])),
    "qwen3-rms": Graph("qwen3", QWEN, QK | NORMS_IN, eps=1e-6, eps_in=1e-3, theta=1e6, activation="silu", hf=HF_QWEN),
    # The first paper's: every linear norms its own input, and nothing else does.
    "paper": Graph("llama", LLAMA, NORMS_IN, bare=True, n_kv=4, activation="silu"),
    "b1": Graph("bitnet", LLAMA, BITNET, n_kv=4, hf=HF_BITNET,
                **research(dict(norm="layer", activation="gelu"), **{"tern.weights": "binary"})),
    "a4.8": Graph("bitnet", LLAMA, BITNET, n_kv=1, n_layer=1, hf=HF_BITNET,
                  **research(dict(quant=quant(INT4, "top50-int8", INT4), activation="relu2", kv_bits=3))),
    "a4.8-kv4": Graph("bitnet", LLAMA, BITNET, n_kv=1, n_layer=1,
                      **research(dict(quant=quant(INT4, "top50-int8", INT4), activation="relu2", kv_bits=4))),
    "v2-a8": Graph("bitnet", LLAMA, BITNET, n_ff=768, **research(dict(hadamard=("o", "down"), activation="silu"))),
    "v2": Graph("bitnet", LLAMA, BITNET, hf=dict(HF_BITNET, hidden_act="silu"),
                **research(dict(quant=quant(INT4, INT4, INT4, INT4), hadamard=("o", "down"), activation="silu"))),
    "weight-only": Graph("llama", LLAMA, theta=500000.0,
                         **research(dict(quant=quant("none", "none", "none", "none"), activation="silu"))),
}


class Tiny:
    """One graph's model; embd and head name the values (a quantised type, or "grid") of the two ends."""

    def __init__(self, name, embd="grid", head=None):
        self.name, self.graph = name, GRAPHS[name]
        g, s = self.graph, Spec(**self.graph.spec)
        self.spec = s
        # Embeddings are small beside what the layers add, else a tied model only repeats its last token; the last norm
        # makes up for it.
        self.step = 2.0 ** -3 / s.embd_scale
        self.ends = {"token_embd": self.matrix(embd, "embd")}
        if not g.tied:
            self.ends["output"] = self.matrix(head or "grid", "head")
        self.output_norm = self.gain(Rng(name + "/output_norm"), s.n_embd) / self.step
        self.rope_freqs = np.linspace(1, 8, s.head_dim // 2).round(2).astype(np.float32) if g.rope_freqs else None
        self.layers = [self.layer(i) for i in range(s.n_layer)]

    def matrix(self, kind, what):
        """(bytes as the quantised type or None, values)."""
        rng, s = Rng(f"{self.name}/{what}/{kind}"), self.spec
        if kind != "grid":
            return formats.quantised(kind, rng, s.n_vocab, s.n_embd, self.step)
        # Not up to 127: that over 127, times grid by grid, would fall on exact halves all the time.
        return None, (rng.integers(s.n_vocab * s.n_embd, -113, 114) / 128 * self.step).reshape(s.n_vocab, s.n_embd)

    @staticmethod
    def gain(rng, n, steps=64):
        return rng.integers(n, steps // 2, steps * 3 // 2) / steps

    def layer(self, i):
        s, g = self.spec, self.graph
        attn, kv = s.n_head * s.head_dim, s.n_kv * s.head_dim
        shapes = {"attn_q": (attn, s.n_embd), "attn_k": (kv, s.n_embd), "attn_v": (kv, s.n_embd),
                  "attn_output": (s.n_embd, attn), "ffn_gate": (s.n_ff, s.n_embd), "ffn_up": (s.n_ff, s.n_embd),
                  "ffn_down": (s.n_embd, s.n_ff)}
        widths = {"attn_norm": s.n_embd, "ffn_norm": s.n_embd, "attn_sub_norm": attn, "ffn_sub_norm": s.n_ff,
                  "attn_q_norm": s.head_dim, "attn_k_norm": s.head_dim, "post_attention_norm": s.n_embd,
                  "post_ffw_norm": s.n_embd, **{p + "_norm_in": cols for p, (_, cols) in shapes.items()}}
        binary = g.keys.get("tern.weights", ("", ""))[1] == "binary"
        rng = lambda what: Rng(f"{self.name}/{i}/{what}")
        tensors = {p: Weights(rng(p), *shape, binary) for p, shape in shapes.items()}
        for n in sorted(g.norms):
            tensors[n] = self.gain(rng(n), widths[n])
        if "top50-int8" in s.quant.values():        # no two of what is ranked may be equal
            tensors["attn_sub_norm"] = self.gain(rng("attn_sub_norm"), attn, 8192)
        if "ffn_sub_norm" in tensors:
            tensors["ffn_sub_norm"][3] = 2.0 ** -108        # as in released files: F16 would lose it
        return tensors

    def file_layer(self, i, permuted):
        tensors = dict(self.layers[i])
        if permuted:
            for p in "attn_q", "attn_k":
                tensors[p] = tensors[p].permuted(self.spec.head_dim)
        return tensors

    def oracle(self, permuted=None, scales="one"):
        """permuted None: as a GGUF of this architecture has it. scales: see Weights.scales."""
        if permuted is None:
            permuted = self.graph.arch == "llama"
        layers = [{n: Linear(w.trits, w.scales(scales)) if isinstance(w, Weights) else w
                   for n, w in self.file_layer(i, permuted).items()} for i in range(self.spec.n_layer)]
        ends = {n: values for n, (_, values) in self.ends.items()}
        return Model(Spec(**{**self.graph.spec, "half": not permuted}), ends["token_embd"],
                     ends.get("output", ends["token_embd"]), self.output_norm, layers, self.rope_freqs)

    # ---- GGUF --------------------------------------------------------------------------------------------------------

    def keys(self):
        s, g = self.spec, self.graph
        sizes = {"context_length": CONTEXT, "embedding_length": s.n_embd, "block_count": s.n_layer,
                 "feed_forward_length": s.n_ff, "attention.head_count": s.n_head, "attention.head_count_kv": s.n_kv,
                 "rope.dimension_count": s.head_dim, "vocab_size": s.n_vocab}
        if s.head_dim * s.n_head != s.n_embd or g.arch in ("qwen3", "gemma3"):
            sizes |= {"attention.key_length": s.head_dim, "attention.value_length": s.head_dim}
        if s.pooling:
            sizes["pooling_type"] = {"mean": 1, "last": 3}[s.pooling]
        keys = {"general.architecture": ("str", g.arch), "general.name": ("str", "tiny-" + self.name),
                "general.file_type": ("u32", 40), "general.quantization_version": ("u32", 2)}
        keys |= {f"{g.arch}.{k}": ("u32", v) for k, v in sizes.items()}
        keys |= {f"{g.arch}.attention.layer_norm_rms_epsilon": ("f32", s.eps),
                 f"{g.arch}.rope.freq_base": ("f32", s.theta)}
        if s.window:
            keys |= {f"{g.arch}.attention.sliding_window": ("u32", s.window),
                     f"{g.arch}.attention.sliding_window_pattern": ("u32", s.pattern),
                     f"{g.arch}.rope.freq_base_swa": ("f32", s.theta_local),
                     f"{g.arch}.rope.scaling.type": ("str", "linear"),
                     f"{g.arch}.rope.scaling.factor": ("f32", s.rope_shrink),
                     f"{g.arch}.attention.scale": ("f32", s.attn_scale)}
        if s.eps_in:
            keys["tern.norm_in.epsilon"] = ("f32", s.eps_in)
        return {**keys, **g.keys, **g.vocabulary.keys()}

    def gguf_tensors(self, weights, embd, head, scale_tensors, norms, scales, permuted):
        out = []

        def add_floats(name, x, kind):
            out.append((name, x.shape[::-1], kind, float_bytes(kind, x)))

        def add_end(name, kind):
            packed, values = self.ends[name]
            if kind in ("f32", "f16", "bf16"):
                add_floats(name + ".weight", values, kind)
            elif packed is None:                # the grid is Q8_0 with one scale
                blocks = (values / self.step * 128).astype(np.int8).view(np.uint8).reshape(-1, 32)
                out.append((name + ".weight", values.shape[::-1], "q8_0",
                            np.hstack([formats.block_scales(len(blocks), self.step / 128), blocks]).tobytes()))
            else:
                out.append((name + ".weight", values.shape[::-1], kind, packed))

        add_end("token_embd", embd)
        for i in range(self.spec.n_layer):
            for name, w in self.file_layer(i, permuted).items():
                full = f"blk.{i}.{name}"
                if isinstance(w, Weights):
                    self.add_weights(out, full, w, weights, scale_tensors, scales)
                else:
                    add_floats(full + ".weight", w, "f32" if name == "ffn_sub_norm" else norms)
        add_floats("output_norm.weight", self.output_norm, norms)
        if "output" in self.ends:
            add_end("output", head)
        elif head:
            out.append(("output.weight", *out[0][1:]))          # bitnet-25's copy
        if self.rope_freqs is not None:
            add_floats("rope_freqs.weight", self.rope_freqs, "f32")
        return out

    @staticmethod
    def add_weights(out, full, w, weights, scale_tensors, scales):
        dims, scale = w.trits.shape[::-1], 1.0 if scale_tensors else w.scales(scales)
        if weights.startswith("exact-"):        # ternary values as floats
            kind = weights[6:]
            data = float_bytes(kind, w.trits * scale)
        elif weights in ("f32", "f16", "bf16"):
            kind, data = weights, float_bytes(weights, w.masters())
        elif weights in ("i2_s-b", "i2_s-c"):
            kind, data = "i2_s", formats.i2_s(w.trits, scale, weights[-1])
        else:
            kind, data = weights, formats.TERNARY[weights](w.trits, scale)
        out.append((full + ".weight", dims, kind, data))
        if scale_tensors:
            out.append((full + ".scale", (1,), "f32", float_bytes("f32", np.array([w.scale]))))

    def gguf(self, weights="i2_s", embd="f16", head=None, scale_tensors=False, norms="f32", scales="one", permuted=None,
             split=1, keys=None, **how):
        """{file name: bytes}; the first is what to open. head: its type, of a tied model a copy of the embedding."""
        if permuted is None:
            permuted = self.graph.arch == "llama"
        tensors = self.gguf_tensors(weights, embd, head, scale_tensors, norms, scales, permuted)
        keys = {**self.keys(), **(keys or {})}
        if split > 1:
            return formats.gguf_split("model", split, keys, tensors, **how)
        return {"model.gguf": formats.gguf(keys, tensors, **how)}

    # ---- Hugging Face ------------------------------------------------------------------------------------------------

    def config(self, linear_class, online):
        s, g = self.spec, self.graph
        quantization = {"quant_method": "bitnet"}
        if linear_class:
            quantization |= {"linear_class": linear_class, "quantization_mode": "online" if online else "offline"}
        if self.name == "qwen3-rms":
            quantization |= {"use_rms_norm": True, "rms_norm_eps": s.eps_in}
        config = {"hidden_size": s.n_embd, "intermediate_size": s.n_ff, "num_hidden_layers": s.n_layer,
                  "num_attention_heads": s.n_head, "num_key_value_heads": s.n_kv, "rms_norm_eps": s.eps,
                  "rope_theta": s.theta, "vocab_size": s.n_vocab, "max_position_embeddings": CONTEXT,
                  "tie_word_embeddings": g.tied, "bos_token_id": g.vocabulary.bos, "eos_token_id": g.vocabulary.eos,
                  "torch_dtype": "bfloat16", **g.hf}
        if s.head_dim * s.n_head != s.n_embd or g.arch in ("qwen3", "gemma3"):
            config["head_dim"] = s.head_dim
        if g.keys:
            config["tern"] = {k.removeprefix("tern."): v for k, (_, v) in g.keys.items()}
        if self.name != "1bitllm":              # its files carry plain masters and weight_bits instead
            config["quantization_config"] = quantization
        return config

    def hf_names(self):
        """{GGUF's short name: the module's, in a layer}."""
        names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
                 "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
                 "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
                 "attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm",
                 "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
        if self.name == "1bitllm":
            names |= {"attn_sub_norm": "self_attn.inner_attn_ln", "ffn_sub_norm": "mlp.ffn_layernorm"}
        if self.graph.arch == "gemma3":
            names |= {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
                      "post_ffw_norm": "post_feedforward_layernorm"}
        inner = ".rms_norm" if self.name == "qwen3-rms" else ".norm"
        return names | {p + "_norm_in": names[p] + inner for p in PROJECTIONS}

    def hf(self, linear_class="autobitlinear", masters=None, scale="bf16", floats="bf16", shards=1, config=None):
        """A directory's {file name: bytes}. masters: their type, quantised at load; else packed, with scales that
        multiply (autobitlinear) or divide (bitlinear, or none said)."""
        g, names = self.graph, self.hf_names()
        dtypes = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
        tensors = {}

        def add(name, x, kind):
            tensors[name] = dtypes[kind], np.shape(x), float_bytes(kind, x)

        def add_norm(name, x, plain=True):
            # Gemma's own norms multiply by one more than they store; those put into a linear or before one do not.
            add(name, x - 1 if g.arch == "gemma3" and plain else x, "f32" if np.min(x) < 1e-30 else floats)

        # An encoder's file is the bare model, without the prefix.
        prefix = "" if self.spec.pooling else "model."
        add(prefix + "embed_tokens.weight", self.ends["token_embd"][1], floats)
        for i, layer in enumerate(self.layers):
            for name, w in layer.items():
                full = f"{prefix}layers.{i}.{names[name]}"
                if not isinstance(w, Weights):
                    add_norm(full + ".weight", w, not name.endswith(("_norm_in", "_sub_norm")))
                elif masters:
                    add(full + ".weight", w.masters(), masters)
                else:
                    packed = formats.hf_packed(w.trits)
                    tensors[full + ".weight"] = "U8", packed.shape, packed.tobytes()
                    value = np.float32(w.scale)
                    if linear_class != "autobitlinear":
                        value = np.float32(1) / value
                    add(full + ".weight_scale", np.array([round_bf16(value) if scale == "bf16" else value]), scale)
        add_norm(prefix + "norm.weight", self.output_norm)
        if "output" in self.ends:
            add("lm_head.weight", self.ends["output"][1], floats)
        files = formats.safetensors_sharded(shards, tensors) if shards > 1 else \
            {"model.safetensors": formats.safetensors(tensors)}
        vocabulary = g.vocabulary
        files["config.json"] = json.dumps({**self.config(linear_class, bool(masters)), **(config or {})}).encode()
        files["generation_config.json"] = json.dumps({
            "eos_token_id": [vocabulary.eos], "bos_token_id": vocabulary.bos}).encode()
        files["tokenizer.json"] = vocabulary.json()
        files["tokenizer_config.json"] = json.dumps({
            "add_bos_token": vocabulary.add_bos, "add_eos_token": vocabulary.add_eos,
            "bos_token": vocabulary.names[vocabulary.bos], "eos_token": vocabulary.names[vocabulary.eos]}).encode()
        if self.spec.pooling:
            files["1_Pooling/config.json"] = json.dumps({
                "word_embedding_dimension": self.spec.n_embd, "pooling_mode_cls_token": False,
                "pooling_mode_mean_tokens": self.spec.pooling == "mean",
                "pooling_mode_lasttoken": self.spec.pooling == "last"}).encode()
        return files
