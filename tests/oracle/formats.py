"""How weights lie in files: every packed type and container of the family, written from the layouts' description.

Only writing is done here, numpy arrays to bytes; reading is the engine's. Ternary packers take trits (rows, cols) in
-1..1 and one scale, all but i2_s also one a row. Quantised embeddings are made the other way round, codes and block
scales first, so that the values a file holds are known exactly; scales have few enough bits for every product to be
exact in float32 too. test_writers.py holds these to published test vectors."""
import json, struct
import numpy as np

TYPE_IDS = {"f32": 0, "f16": 1, "q4_0": 2, "q5_0": 6, "q8_0": 8, "q6_k": 14, "bf16": 30, "tq1_0": 34, "tq2_0": 35,
            "i2_s": 36, "iq1_bn": 134, "iq2_bn": 135}
POWERS = 3 ** np.arange(5)


# ---- floats ----------------------------------------------------------------------------------------------------------

def float_bytes(kind, x):
    """Exact: a value that the type cannot hold is a mistake of the model's maker."""
    x = np.asarray(x)
    if kind == "bf16":
        bits = x.astype("<f4").view("<u4")
        assert not np.any(bits & 0xffff) and np.array_equal(x.astype("<f4"), x)
        return (bits >> 16).astype("<u2").tobytes()
    stored = x.astype({"f32": "<f4", "f16": "<f2", "f64": "<f8"}[kind])
    assert np.array_equal(stored.astype(np.float64), x.astype(np.float64))
    return stored.tobytes()


# ---- ternary ---------------------------------------------------------------------------------------------------------

def crumbs(codes):
    """Four 2-bit codes a byte, first axis of length four the lowest bits first."""
    return (codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6).astype(np.uint8)


def i2_s(trits, scale, layout="a"):
    rows, cols = trits.shape
    codes = trits.astype(np.uint8) + np.uint8(1)
    if layout == "c":                       # four rows a byte
        assert rows % 4 == 0
        packed = crumbs(codes.reshape(-1, 4, cols).transpose(1, 0, 2)[::-1])
    else:
        lane = {"a": 32, "b": 16}[layout]   # blocks of four lanes over the flat stream, whatever the rows
        assert codes.size % (4 * lane) == 0
        packed = crumbs(codes.reshape(-1, 4, lane).transpose(1, 0, 2)[::-1])
    tail = bytes(range(0xd0, 0xd0 + 28))    # unspecified, so nothing a reader may rely on
    return packed.tobytes() + struct.pack("<f", scale) + tail


