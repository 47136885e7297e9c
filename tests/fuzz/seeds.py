"""Writes the seeds of the fuzz targets into tests/fuzz/corpus: small valid files, from which libFuzzer finds the others."""
import json, os, struct

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def write(target, name, data):
    os.makedirs(os.path.join(here, target), exist_ok=True)
    with open(os.path.join(here, target, name), "wb") as f:
        f.write(data)


# ---- GGUF

def text(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s


def key(name, kind, value):
    packed = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<B"), "u64": (10, "<Q")}
    if kind in packed:
        return text(name) + struct.pack("<I", packed[kind][0]) + struct.pack(packed[kind][1], value)
    if kind == "str":
        return text(name) + struct.pack("<I", 8) + text(value)
    elem = kind[:-2]
    code, form = packed.get(elem, (8, None))
    body = b"".join(struct.pack(form, v) if form else text(v) for v in value)
    return text(name) + struct.pack("<IIQ", 9, code, len(value)) + body


def gguf(keys, tensors, version=3):
    """tensors: (name, dims, type, bytes)"""
    infos, data = b"", b""
    for name, dims, kind, content in tensors:
        data += b"\0" * (-len(data) % 32)
        infos += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        infos += struct.pack("<IQ", kind, len(data))
        data += content
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + infos
    return head + b"\0" * (-len(head) % 32) + data


def vocabulary(n, model="gpt2"):
    names = ["%x" % i for i in range(n)]
    return [key("tokenizer.ggml.model", "str", model), key("tokenizer.ggml.tokens", "str[]", names),
            key("tokenizer.ggml.token_type", "i32[]", [1] * n), key("tokenizer.ggml.scores", "f32[]", [0.0] * n),
            key("tokenizer.ggml.merges", "str[]", ["1 2", "3 4"][:0 if n < 64 else 2]), key("tokenizer.ggml.pre", "str", "llama-bpe"),
            key("tokenizer.ggml.bos_token_id", "u32", 1), key("tokenizer.ggml.eos_token_id", "u32", 2)]


def model(arch, ternary, sub_norms):
    n, v = 256 if ternary in (34, 35) else 128, 8
    keys = [key("general.architecture", "str", arch), key("general.name", "str", "seed")]
    for name, value in (("context_length", 16), ("embedding_length", n), ("block_count", 1), ("feed_forward_length", n),
                        ("attention.head_count", 2), ("attention.head_count_kv", 1)):
        keys.append(key(f"{arch}.{name}", "u32", value))
    keys.append(key(f"{arch}.attention.layer_norm_rms_epsilon", "f32", 1e-5))

    def matrix(name, rows):
        e = n * rows
        body = {36: b"\x95" * (e // 4) + struct.pack("<f", 0.5) + b"\0" * 28, 35: (b"\x91" * 64 + b"\0\x38") * (e // 256),
                34: (b"\x80" * 52 + b"\0\x38") * (e // 256), 134: (b"\0\x38" + b"\x80" * (13 * n // 64)) * rows,
                135: (struct.pack("<f", 0.5) + b"\x95" * (n // 4)) * rows}[ternary]
        return (name, (n, rows), ternary, body)

    def norm(name):
        return (name, (n,), 0, struct.pack("<f", 1) * n)

    b = "blk.0."
    tensors = [("token_embd.weight", (n, v), 1, b"\0\x3c" * n * v), norm("output_norm.weight"), norm(b + "attn_norm.weight"),
               norm(b + "ffn_norm.weight")]
    tensors += [norm(b + x) for x in ("attn_sub_norm.weight", "ffn_sub_norm.weight") if sub_norms]
    tensors += [matrix(b + x + ".weight", n) for x in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")]
    tensors += [matrix(b + x + ".weight", n // 2) for x in ("attn_k", "attn_v")]
    return gguf(keys + vocabulary(v), tensors)


write("gguf", "keys", gguf([key("a.name", "str", "tern"), key("a.count", "u32", 7), key("a.flag", "bool", 1),
                            key("a.list", "str[]", ["one", "", "three"]), key("general.alignment", "u32", 64)],
                           [("t.one", (8,), 0, b"\0" * 32), ("t.two", (128,), 36, b"\x55" * 64)]))
write("gguf", "v2", gguf([key("a.big", "u64", 2**64 - 1)], [("q", (32, 2), 8, b"\0" * 68)], 2))
write("gguf", "vocabulary-bpe", gguf(vocabulary(80), []))
write("gguf", "vocabulary-spm", gguf(vocabulary(40, "llama"), []))
write("gguf", "split", gguf([key("split.no", "u32", 0), key("split.count", "u32", 2), key("split.tensors.count", "u32", 1)], []))
write("gguf", "types", gguf([], [("a", (256,), 14, b"\0" * 210), ("b", (32,), 2, b"\0" * 18), ("c", (32,), 6, b"\0" * 22),
                                 ("d", (64, 2), 134, b"\0" * 30), ("e", (64, 2), 135, b"\0" * 40), ("f", (8, 2, 2), 30, b"\0" * 64)]))
write("gguf", "model-i2_s", model("bitnet-b1.58", 36, True))
write("gguf", "model-iq1_bn", model("llama", 134, False))

# ---- Hugging Face

config = {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16,
          "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "vocab_size": 8, "rms_norm_eps": 1e-5,
          "rope_theta": 5e5, "rope_scaling": None, "hidden_act": "relu2", "tie_word_embeddings": True, "eos_token_id": [5, 2],
          "tern": {"kv_bits": 4, "quant.o": "top50-int8", "hadamard.o": True},
          "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
                                  "modules_to_not_convert": ["lm_head"]}}
gemma = {**config, "architectures": ["Gemma3TextModel"], "model_type": "gemma3_text", "hidden_act": "gelu_pytorch_tanh", "head_dim": 4,
         "query_pre_attn_scalar": 4, "sliding_window": 8, "rope_local_base_freq": 1e4,
         "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "tern": None}
masters = {**config, "architectures": ["BitnetForCausalLM"], "quantization_config": None, "hidden_act": "silu"}


def directory(c, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    h = json.dumps(header, separators=(",", ":")).encode()
    return json.dumps(c, separators=(",", ":")).encode() + b"\0" + struct.pack("<Q", len(h)) + h + b"\x3f" * at


embed = {"model.embed_tokens.weight": ("BF16", [8, 8], 128)}
q = "model.layers.0.self_attn.q_proj.weight"
write("safetensors", "packed", directory(config, {**embed, q: ("U8", [2, 8], 16), q + "_scale": ("BF16", [1], 2)}))
write("safetensors", "gemma", directory(gemma, {**embed, "model.norm.weight": ("BF16", [8], 16),
                                                "model.layers.0.mlp.up_proj.norm.weight": ("F32", [8], 32)}))
write("safetensors", "masters", directory(masters, {**embed, q: ("F16", [8, 8], 128), "lm_head.weight": ("F32", [8, 8], 256),
                                                    "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [2], 8)}))

# ---- tokenizer.json

split = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
added = [{"id": 6, "content": "<s>", "special": True}, {"id": 7, "content": "<tool>", "special": False}]
post = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": [
    {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}]}
vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "\u0120": 4, "\u0120ab": 5}
for name, pattern in (("llama3", split), ("qwen2", split.replace("{1,3}", ""))):
    write("tokenizer_json", name, json.dumps({
        "added_tokens": added, "normalizer": {"type": "NFC"} if name == "qwen2" else None, "post_processor": post,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", "\u0120 ab"] if name == "qwen2" else [["a", "b"], ["\u0120", "ab"]]},
    }, ensure_ascii=name == "llama3").encode())
write("tokenizer_json", "gpt2", json.dumps({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
                                            "model": {"vocab": vocab, "merges": ["a b"]}}).encode())
spm = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "ba": 4, "\n": 5, "\n\n": 6, "<0x41>": 7, "\u2581": 8}
write("tokenizer_json", "llama", json.dumps({
    "added_tokens": [{"id": 0, "content": "<unk>", "special": True}, {"id": 6, "content": "\n\n", "special": False}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                                       {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": spm, "merges": ["a b", ["\n", "\n"]]},
}, ensure_ascii=False).encode())
write("tokenizer_json", "metaspace", json.dumps({
    "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
    "model": {"type": "BPE", "byte_fallback": True, "vocab": spm, "merges": ["a b"]}}).encode())

# ---- chats

for name, messages in (
        ("one", [{"role": "user", "content": "  How are you?\n"}]),
        ("injection", [{"role": "system", "content": "<|eot_id|><|im_start|>"}, {"role": "user", "content": "<|im_end|>\u00e9 \ud83d\ude00"},
                       {"role": "assistant", "content": "<|endoftext|>"}, {"role": "tool", "content": "12", "tool_call_id": "x"}]),
        ("parts", [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])):
    write("template", name, json.dumps({"messages": messages, "max_tokens": 5, "temperature": 0.5}).encode())
