"""Many at once: streams side by side, more than there is room for, clients who want all of it, turns that go on.

TERN_STREAMS sets how many streams stand side by side (64 for the figures in docs/performance.md)."""
import hashlib, threading
import load
from harness import *

STREAMS = int(os.environ.get("TERN_STREAMS", "12"))
LONG = {"model": "local", "messages": [{"role": "user", "content": "tell me"}], "repeat_penalty": 0.1, "stream": True,
        "stream_options": {"include_usage": True}}


def keys(**more):
    """A configuration with keys a and b, and the headers that carry them."""
    config = "".join(f"[key {k}]\nsha256 = {hashlib.sha256(('secret ' + k).encode()).hexdigest()}\n{more.get(k, '')}\n"
                     for k in "ab")
    return config, *({"Authorization": f"Bearer secret {k}"} for k in "ab")


def engine(d):
    return d.request("GET", "/v1/tern/status").json()["engine"]


def median(values):
    return sorted(values)[len(values) // 2]


def side_by_side(n, tokens):
    settings = (f"engine.sessions={min(n, 64)}", f"engine.queue_client={n}", "policy.hold_tokens=0")
    with running(*settings) as (d, _):
        clients = [load.Client(d.port, load.times(1, {**LONG, "max_tokens": tokens})) for _ in range(n)]
        seconds = load.run(clients, 120 * PATIENCE)
        return clients, seconds


def test_streams_side_by_side():
    tokens = 200 if STREAMS >= 64 else 80
    side_by_side(1, tokens)
    rates = []
    for n in (1, STREAMS):
        clients, seconds = side_by_side(n, tokens)
        answers = [c.answers[0] for c in clients]
        assert all(a[5].endswith(b"[DONE]\n\n\r\n0\r\n\r\n") for a in answers), "a stream was cut"
        told = sum(load.tokens(a) for a in answers)
        ends = [a[3] - a[1] for a in answers]
        gaps = load.gaps(clients)
        rates.append(told / seconds)
        print(f"      {n} streams: {rates[-1]:.0f} tokens/s, slowest/fastest {max(ends) / min(ends):.2f}, gap p50 "
              f"{1000 * median(gaps):.2f} ms, p99 {1000 * gaps[int(len(gaps) * 0.99)]:.2f} ms")
        assert told >= n * tokens * 0.8
        assert max(ends) / min(ends) <= 2, ends
    print(f"      together {rates[1] / rates[0]:.2f} times one alone")


def test_overload():
    """Ten times as many as there is room for: the work done stays, and who has no place hears it at once."""
    settings = ("engine.sessions=4", "engine.queue=4", "engine.queue_client=64", "policy.hold_tokens=0")
    body = {**LONG, "max_tokens": 30}
    with running(*settings) as (d, _):
        def goodput(n, seconds):
            stop = time.monotonic() + seconds
            clients = [load.Client(d.port, lambda: body if time.monotonic() < stop else None, patient=True)
                       for _ in range(n)]
            load.run(clients, 60 * PATIENCE)
            answers = [a for c in clients for a in c.answers]
            served.extend(a[3] - a[1] for a in answers)
            return sum(a[3] <= stop for a in answers) / seconds, [r for c in clients for r in c.refused]
        served = []
        goodput(8, 0.5)
        peaks, loads, refused = [], [], []
        for _ in range(5):          # by turns, so that what else the machine does is beside both
            peak, none = goodput(8, 0.7)
            assert not none, none
            rate, said = goodput(80, 1.2)
            peaks.append(peak)
            loads.append(rate)
            refused += said
        waits = sorted(1000 * r[2] for r in refused)
        print(f"      {median(peaks):.0f} answers/s with room, {median(loads):.0f} under overload; {len(refused)} refused, "
              f"told in {median(waits):.2f} ms (p99 {waits[int(len(waits) * 0.99)]:.2f})")
        assert refused and all(status == 503 and after >= 1 for status, after, _ in refused)
        assert median(loads) > (0.9 if STREAMS >= 64 else 0.6) * median(peaks)
        assert median(waits) < min(50 * PATIENCE, 1000 * median(served)), "the refused waited as long as the served"


def in_threads(*calls):
    threads = [threading.Thread(target=c, daemon=True) for c in calls]
    for t in threads:
        t.start()
    return threads


def test_clients_take_turns():
    config, a, b = keys()
    order = []
    with running("engine.sessions=1", "policy.hold_tokens=0", config=config) as (d, _):
        def ask(name, headers):
            assert d.ask("tell me", headers, repeat_penalty=0.1, max_tokens=60).status == 200
            order.append(name)
        with stopped(d.children()["engine"]):       # until the line stands
            threads = in_threads(*[lambda: ask("a", a)] * 12)
            wait_for("a line", lambda: engine(d)["waiting"] == 11)
            threads += in_threads(lambda: ask("b", b))
            wait_for("b in it", lambda: engine(d)["waiting"] == 12)
        for t in threads:
            t.join(60)
    assert len(order) == 13 and order.index("b") < 8, order


def test_batch_gives_way():
    config, a, b = keys(b="priority = batch")
    order = []
    with running("engine.sessions=1", "policy.hold_tokens=0", config=config) as (d, _):
        def ask(name, headers):
            assert d.ask("tell me", headers, repeat_penalty=0.1, max_tokens=60).status == 200
            order.append(name)
        with stopped(d.children()["engine"]):
            threads = in_threads(*[lambda: ask("batch", b)] * 8)
            wait_for("a line", lambda: engine(d)["waiting"] == 7)
            threads += in_threads(*[lambda: ask("one", a)] * 2,
                                  lambda: ask("also batch", {**a, "x-tern-priority": "batch"}))
            wait_for("all in it", lambda: engine(d)["waiting"] == 10)
        for t in threads:
            t.join(60)
        assert d.ask("tell me", {"x-tern-priority": "soon"}).status == 400
    assert len(order) == 11 and max(i for i, n in enumerate(order) if n == "one") < 8, order


def test_client_that_leaves():
    """Waiting or answered, its place is free at once."""
    with running("engine.sessions=1", "policy.hold_tokens=0") as (d, _):
        body = json.dumps({**LONG, "max_tokens": 480}).encode()
        gone = []
        with stopped(d.children()["engine"]):
            for _ in range(8):
                s = socket.create_connection(("127.0.0.1", d.port))
                s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                          b"Content-Length: %d\r\n\r\n" % len(body) + body)
                gone.append(s)
            wait_for("a line", lambda: engine(d)["waiting"] == 7)
        for s in gone:
            s.close()
        began = time.monotonic()
        wait_for("the engine to be free", lambda: engine(d)["running"] == 0 and engine(d)["waiting"] == 0, 5, 0.002)
        print(f"      free after {1000 * (time.monotonic() - began):.0f} ms")
        assert d.ask("what is 12 + 7").status == 200
        outcomes = lambda: [r["outcome"] for r in d.sql("SELECT outcome FROM decisions_v")]
        wait_for("all of them on record", lambda: len(outcomes()) == 9 and "lost" not in outcomes())
        assert outcomes().count("cancelled") >= 3, outcomes()