def pack_base3(value):
    """Five trits in a byte such that digits come out by multiplying with powers of three, modulo 256."""
    return ((value * 256 + 242) // 243).astype(np.uint8)


def tq2_0(trits, scale):
    codes = (trits + 1).astype(np.uint8).reshape(-1, 2, 4, 32)
    qs = crumbs(codes.transpose(2, 0, 1, 3)).reshape(-1, 64)
    return np.hstack([qs, tq_scales(trits, scale)]).tobytes()


def tq1_0(trits, scale):
    digits = (trits + 1).astype(np.int64).reshape(-1, 256)
    first = pack_base3(np.einsum("bnm,n->bm", digits[:, :160].reshape(-1, 5, 32), POWERS[::-1]))
    second = pack_base3(np.einsum("bnm,n->bm", digits[:, 160:240].reshape(-1, 5, 16), POWERS[::-1]))
    last = pack_base3(np.einsum("bnm,n->bm", digits[:, 240:].reshape(-1, 4, 4), POWERS[:0:-1]))
    return np.hstack([first, second, last, tq_scales(trits, scale)]).tobytes()


def block_scales(n, scale):
    return np.frombuffer(float_bytes("f16", np.broadcast_to(np.float64(scale), n)), np.uint8).reshape(n, 2)


def tq_scales(trits, scale):
    rows = np.broadcast_to(np.float64(scale), len(trits))
    return block_scales(trits.size // 256, np.repeat(rows, trits.shape[1] // 256))


def iq2_bn(trits, scale):
    rows, cols = trits.shape
    codes = (trits + 1).astype(np.uint8).reshape(rows, cols // 64, 4, 16)
    packed = crumbs(codes.transpose(2, 0, 1, 3)).reshape(rows, -1)
    head = np.broadcast_to(np.float32(scale), rows).astype("<f4").view(np.uint8).reshape(rows, 4)
    return np.hstack([head, packed]).tobytes()


def iq1_bn_blocks(trits):
    """(…, 64) trits to (…, 13) bytes."""
    digits = (trits + 1).astype(np.int64).reshape(*trits.shape[:-1], 4, 16)
    ql = pack_base3(np.einsum("...j,j->...", digits[..., :15].reshape(*digits.shape[:-1], 3, 5), POWERS))
    extra = pack_base3(np.einsum("...g,g->...", digits[..., 15], POWERS[:4]))
    return np.concatenate([ql.reshape(*ql.shape[:-2], 12), extra[..., None]], axis=-1)


def iq1_bn(trits, scale):
    rows, cols = trits.shape
    blocks = iq1_bn_blocks(trits.reshape(rows, cols // 64, 64)).reshape(rows, -1)
    return np.hstack([block_scales(rows, scale), blocks]).tobytes()


TERNARY = {"i2_s": i2_s, "tq1_0": tq1_0, "tq2_0": tq2_0, "iq1_bn": iq1_bn, "iq2_bn": iq2_bn}


def hf_packed(trits):
    """(out/4, in) bytes: byte row r holds rows r, out/4 + r, 2 out/4 + r, 3 out/4 + r, lowest bits first."""
    rows, cols = trits.shape
    return crumbs((trits + 1).astype(np.uint8).reshape(4, rows // 4, cols))


# ---- quantised embeddings --------------------------------------------------------------------------------------------

def halves(x):
    return np.asarray(x, np.float64).astype("<f2").view(np.uint8).reshape(*np.shape(x), 2)


def quantised(kind, rng, rows, cols, step):
    """Bytes of a random matrix of this type, its values up to about `step`, and these values exactly."""
    size = 256 if kind == "q6_k" else 32
    n = rows * cols // size
    assert cols % size == 0
    d = rng.integers(n, 32, 64) * step * 2.0 ** {"q8_0": -13, "q4_0": -9, "q5_0": -10, "q6_k": -15}[kind]
    if kind in ("q4_0", "q5_0"):
        d *= rng.integers(n, 0, 2) * 2 - 1  # the quantisers that exist write both signs
    if kind == "q8_0":
        q = rng.integers(n * 32, -127, 128).reshape(n, 32)
        packed, values = np.hstack([halves(d), q.astype(np.int8).view(np.uint8)]), d[:, None] * q
    elif kind == "q4_0":
        q = rng.integers(n * 32, 0, 16).reshape(n, 32)
        packed, values = np.hstack([halves(d), (q[:, :16] | q[:, 16:] << 4).astype(np.uint8)]), d[:, None] * (q - 8)
    elif kind == "q5_0":
        q = rng.integers(n * 32, 0, 32).reshape(n, 32)
        high = np.sum((q >> 4).astype(np.uint64) << np.arange(32, dtype=np.uint64), axis=1).astype("<u4")
        low = (q[:, :16] & 15 | (q[:, 16:] & 15) << 4).astype(np.uint8)
        packed, values = np.hstack([halves(d), high.view(np.uint8).reshape(n, 4), low]), d[:, None] * (q - 16)
    else:
        q = rng.integers(n * 256, 0, 64).reshape(n, 2, 4, 32)       # half, quarter of it, l
        scales = rng.integers(n * 16, 8, 32).reshape(n, 2, 4, 2)    # half, quarter, l / 16
        scales *= rng.integers(n * 16, 0, 2).reshape(scales.shape) * 2 - 1
        ql = np.concatenate([q[:, :, i] & 15 | (q[:, :, i + 2] & 15) << 4 for i in range(2)], axis=2)
        qh = sum((q[:, :, i] >> 4) << 2 * i for i in range(4))
        packed = np.hstack([ql.reshape(n, 128).astype(np.uint8), qh.reshape(n, 64).astype(np.uint8),
                            scales.reshape(n, 16).astype(np.int8).view(np.uint8), halves(d)])
        values = d[:, None, None, None] * np.repeat(scales, 16, axis=3) * (q - 32)
    return packed.astype(np.uint8).tobytes(), values.reshape(rows, cols)


# ---- GGUF ------------------------------------------------------------------------------------------------------------

KV_TYPES = {"u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
            "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d")}


def gguf_string(s):
    s = s.encode()
    return struct.pack("<Q", len(s)) + s


def gguf_value(kind, v):
    """(type id, bytes); kind "[x]" is an array of x."""
    if kind == "str":
        return 8, gguf_string(v)
    if kind.startswith("["):
        elem, values = kind[1:-1], list(v)
        number = 8 if elem == "str" else KV_TYPES[elem][0]
        return 9, struct.pack("<IQ", number, len(values)) + b"".join(gguf_value(elem, e)[1] for e in values)
    number, fmt = KV_TYPES[kind]
    return number, struct.pack(fmt, v)


def gguf(keys, tensors, version=3, alignment=32):
    """keys {name: (kind, value)}; tensors [(name, dims with the input width first, type, bytes)]."""
    if alignment != 32:
        keys = {"general.alignment": ("u32", alignment), **keys}
    out = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(keys))]
    for name, (kind, v) in keys.items():
        number, data = gguf_value(kind, v)
        out += [gguf_string(name), struct.pack("<I", number), data]
    at = 0
    for name, dims, kind, data in tensors:
        out += [gguf_string(name), struct.pack("<I", len(dims)), struct.pack(f"<{len(dims)}Q", *dims),
                struct.pack("<IQ", TYPE_IDS[kind], at)]
        at += -(-len(data) // alignment) * alignment
    head = b"".join(out)
    body = b"".join(data + bytes(-len(data) % alignment) for _, _, _, data in tensors)
    return head + bytes(-len(head) % alignment) + body


def gguf_split(stem, n, keys, tensors, **how):
    """{file name: bytes} of a set of n files, the keys of the model in the first."""
    def split_keys(i):
        return {"split.no": ("u16", i), "split.count": ("u16", n), "split.tensors.count": ("i32", len(tensors))}

    share = -(-len(tensors) // n)
    return {f"{stem}-{i + 1:05d}-of-{n:05d}.gguf":
            gguf({**(keys if i == 0 else {}), **split_keys(i)}, tensors[i * share:(i + 1) * share], **how)
            for i in range(n)}


# ---- safetensors -----------------------------------------------------------------------------------------------------

def safetensors(tensors):
    """tensors {name: (dtype, shape, bytes)}."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def safetensors_sharded(n, tensors):
    """{file name: bytes} of n shards and their index."""
    names = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    shards = [dict(list(tensors.items())[i::n]) for i in range(n)]
    index = {"metadata": {"total_size": sum(len(t[2]) for t in tensors.values())},
             "weight_map": {t: name for name, shard in zip(names, shards) for t in shard}}
    return {"model.safetensors.index.json": json.dumps(index).encode(),
            **{name: safetensors(shard) for name, shard in zip(names, shards)}}
