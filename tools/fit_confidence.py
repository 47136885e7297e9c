#!/usr/bin/env python3
r"""Fit P(the local answer is right) for the model that ships, and print what policy/signals.c and policy/config.c hold.

    tools/fit_confidence.py --ternd build/daemon/ternd --data ../shared/data \
        [--evaluation ../shared/nano/evaluation.jsonl]

The items are CLINC150's validation split with its out-of-scope validation queries (`val`, `oos_val` of data_full.json),
and generated arithmetic, units, days, capitals and spelling. No arithmetic and no spelling is among the strings of the
model's training or evaluation; units, days and capitals are closed sets, which it has seen. Each item is answered
greedily by the engine itself, driven as ternd drives it: over a socketpair, in the frames of base/frame.h. An answer is
right when it is the expected sentence; to an out-of-scope query no answer is right.

Out-of-scope items weigh as much as they do in CLINC150's test, 1,000 to 4,500 in scope; every other item weighs one.
The logistic regression is fitted by Newton's method with a slight ridge; candidates are compared by five-fold
validation. With --evaluation the items of that file are answered too and the finished fit is judged on them.

Needs nothing but Python's standard library."""
import argparse
import json
import math
import os
import random
import socket
import struct
import subprocess
import sys

START, READY, FAILED, TOKEN, END, REFUSED = 1, 101, 102, 104, 105, 106


class Engine:
    """One engine worker, and as many requests in flight as it has sessions."""

    def __init__(self, command):
        self.sock, theirs = socket.socketpair()
        self.process = subprocess.Popen(command + ["--role", "engine", "--fd", str(theirs.fileno())],
                                        pass_fds=[theirs.fileno()])
        theirs.close()
        kind, _, payload = self.receive()
        if kind != READY:
            sys.exit("engine: " + payload.decode(errors="replace"))
        self.ready = json.loads(payload)

    def exactly(self, n):
        parts = []
        while n:
            part = self.sock.recv(n)
            if not part:
                sys.exit("the engine went away")
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def receive(self):
        kind, length, number = struct.unpack("=IIQ", self.exactly(16))
        return kind, number, self.exactly(length)

    def send(self, kind, number, payload):
        self.sock.sendall(struct.pack("=IIQ", kind, len(payload), number) + payload)

    def answer(self, prompts):
        """[(text, [(logprob, margin, entropy), …]), …] in the order of prompts."""
        answers = [["", []] for _ in prompts]
        waiting = iter(range(len(prompts)))
        running = 0

        def begin():
            number = next(waiting, None)
            if number is None:
                return 0
            body = {"messages": [{"role": "user", "content": prompts[number]}], "temperature": 0, "max_tokens": 64}
            self.send(START, number + 1, json.dumps(body).encode())
            return 1

        for _ in range(self.ready["sessions"]):
            running += begin()
        while running:
            kind, number, payload = self.receive()
            if kind == TOKEN:
                _, logprob, margin, entropy, piece, text, _ = struct.unpack_from("=IfffIII", payload)
                answers[number - 1][0] += payload[28 + piece:28 + piece + text].decode()
                answers[number - 1][1].append((logprob, margin, entropy))
            elif kind == END:
                running += begin() - 1
            elif kind in (REFUSED, FAILED):
                sys.exit("engine: " + payload.decode(errors="replace"))
        return [(text.strip(), tokens) for text, tokens in answers]


def validation_items(data):
    """(prompt, expected or None, weight)"""
    os.environ["DATA"] = data
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "nano"))
    import data as nano
    _, val, _, _, oos, training, evaluation = nano.build()
    seen = {prompt for prompt, _, _ in evaluation}
    for _ in range(25):    # training drew fresh strings in each of its 24 passes
        seen.update(prompt for prompt, _, task in training() if task in ("arith", "spell"))
    r = random.Random(2026)
    generated = [(nano.arith, 500), (nano.units, 100), (nano.cyc, 60), (nano.caps, 150), (nano.words, 150)]
    items = [(p, e, 1.0) for p, e, _ in val]
    items += [(p, None, 1000 / 4500 * len(val) / len(oos)) for p, _, _ in oos]
    for make, n in generated:
        closed = make not in (nano.arith, nano.words)
        items += [(p, e, 1.0) for p, e, _ in make(r, 10 * n) if closed or p not in seen][:n]
    return items


