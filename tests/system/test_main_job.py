"""The main job through a real daemon: answered on the device or escalated, and the record that says why."""
import json, os
from harness import *


def test_local_answer_is_right_and_recorded():
    with running() as (d, _):
        r = d.ask("what is the capital of france")
        assert r.status == 200, r.body
        assert "Paris" in r.json()["choices"][0]["message"]["content"], r.body
        assert r.getheader("x-tern-route") == "local" and r.getheader("x-tern-decision-id") in r.json()["id"]
        row = d.row(r.getheader("x-tern-decision-id"))
        assert (row["route"], row["label"], row["outcome"], row["bytes_left"]) == ("local", "private", "ok", 0), row
        assert row["reason"] == r.getheader("x-tern-reason") and row["tokens_out"] > 0 and row["latency_ms"] >= 0


def test_stream_equals_whole_answer():
    with running() as (d, _):
        whole = d.ask("what is 12 + 7").json()
        r, events = d.stream("what is 12 + 7", stream_options={"include_usage": True})
        assert r.getheader("content-type").startswith("text/event-stream") and events[-1] == "[DONE]"
        chunks = [json.loads(e) for e in events[:-1]]
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        assert text == whole["choices"][0]["message"]["content"] and "19" in text, text
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert chunks[-1]["choices"] == []
        # The second time the prompt was known, but for the token that must be read.
        cached = [u.pop("prompt_tokens_details")["cached_tokens"] for u in (whole["usage"], chunks[-1]["usage"])]
        assert chunks[-1]["usage"] == whole["usage"] and cached == [0, whole["usage"]["prompt_tokens"] - 1], cached
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"


def test_unsure_answer_without_a_cloud_is_marked():
    with running() as (d, _):
        r = d.ask("who painted the ceiling of the sistine chapel")
        assert (r.getheader("x-tern-reason"), r.getheader("x-tern-degraded")) == ("unsure-kept", "true"), dict(r.getheaders())
        assert float(r.getheader("x-tern-confidence")) < 0.6
        row = d.row(r.getheader("x-tern-decision-id"))
        assert (row["outcome"], row["reason"]) == ("degraded", "unsure-kept") and row["score"] < row["threshold"], row
        # A stream is shown at once, since it cannot go anywhere (perhaps before the doubt); its record says the same.
        r, _ = d.stream("who painted the ceiling of the sistine chapel")
        row = d.row(r.getheader("x-tern-decision-id"))
        assert r.getheader("x-tern-reason") in ("no-endpoint", "unsure-kept"), dict(r.getheaders())
        assert (row["outcome"], row["reason"]) == ("degraded", "unsure-kept"), row


def test_unsure_answer_escalates_and_sure_one_stays():
    with running(cloud="ok") as (d, stub):
        sure = d.ask("what is the capital of france")
        assert sure.getheader("x-tern-route") == "local", dict(sure.getheaders())
        assert not stub.entries()
        unsure = d.ask("who painted the ceiling of the sistine chapel")
        assert unsure.getheader("x-tern-route") == "cloud", dict(unsure.getheaders())
        row = d.row(unsure.getheader("x-tern-decision-id"))
        assert row["route"] == "cloud" and row["bytes_left"] > 0 and row["score"] < row["threshold"], row
        attempts = d.sql("SELECT * FROM attempts_v WHERE id = ? ORDER BY seq", row["id"])
        assert [a["tier"] for a in attempts] == ["local", "cloud"], attempts
        why = d.ctl("why", row["id"]).stdout
        assert "left the device" in why, why


def test_private_never_leaves_and_says_what_to_set():
    with running("policy.default_label=private", cloud="ok") as (d, stub):
        r = d.ask("who painted the ceiling of the sistine chapel")
        assert r.status == 200 and r.getheader("x-tern-route") == "local"
        r = d.ask("who painted the ceiling of the sistine chapel", {"x-tern-label": "secret", "x-tern-mode": "cloud-only"})
        assert r.status != 200, "cloud-only with a label that may not leave must be refused, not answered elsewhere"
        r = d.ask("hello there", {"x-tern-label": "nonsense"}, model="cloud")
        assert r.status != 200
        assert not stub.entries(), stub.entries()
        why = d.ctl("why", "last").stdout
        first = d.sql("SELECT id FROM decisions_v ORDER BY time LIMIT 1")[0]["id"]
        assert "default_label" in d.ctl("why", first).stdout, why


def test_per_request_label_lets_it_leave():
    with running("policy.default_label=private", cloud="ok") as (d, stub):
        r = d.ask("who painted the ceiling of the sistine chapel", {"x-tern-label": "public"})
        assert r.getheader("x-tern-route") == "cloud" and len([e for e in stub.entries()]) > 0