def test_deadline_shorter_than_the_line():
    """Who cannot be served in time is told before its time is over, once the pace is known."""
    with running("engine.sessions=1", "policy.hold_tokens=0") as (d, _):
        def ask():
            assert d.ask("tell me", repeat_penalty=0.1, max_tokens=200).status == 200
        threads = in_threads(*[ask] * 24)
        wait_for("a line that moves", lambda: 3 <= engine(d)["waiting"] <= 21)
        r = d.ask("tell me", {"x-tern-deadline-ms": "1"})
        assert r.status in (503, 504) and (r.status == 504 or int(r.getheader("retry-after")) >= 1), r.body
        began = time.monotonic()
        r = d.ask("tell me", {"x-tern-deadline-ms": "20"})
        assert r.status in (503, 504) or time.monotonic() - began < 0.5, r.body
        for t in threads:
            t.join(60)


def test_second_turn_reads_what_is_new():
    config, a, b = keys()
    system = "you answer in few words and you are always kind to people who ask you about the kitchen and the garden " * 3
    first = [{"role": "system", "content": system}, {"role": "user", "content": "what is 12 + 7"}]

    with running(config=config) as (d, _):
        def ask(messages, headers):
            r = d.request("POST", "/v1/chat/completions", {"messages": messages}, headers).json()
            return r["choices"][0]["message"]["content"], r["usage"]["prompt_tokens"], \
                r["usage"]["prompt_tokens_details"]["cached_tokens"]
        text, n, cached = ask(first, a)
        assert cached == 0 and n > 60
        second = first + [{"role": "assistant", "content": text}, {"role": "user", "content": "what is 3 + 4"}]
        again = ask(second, a)
        assert n - 2 <= again[2] < again[1], (n, again)
        other = ask(second, b)
        assert other[2] == 0 and other[:2] == again[:2], other
        print(f"      {again[2]} of the second turn's {again[1]} tokens were known")


run(globals())
