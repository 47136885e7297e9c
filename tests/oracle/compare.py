"""Run the engine on a model and hold what it computed against the oracle."""
import json, os, subprocess
import numpy as np
import oracle
from models import VOCAB, Rng

BUILD = os.environ.get("TERN_BUILD", os.path.join(os.path.dirname(__file__), "../../build"))
DUMP = os.path.join(BUILD, "tests/engine/test_engine_dump")
PROMPT, GREEDY = 4, 64
REL_L2, LOGITS, EMBEDDING = 1e-5, 1e-3, 1e-5
# Where the search for each prompt ended: test_oracle.py --search writes it anew.
FOUND_FILE = os.path.join(os.path.dirname(__file__), "prompts.json")
FOUND = json.load(open(FOUND_FILE)) if os.path.exists(FOUND_FILE) else {}
# A greedy run is too long to be free of near ties. Instead its tokens must not depend on them: the best leads by this
# much of the logits' deviation, and models whose numbers differ by what float32 makes of them say the same tokens.
MARGIN, NOISE, TRIES = 0.01, 5e-7, 20000


class Difference(Exception):
    pass


class Expected:
    """What an oracle model computes for a prompt whose every rounding is clear, and the tokens that follow another
    prompt stably. Prompts are tried in seeded order; FOUND says where the search ended when it was last run, so that it
    need not be repeated while the models stay as they are."""

    def __init__(self, name, model, weight_only=False, follow=True):
        """follow False: no greedy run."""
        self.name, self.model, self.weight_only = name, model, weight_only
        self.embedding = self.greedy = None
        self.found = {}
        self.ids = self.search("clear", self.clear)
        if model.spec.pooling:
            self.embedding = oracle.embed(model, self.ids, weight_only=weight_only)
        elif follow:
            self.greedy_ids = self.search("stable", self.stable)

    def search(self, what, good):
        prompts = Rng(f"{what}/{self.name}").integers(TRIES * PROMPT, 0, VOCAB).reshape(TRIES, PROMPT).tolist()
        first = FOUND.get(f"{what}/{self.name}", 0)
        for i in [*range(first, TRIES), *range(first)]:
            if good(prompts[i]):
                self.found[f"{what}/{self.name}"] = i
                return prompts[i]
        raise Difference(f"no {what} prompt was found")

    def clear(self, ids):
        ties, self.stages = oracle.Ties(), {}
        keep = lambda stage, rows: self.stages.__setitem__(stage, rows)
        oracle.forward(self.model, ids, ties=ties, trace=keep, weight_only=self.weight_only)
        return ties.nearest >= 1

    def stable(self, ids):
        m = self.model
        lead = MARGIN * np.std(self.stages["logits"])
        self.greedy = oracle.greedy(m, ids, GREEDY, lead, self.weight_only)
        for seed in range(3):
            if self.greedy:
                noise = 1 + NOISE * np.random.default_rng(seed).normal(size=m.embd.shape)
                other = oracle.Model(m.spec, m.embd * noise, m.head, m.output_norm, m.layers, m.rope_freqs)
                if oracle.greedy(other, ids, GREEDY, 0.0, self.weight_only) != self.greedy:
                    self.greedy = None
        return self.greedy is not None


def dump(path, ids, *flags):
    try:
        ran = subprocess.run([DUMP, path, *map(str, ids), *flags], capture_output=True, text=True, timeout=120)
    except OSError as e:
        raise Difference(f"{DUMP}: {e.strerror}") from None
    if ran.returncode:
        raise Difference(f"{os.path.basename(DUMP)} exits {ran.returncode}: {ran.stderr.strip()[-400:]}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


class Computed:
    """What the engine gives for these tokens."""

    def __init__(self, path, expected, flags=()):
        self.stages, self.greedy = {}, None
        embeds = expected.embedding is not None
        for said in dump(path, expected.ids, "--trace", *flags, *["--embed"] * embeds):
            rows = self.stages.setdefault(said["name"], {})
            rows.setdefault(said["row"], np.array(said["data"], np.float64))
        if expected.greedy:
            self.greedy = dump(path, expected.greedy_ids, "--greedy", str(GREEDY), *flags)[-1]["greedy"]


def check_stages(expected, computed, needed):
    """The largest rel L2 of any stage and row. In the order of computation: the first to differ is named."""
    missing = sorted(set(needed) - set(computed.stages))
    if missing:
        raise Difference(f"the engine traces no {', '.join(missing)}")
    worst = 0.0
    for stage, rows in expected.stages.items():
        if stage not in computed.stages or stage == "logits":
            continue
        for row, want in enumerate(rows):
            got = computed.stages[stage].get(row)
            if got is None or got.shape != want.shape:
                raise Difference(f"{stage} row {row}: {'absent' if got is None else got.shape}, expected {want.shape}")
            off = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
            if not off <= REL_L2:
                at = int(np.argmax(np.abs(got - want)))
                raise Difference(f"{stage} row {row}: rel L2 {off:.3g}; element {at} is {got[at]:.9g}, "
                                 f"expected {want[at]:.9g}")
            worst = max(worst, off)
    unknown = sorted(set(computed.stages) - set(expected.stages) - {"embedding"})
    if unknown:
        raise Difference(f"the engine traces {', '.join(unknown)}, which the oracle does not know")
    return worst


def check_logits(expected, computed):
    worst = 0.0
    for row, want in enumerate(expected.stages["logits"]):
        got = computed.stages["logits"].get(row)
        if got is None:
            raise Difference(f"no logits of row {row}")
        worst = max(worst, np.max(np.abs(got - want)))
        if not worst <= LOGITS:
            raise Difference(f"logits row {row} are {worst:.3g} off")
    return worst


def check(expected, computed, needed):
    """A line of figures, or Difference."""
    words = [f"stages {check_stages(expected, computed, needed):.1e}"]
    if expected.embedding is not None:
        got = computed.stages.get("embedding", {}).get(0)
        off = np.inf if got is None else np.linalg.norm(got - expected.embedding)
        if not off <= EMBEDDING:
            raise Difference(f"embedding is {off:.3g} off")
        return ", ".join([*words, f"embedding {off:.1e}"])
    words.append(f"logits {check_logits(expected, computed):.1e}")
    if not expected.greedy:
        return ", ".join(words)
    if computed.greedy is None or computed.greedy[:GREEDY] != expected.greedy:
        got = computed.greedy or []
        same = next((i for i, (a, b) in enumerate(zip(got, expected.greedy)) if a != b), len(got))
        raise Difference(f"greedy: token {same} of {GREEDY} differs")
    return ", ".join([*words, f"{GREEDY} tokens"])


def same_bits(a, b):
    """Whether two runs gave the same logits (or vector) to the bit; the dump prints floats that read back exactly."""
    name = "embedding" if "embedding" in a.stages else "logits"
    a, b = a.stages[name], b.stages[name]
    return a.keys() == b.keys() and all(np.array_equal(a[row], b[row]) for row in a)
