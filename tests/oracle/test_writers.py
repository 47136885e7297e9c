"""The writers against the published layout vectors, and the oracle against itself: what must hold before an engine is
compared with either."""
import importlib.util, struct, sys

if not importlib.util.find_spec("numpy"):
    print("skipped: this Python has no numpy")
    sys.exit(77)

import numpy as np
import formats, models, oracle
from formats import TERNARY, hf_packed, i2_s, iq1_bn_blocks, quantised

I = np.arange(256)
T = (7 * I + I // 3) % 3 - 1


def test_i2_s():
    a = i2_s(T[:128].reshape(1, -1), 1.5)
    assert a.hex().startswith("06688558811aa1166006688558811aa1166006688558811aa116600668855881")
    assert len(a) == 128 // 4 + 32 and struct.unpack_from("<f", a, 32) == (1.5,)
    # Layouts B and C have no published vector: their definition, an element at a time.
    t = T.reshape(4, 64)
    b, c = i2_s(t, 1, "b"), i2_s(t, 1, "c")
    for e in range(256):
        assert b[16 * (e // 64) + e % 16] >> 6 - 2 * (e % 64 // 16) & 3 == T[e] + 1
        assert c[e % 64] >> 6 - 2 * (e // 64) & 3 == T[e] + 1


def test_tq():
    t = T.reshape(1, -1)
    assert formats.tq2_0(t, 0.5).hex() == "9029522542a44a94099029522542a44a94099029522542a44a94099029522542" \
        "522542a44a94099029522542a44a94099029522542a44a94099029522542a44a" "0038"
    assert formats.tq1_0(t, 0.5).hex() == "12a3ba85b036e82d9012a3ba85b036e82d9012a3ba85b036e82d9012a3ba85b0" \
        "0ea8058eac84e42cf70ea8058eac84e4" "c8507946" "0038"


def test_iq():
    assert iq1_bn_blocks(T[:64]).tobytes().hex() == "de234acb4199234a6141996b1c"
    assert formats.iq1_bn(T[:64].reshape(1, -1), 0.5).hex() == "0038" "de234acb4199234a6141996b1c"
    assert formats.iq2_bn(T[:64].reshape(1, -1), 0.5).hex() == "0000003f" "40a502950a542a50a940a502950a542a"


def test_hf():
    assert hf_packed(T[:32].reshape(8, 4)).tobytes().hex() == "84114619" "66986288"


def test_sizes():
    t = np.zeros((3, 512), int)
    want = {"i2_s": 3 * 128 + 32, "tq1_0": 6 * 54, "tq2_0": 6 * 66, "iq1_bn": 3 * (2 + 8 * 13), "iq2_bn": 3 * (4 + 128)}
    assert {k: len(f(t, 0.5)) for k, f in TERNARY.items()} == want


def test_quantised():
    """One weight of every block decoded again, by the formulas a weight at a time."""
    for kind, size, bytes_each in ("q8_0", 32, 34), ("q4_0", 32, 18), ("q5_0", 32, 22), ("q6_k", 256, 210):
        data, values = quantised(kind, models.Rng(kind), 4, 512, 1.0)
        assert len(data) == 2048 // size * bytes_each
        assert np.array_equal(values.astype(np.float32), values) and 0.2 < np.std(values) < 1
        for b, block in enumerate(data[i:i + bytes_each] for i in range(0, len(data), bytes_each)):
            for j in range(size):
                assert decoded(kind, block, j) == values.reshape(-1, size)[b, j], (kind, b, j)


def decoded(kind, block, j):
    f16 = lambda at: struct.unpack_from("<e", block, at)[0]
    if kind == "q8_0":
        return f16(0) * struct.unpack_from("<b", block, 2 + j)[0]
    if kind == "q4_0":
        return f16(0) * ((block[2 + j] & 15 if j < 16 else block[2 + j - 16] >> 4) - 8)
    if kind == "q5_0":
        high = struct.unpack_from("<I", block, 2)[0] >> j & 1
        return f16(0) * ((block[6 + j] & 15 if j < 16 else block[6 + j - 16] >> 4) + 16 * high - 16)
    half, quarter, l = j // 128, j % 128 // 32, j % 32
    low = block[64 * half + l + 32 * (quarter % 2)] >> 4 * (quarter // 2) & 15
    high = block[128 + 32 * half + l] >> 2 * quarter & 3
    scale = struct.unpack_from("<b", block, 192 + 8 * half + l // 16 + 2 * quarter)[0]
    return f16(208) * scale * ((low | high << 4) - 32)


def test_masters():
    """Absmean, as a loader does it in float32, gives back exactly the trits and scale of every tensor of every graph."""
    for graph in models.GRAPHS:
        for tensors in models.Tiny(graph).layers:
            for name, w in tensors.items():
                if isinstance(w, models.Weights):
                    master = w.masters().astype(np.float32)
                    gamma = np.sum(np.abs(master), dtype=np.float32) / np.float32(master.size)
                    assert gamma == np.float32(w.scale) == np.float16(w.scale), (graph, name)
                    centre = np.mean(master, dtype=np.float64) if w.binary else 0
                    trits = np.sign(master - centre) if w.binary else np.clip(np.rint(master / gamma), -1, 1)
                    assert np.array_equal(trits, w.trits), (graph, name)
                    inverse = np.float32(1) / np.float32(w.scale)
                    assert np.float32(1) / inverse == np.float32(w.scale)


def test_permuted():
    """Rows permuted with adjacent RoPE are the half-rotated model."""
    tiny = models.Tiny("llama")
    ids = [5, 250, 17, 99]
    a, b = (oracle.forward(tiny.oracle(permuted=p), ids)[0] for p in (False, True))
    assert np.max(np.abs(a - b)) < 1e-10


def test_steps():
    """Many tokens at once and one at a time are the same."""
    for graph in models.GRAPHS:
        m = models.Tiny(graph).oracle()
        ids, state = [1, 200, 33, 77, 8], oracle.State(m.spec)
        whole = oracle.forward(m, ids)[0]
        parts = np.vstack([oracle.forward(m, [t], state)[0] for t in ids])
        assert np.max(np.abs(whole - parts)) < 1e-9, graph
        assert 0.5 < np.std(whole) < 30, (graph, np.std(whole))


def test_hadamard():
    x = np.random.default_rng(1).normal(size=(3, 768))
    h = oracle.hadamard(x)
    assert np.allclose(oracle.hadamard(h), x) and np.allclose(h[:, 256], x[:, 256:512].sum(axis=1) / 16)


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("ok", name)