def doubt(logprob):
    return math.log(1e-3 - min(logprob, 0.0))


SIGNALS = {
    "worst_token": lambda t: doubt(min(x[0] for x in t)),
    "mean_token": lambda t: doubt(sum(x[0] for x in t) / len(t)),
    "max_entropy": lambda t: math.log(1e-3 + max(x[2] for x in t)),
    "mean_entropy": lambda t: math.log(1e-3 + sum(x[2] for x in t) / len(t)),
    "min_margin": lambda t: math.log(1e-1 + min(x[1] for x in t)),
    "length": lambda t: math.log(len(t)),
}
CANDIDATES = [
    ["worst_token"], ["mean_token"], ["max_entropy"], ["min_margin"], ["worst_token", "mean_token"],
    ["worst_token", "length"], ["max_entropy", "mean_entropy"], ["max_entropy", "length"],
    ["worst_token", "max_entropy", "length"], ["worst_token", "mean_token", "max_entropy", "min_margin"],
    list(SIGNALS),
]


def solve(a, b):
    n = len(b)
    a = [row[:] + [x] for row, x in zip(a, b)]
    for i in range(n):
        p = max(range(i, n), key=lambda k: abs(a[k][i]))
        a[i], a[p] = a[p], a[i]
        for k in range(n):
            if k != i:
                f = a[k][i] / a[i][i]
                a[k] = [x - f * y for x, y in zip(a[k], a[i])]
    return [a[i][n] / a[i][i] for i in range(n)]


def sigmoid(z):
    return 1 / (1 + math.exp(-max(-40.0, min(40.0, z))))


def fit(rows, ridge=1e-4):
    """rows: (features with a leading 1, right, weight). Coefficients."""
    k = len(rows[0][0])
    beta = [0.0] * k
    for _ in range(100):
        g = [-ridge * len(rows) * b * (i > 0) for i, b in enumerate(beta)]
        h = [[ridge * len(rows) * (i == j > 0) + 1e-9 * (i == j) for j in range(k)] for i in range(k)]
        for x, y, w in rows:
            p = sigmoid(sum(b * v for b, v in zip(beta, x)))
            for i in range(k):
                g[i] += w * (y - p) * x[i]
                for j in range(k):
                    h[i][j] += w * max(p * (1 - p), 1e-6) * x[i] * x[j]
        step = solve(h, g)
        size = max(abs(s) for s in step)
        beta = [b + s * min(1, 3 / size) for b, s in zip(beta, step)]
        if size < 1e-8:
            break
    return beta


def auroc(good, bad):
    ranked = sorted([(s, 1) for s in good] + [(s, 0) for s in bad])
    total, i = 0.0, 0
    while i < len(ranked):
        j = i
        while j < len(ranked) and ranked[j][0] == ranked[i][0]:
            j += 1
        total += (i + j + 1) / 2 * sum(y for _, y in ranked[i:j])
        i = j
    n = len(good)
    return (total - n * (n + 1) / 2) / (n * len(bad))


def features(names, tokens):
    return [1.0] + [SIGNALS[n](tokens) for n in names]


def predict(beta, x):
    return sigmoid(sum(b * v for b, v in zip(beta, x)))


def compare(items, names):
    """Log-loss and AUROC, right against the rest, of items that the fit did not see."""
    order = list(range(len(items)))
    random.Random(1).shuffle(order)
    loss = weight = 0.0
    scores = {}
    for fold in range(5):
        inside = set(order[fold::5])
        beta = fit([(features(names, t), y, w) for i, (t, y, w) in enumerate(items) if i not in inside])
        for i in inside:
            t, y, w = items[i]
            p = scores[i] = predict(beta, features(names, t))
            loss -= w * math.log(p if y else 1 - p)
            weight += w
    of = lambda right: [scores[i] for i in scores if items[i][1] == right]
    return loss / weight, auroc(of(1), of(0))


