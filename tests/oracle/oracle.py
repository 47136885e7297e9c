"""The family's forward pass in float64, as the papers state it and slowly: what the engine is compared with.

Written from the published definitions and from docs/model-metadata.md; it shares no code with the engine and reads none
of its files. A model is arrays (struct below); every product of quantised activations with ternary weights is an exact
integer, and only then scaled, y = sum * (scale * (a / 127)).

Rounding an activation is a choice: where x*s lies very near a half, float32 and float64 may choose differently and the
two computations are no longer comparable to 1e-5. Ties remembers how near any choice came, so that a test can pick
inputs for which all choices are clear and say so, instead of loosening its tolerance."""
import numpy as np

NEAR = 1e-4        # of a step: nearer to a half than this is a tie
NEAR_RANK = 1e-5   # of the row's largest: nearer than this two values have no clear order


class Ties:
    """The nearest call of all choices made, as a fraction of what counts as near: below 1 there was a tie."""

    def __init__(self):
        self.nearest = np.inf

    def rounding(self, v):
        self.nearest = min(self.nearest, np.min(np.abs(np.abs(v - np.floor(v)) - 0.5)) / NEAR)

    def order(self, kept, dropped, largest):
        self.nearest = min(self.nearest, (kept - dropped) / (NEAR_RANK * largest))


class Spec:
    """What of a graph is not a tensor. The defaults are BitNet b1.58's."""

    def __init__(self, **given):
        self.n_embd = self.n_layer = self.n_head = self.n_kv = self.head_dim = self.n_ff = self.n_vocab = 0
        self.eps, self.theta = 1e-5, 10000.0
        self.eps_in = None                  # of the *_norm_in; None: eps
        self.window = 0                     # Gemma's local layers, all but every pattern-th, see this many tokens
        self.pattern, self.theta_local = 1, 10000.0
        self.rope_shrink = 1.0              # of the others, linear scaling: positions are divided by it
        self.attn_scale = None              # None: 1 / sqrt(head_dim)
        self.half = True                    # RoPE turns (j, j + d/2), else (2j, 2j + 1)
        self.activation = "relu2"
        self.norm = "rms"
        self.embd_scale = 1.0
        self.pooling = None                 # an embedding model: "last" or "mean"
        self.quant = dict.fromkeys(("qkv", "o", "gate_up", "down"), "int8-absmax")
        self.hadamard = ()                  # of "o", "down"
        self.kv_bits = 32
        unknown = set(given) - set(vars(self))
        assert not unknown, unknown
        vars(self).update(given)


class Linear:
    """Trits (out, in), times one scale, or one a row."""

    def __init__(self, trits, scale):
        self.wide, self.scale = trits.astype(np.float64), np.asarray(scale, np.float64)


class Model:
    """spec; embd and head (vocab, hidden); output_norm; layers: dicts of Linears and norm gains by GGUF's names;
    rope_freqs or None."""

    def __init__(self, spec, embd, head, output_norm, layers, rope_freqs=None):
        self.spec, self.embd, self.head, self.output_norm = spec, embd, head, output_norm
        self.layers, self.rope_freqs = layers, rope_freqs


class State:
    """Keys and values of the tokens so far, one pair of (tokens, kv heads, head_dim) a layer."""

    def __init__(self, spec):
        none = np.zeros((0, spec.n_kv, spec.head_dim))
        self.kv = [(none, none) for _ in range(spec.n_layer)]
        self.n = 0


# ---- quantisation of activations -------------------------------------------------------------------------------------

def int8_absmax(x, ties):
    a = np.maximum(np.max(np.abs(x), axis=-1, keepdims=True), 1e-5)
    v = x * (127.0 / a)
    ties.rounding(v)
    return np.clip(np.rint(v), -127, 127), a / 127


def int4_absmean(x, ties):
    beta = np.mean(np.abs(x), axis=-1, keepdims=True)
    v = x * (np.sqrt(7.0) / (beta + 1e-5))
    ties.rounding(v)
    return np.clip(np.rint(v), -8, 7), beta / np.sqrt(7.0)


