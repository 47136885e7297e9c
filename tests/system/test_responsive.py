"""The loop never waits: whatever else stands still, /health answers at once and nothing is lost."""
import contextlib, json, os, signal, sqlite3, threading
from harness import *

LIMIT = 0.3 * PATIENCE     # far above the loop's own time on a busy machine, far below the waits provoked here


def worst_health(d, seconds):
    worst, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        assert d.request("GET", "/health").status == 200
        worst = max(worst, time.monotonic() - began)
        time.sleep(0.005)
    return worst


def in_background(fn, *args, **kw):
    out = []
    t = threading.Thread(target=lambda: out.append(fn(*args, **kw)), daemon=True)
    t.start()
    return t, out


def test_database_locked():
    with running() as (d, _):
        with contextlib.closing(sqlite3.connect(d.db, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            t, out = in_background(d.ask, "what is 2 + 3")
            worst = worst_health(d, 1)
            assert not out, "the answer was released before its row was durable"
            other.execute("ROLLBACK")
        t.join(10 * PATIENCE)
        assert out and out[0].status == 200, out and out[0].body
        assert d.row(out[0].getheader("x-tern-decision-id"))["outcome"] == "ok"
        print(f"      worst /health {1000 * worst:.1f} ms")
        assert worst < LIMIT


def test_engine_stands_still():
    with running() as (d, _):
        with stopped(d.children()["engine"]):
            t, out = in_background(d.ask, "what is 2 + 3")
            worst = worst_health(d, 1)
            assert not out
        t.join(10 * PATIENCE)
        assert out and out[0].status == 200 and worst < LIMIT, worst


def test_egress_and_cloud_stand_still():
    with running("cloud.main.first_byte_timeout=2s", "cloud.main.idle_timeout=2s", cloud="blackhole") as (d, stub):
        with stopped(d.children()["egress"]):
            t, out = in_background(d.ask, "who painted the ceiling of the sistine chapel")
            worst = worst_health(d, 1)
        worst = max(worst, worst_health(d, 1))
        t.join(30 * PATIENCE)
        assert out and out[0].status == 200 and out[0].getheader("x-tern-degraded") == "true" and worst < LIMIT, worst


def test_huge_and_hostile_bodies():
    with running() as (d, _):
        worst = 0
        deep = "[" * 200000
        wide = json.dumps({"messages": [{"role": "user", "content": "a" * 900000}]})
        many = json.dumps({"messages": [{"role": "user", "content": "b"}] * 2048})
        too_many = json.dumps({"messages": [{"role": "user", "content": "b"}] * 20000})
        for body in (deep, wide, many, too_many):
            t, out = in_background(d.request, "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            worst = max(worst, worst_health(d, 0.3))
            t.join(30 * PATIENCE)
            assert out and out[0].status in (400, 413), out and (out[0].status, out[0].body)
        print(f"      worst /health {1000 * worst:.1f} ms")
        assert worst < LIMIT


run(globals())