def print_bounds(scored):
    """For each bound: balanced accuracy of "at least" as a guess of "right", and the right answers lost below it."""
    right = sum(w for _, y, w in scored if y)
    wrong = sum(w for _, y, w in scored if not y)
    for bound in (x / 20 for x in range(1, 20)):
        lost = sum(w for p, y, w in scored if y and p < bound) / right
        caught = sum(w for p, y, w in scored if not y and p < bound) / wrong
        print(f"  bound {bound:.2f}: balanced accuracy {(1 - lost + caught) / 2:.4f}, "
              f"{100 * lost:.1f} % of the right answers below, {100 * caught:.1f} % of the rest")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ternd", required=True, help="ternd, with options of its own if need be")
    arguments.add_argument("--data", required=True, help="folder that holds clinc150/data_full.json")
    arguments.add_argument("--evaluation", help="evaluation.jsonl to judge the finished fit on")
    arguments.add_argument("--signals", default="max_entropy,length", help="signals to fit; default: those that ship")
    arguments.add_argument("--threshold", type=float, default=0.6, help="bound to judge with --evaluation")
    options = arguments.parse_args()
    engine = Engine(options.ternd.split())
    print("model", engine.ready["model"], engine.ready["digest"])

    plan = validation_items(os.path.join(options.data, ""))
    items = [(tokens, int(text == expected), weight)
             for (_, expected, weight), (text, tokens) in zip(plan, engine.answer([p for p, _, _ in plan]))]
    print(f"{len(items)} validation items, {sum(y for _, y, _ in items)} answered right")
    for names in CANDIDATES:
        print("log-loss %.4f  AUROC %.4f  %s" % (*compare(items, names), " ".join(names)))

    names = options.signals.split(",")
    beta = fit([(features(names, t), y, w) for t, y, w in items])
    scored = [(predict(beta, features(names, t)), y, w) for t, y, w in items]
    print("coefficients", " ".join(f"{n} {b:.4f}" for n, b in zip(["bias"] + names, beta)))
    print_bounds(scored)

    if options.evaluation:
        with open(options.evaluation, encoding="utf-8") as f:
            rows = [json.loads(line) for line in f]
        answers = engine.answer([r["prompt"] for r in rows])
        same = sum(r["answer"] == text for r, (text, _) in zip(rows, answers))
        score = [predict(beta, features(names, t)) for _, t in answers]
        least = [min(x[0] for x in t) for _, t in answers]
        print(f"evaluation: {len(rows)} items, {same} answers as recorded")
        right = [r["expected"] is not None and text == r["expected"] for r, (text, _) in zip(rows, answers)]
        for name, s in (("this fit", score), ("lowest log-probability", least)):
            of = lambda suite: [x for x, r in zip(s, rows) if r["suite"] == suite]
            print("AUROC %-24s in scope against out of scope %.4f, right against the rest %.4f" %
                  (name, auroc(of("clinc_test"), of("clinc_oos_test")),
                   auroc([x for x, y in zip(s, right) if y], [x for x, y in zip(s, right) if not y])))
        kept = [y for x, y in zip(score, right) if x >= options.threshold]
        print(f"at {options.threshold} {len(kept)} of {len(rows)} are kept, {sum(kept) / len(kept):.4f} of them right; "
              f"{sum(right)} of all were right")
        for lo in range(0, 100, 20):
            bin_ = [(x, y) for x, y in zip(score, right) if lo / 100 <= x < lo / 100 + 0.2 or lo == 80 and x == 1]
            if bin_:
                print("  said %.2f, were right %.2f, %d items" %
                      (sum(x for x, _ in bin_) / len(bin_), sum(y for _, y in bin_) / len(bin_), len(bin_)))


if __name__ == "__main__":
    main()