def top50_int8(x, ties):
    n = x.shape[-1]
    order = np.argsort(-np.abs(x), axis=-1, kind="stable")         # ties: the lower index first
    kept = np.zeros_like(x)
    np.put_along_axis(kept, order[..., :n // 2], 1.0, axis=-1)
    ranked = np.take_along_axis(np.abs(x), order, axis=-1)
    clear = ranked[..., n // 2 - 1] - ranked[..., n // 2]
    at = np.argmin(clear / ranked[..., 0])
    ties.order(ranked[at, n // 2 - 1], ranked[at, n // 2], ranked[at, 0])
    return int8_absmax(x * kept, ties)


QUANT = {"int8-absmax": int8_absmax, "int4-absmean": int4_absmean, "top50-int8": top50_int8}


def bitlinear(w, x, quant, ties):
    if quant == "none":
        return (x @ w.wide.T) * w.scale
    q, unit = QUANT[quant](x, ties)
    total = q @ w.wide.T                    # integers far below 2^53: exact
    assert np.array_equal(total, np.rint(total))
    return total.astype(np.int64) * (w.scale * unit)


def hadamard(x):
    """Normalised, in blocks of the largest power of two that divides the width."""
    n = x.shape[-1]
    size = n & -n
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return (x.reshape(-1, n // size, size) @ h / np.sqrt(size)).reshape(x.shape)


def quantize_kv(x, bits, first, ties):
    """Symmetric, one scale a head and token; with 3 bits the timeline's first token keeps 4."""
    b = np.full((len(x), 1, 1), bits)
    if bits == 3 and first:
        b[0] = 4
    top = 2.0 ** (b - 1) - 1
    a = np.maximum(np.max(np.abs(x), axis=-1, keepdims=True), 1e-30)
    v = x * (top / a)
    ties.rounding(v)
    return np.clip(np.rint(v), -top, top) * (a / top)


# ---- the pieces of a layer -------------------------------------------------------------------------------------------

def norm(spec, x, gain, eps=None):
    if spec.norm == "layer":
        x = x - np.mean(x, axis=-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + (eps or spec.eps)) * gain


def activate(name, x):
    if name == "relu2":
        return np.maximum(x, 0) ** 2
    if name == "silu":
        return x / (1 + np.exp(-x))
    assert name == "gelu"
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def rope(m, x, positions, theta):
    """x (tokens, heads, head_dim)."""
    half = m.spec.head_dim // 2
    turn = theta ** (-2.0 * np.arange(half) / m.spec.head_dim)
    if m.rope_freqs is not None:
        turn = turn / m.rope_freqs
    angle = positions[:, None, None] * turn
    cos, sin = np.cos(angle), np.sin(angle)
    out = np.empty_like(x)
    u, v = (slice(0, half), slice(half, None)) if m.spec.half else (slice(0, None, 2), slice(1, None, 2))
    out[..., u] = x[..., u] * cos - x[..., v] * sin
    out[..., v] = x[..., u] * sin + x[..., v] * cos
    return out


def attention(spec, q, k, v, first, window):
    """q (tokens, heads, d) from position `first`, over k and v (all tokens, kv heads, d); of these each sees itself and
    what came before, the last `window` tokens in all."""
    group = spec.n_head // spec.n_kv
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("thd,phd->htp", q, k) * (spec.attn_scale or 1 / np.sqrt(spec.head_dim))
    ago = first + np.arange(len(q))[:, None] - np.arange(len(k))[None, :]
    scores = np.where((ago < 0) | (ago >= window), -np.inf, scores)
    weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    weights /= np.sum(weights, axis=-1, keepdims=True)
    return np.einsum("htp,phd->thd", weights, v).reshape(len(q), -1)


# ---- the model -------------------------------------------------------------------------------------------------------

def layer(m, i, x, state, ties, trace, weight_only):
    s, y = m.spec, m.layers[i]
    positions = state.n + np.arange(len(x))
    local = s.window > 0 and (i + 1) % s.pattern != 0
    theta, window = (s.theta_local, s.window) if local else (s.theta, np.inf)
    turned = positions if local else positions / s.rope_shrink

    def note(name, value):
        trace(f"l{i}.{name}", value)
        return value

    def project(name, h, kind):
        if name + "_norm_in" in y:
            h = norm(s, h, y[name + "_norm_in"], s.eps_in)
        if kind in s.hadamard:
            h = hadamard(h)
        return bitlinear(y[name], h, "none" if weight_only else s.quant[kind], ties)

    def heads(name, v):
        v = v.reshape(len(x), -1, s.head_dim)
        return norm(s, v, y[name + "_norm"]) if name + "_norm" in y else v

    def norm_before(name):
        return note(name, norm(s, x, y[name]) if name in y else x)

    h = norm_before("attn_norm")
    q = note("q", project("attn_q", h, "qkv"))
    k = note("k", project("attn_k", h, "qkv"))
    v = note("v", project("attn_v", h, "qkv"))
    q = rope(m, heads("attn_q", q), turned, theta)
    k = rope(m, heads("attn_k", k), turned, theta)
    v = v.reshape(len(x), s.n_kv, s.head_dim)
    note("q_rope", q.reshape(len(x), -1))
    note("k_rope", k.reshape(len(x), -1))
    if s.kv_bits < 32:
        k, v = (quantize_kv(c, s.kv_bits, state.n == 0, ties) for c in (k, v))
    k, v = (np.concatenate(pair) for pair in zip(state.kv[i], (k, v)))
    state.kv[i] = k, v
    a = note("attn", attention(s, q, k, v, state.n, window))
    if "attn_sub_norm" in y:
        a = note("attn_sub_norm", norm(s, a, y["attn_sub_norm"]))
    o = note("o", project("attn_output", a, "o"))
    if "post_attention_norm" in y:
        o = note("post_attention_norm", norm(s, o, y["post_attention_norm"]))
    x = note("x_attn", x + o)

    h = norm_before("ffn_norm")
    gate = note("gate", project("ffn_gate", h, "gate_up"))
    up = note("up", project("ffn_up", h, "gate_up"))
    f = note("f", activate(s.activation, gate) * up)
    if "ffn_sub_norm" in y:
        f = note("ffn_sub_norm", norm(s, f, y["ffn_sub_norm"]))
    down = note("down", project("ffn_down", f, "down"))
    if "post_ffw_norm" in y:
        down = note("post_ffw_norm", norm(s, down, y["post_ffw_norm"]))
    return note("out", x + down)


def forward(m, ids, state=None, ties=None, trace=None, weight_only=False):
    """Logits (tokens, vocab), and what output_norm gave (tokens, hidden). Appends to state; trace(name, rows) is called
    for every stage."""
    state = state or State(m.spec)
    ties = ties or Ties()
    trace = trace or (lambda name, rows: None)
    x = m.embd[np.asarray(ids)] * m.spec.embd_scale
    for i in range(m.spec.n_layer):
        x = layer(m, i, x, state, ties, trace, weight_only)
    state.n += len(ids)
    x = norm(m.spec, x, m.output_norm)
    trace("final_norm", x)
    logits = x @ m.head.T
    trace("logits", logits)
    return logits, x


def embed(m, ids, **how):
    """The unit vector of a text."""
    x = forward(m, ids, **how)[1]
    v = x[-1] if m.spec.pooling == "last" else np.mean(x, axis=0)
    return v / np.sqrt(np.sum(v * v))


def greedy(m, ids, n, margin=0.0, weight_only=False):
    """n tokens; None as soon as the best leads the second by less than margin. The lowest id wins a tie."""
    state, out = State(m.spec), []
    logits = forward(m, ids, state, weight_only=weight_only)[0][-1]
    while True:
        best = int(np.argmax(logits))
        if logits[best] - np.max(np.delete(logits, best)) < margin:
            return None
        out.append(best)
        if len(out) == n:
            return out
        logits = forward(m, [best], state, weight_only=weight_only)[0][-1]