def test_modes_and_models():
    with running(cloud="ok", ) as (d, stub):
        assert d.ask("what is 2 + 2", model="main").getheader("x-tern-route") == "cloud"
        assert d.ask("what is 2 + 2", model="local").getheader("x-tern-route") == "local"
        assert d.ask("what is 2 + 2", {"x-tern-mode": "cloud-only"}).getheader("x-tern-route") == "cloud"
        assert d.ask("who wrote the iliad", {"x-tern-mode": "local-only"}).getheader("x-tern-route") == "local"
        r = d.ask("x", model="no-such-model")
        assert r.status == 404 and r.json()["error"]["code"] == "model_not_found"
        models = [m["id"] for m in d.request("GET", "/v1/models").json()["data"]]
        assert "auto" in models and "tern-nano" in models and "main" in models, models
        assert d.request("GET", "/v1/models/tern-nano").json()["object"] == "model"
    with running("policy.mode=local-only", cloud="ok") as (d, stub):
        d.ask("who painted the ceiling of the sistine chapel", {"x-tern-mode": "cloud-only"})
        d.ask("who painted the ceiling of the sistine chapel", model="main")
        assert not stub.entries(), "the configured local-only mode is the last word"


def test_cloud_down_answers_locally_degraded():
    with running(*cloud_settings(f"http://127.0.0.1:{free_port()}/v1")) as (d, _):
        r = d.ask("who painted the ceiling of the sistine chapel")
        assert r.status == 200 and r.getheader("x-tern-route") == "local" and r.getheader("x-tern-degraded") == "true"
        assert d.row(r.getheader("x-tern-decision-id"))["outcome"] == "degraded"


def test_sampling_parameters():
    with running() as (d, _):
        ask = lambda **k: d.ask("set an alarm for 7 am", **k).json()["choices"][0]
        assert ask(max_tokens=2)["finish_reason"] == "length"
        whole = ask()["message"]["content"]
        word = whole.split()[1]
        cut = ask(stop=[word])
        assert cut["finish_reason"] == "stop" and word not in cut["message"]["content"]
        assert ask(temperature=1.5, seed=7) == ask(temperature=1.5, seed=7)
        lp = ask(logprobs=True, top_logprobs=3)["logprobs"]["content"]
        assert "".join(t["token"] for t in lp) == whole
        assert all(t["logprob"] <= 0 and len(t["top_logprobs"]) == 3 for t in lp)
        r = d.ask("x", temperature=3)
        assert r.status == 400 and r.json()["error"]["param"] in (None, "temperature") and "temperature" in r.json()["error"]["message"]
        r = d.ask("word " * 3000)
        assert r.status == 400 and r.json()["error"]["code"] == "context_length_exceeded", r.body


def test_ternctl():
    with running(cloud="ok") as (d, _):
        p = d.ctl("ask", "what is the capital of france")
        assert "Paris" in p.stdout and "[local" in p.stderr
        assert json.loads(d.ctl("--json", "ask", "what is 1 + 1").stdout)["route"] == "local"
        assert "tern-nano" in d.ctl("status").stdout
        p = d.ctl("chat", input="what is the capital of spain\n/new\nwhat is 3 + 4\n")
        assert "Madrid" in p.stdout and "7" in p.stdout
        wait_for("four outcomes", lambda: len(d.sql("SELECT 1 FROM decisions_v WHERE outcome != 'lost'")) == 4)
        assert len(d.ctl("log").stdout.splitlines()) == 5
        assert len(json.loads(d.ctl("log", "--json", "--limit", "2", "--since", "1h").stdout)) == 2
        assert json.loads(d.ctl("log", "--json", "--route", "cloud").stdout) == []
        stats = json.loads(d.ctl("stats", "--json").stdout)
        assert stats["requests"] == 4 and stats["local"] == 4
        assert "requests   4" in d.ctl("stats").stdout
        assert d.ctl("why", "nonsense", check=False).returncode == 1
        assert d.ctl("frobnicate", check=False).returncode == 2
        p = subprocess.run([TERNCTL, "--socket", d.sock, "ask", "what is 6 + 5"], capture_output=True, text=True)
        assert p.returncode == 0 and "11" in p.stdout, p.stderr
        for verb in ("ask", "chat", "status", "log", "why", "stats"):
            assert "Usage: ternctl " + verb in d.ctl(verb, "--help").stdout
    p = subprocess.run([TERNCTL, "--url", f"http://127.0.0.1:{free_port()}", "status"], capture_output=True, text=True)
    assert p.returncode == 3 and "is it running" in p.stderr


def test_no_prompt_text_in_log_or_database():
    canary = "zanzibarquux"
    with running(cloud="ok") as (d, _):
        d.ask(f"tell me about {canary}")
        d.ask(f"{canary} {{", {"x-tern-mode": canary})
        d.request("POST", "/v1/chat/completions", '{"messages": "' + canary, {"Content-Type": "application/json"})
        d.stop()
        assert canary not in d.log_text()
        for name in os.listdir(d.dir):
            if name.startswith("tern.db"):
                with open(os.path.join(d.dir, name), "rb") as f:
                    assert canary.encode() not in f.read(), name


run(globals())
