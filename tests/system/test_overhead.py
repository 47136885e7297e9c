"""What ternd adds to a call: the stand-in engine and the stand-in cloud, asked directly and through ternd, by the load
client. Every answer is durable and audited, and that is counted in the database afterwards.

In the suite a short run with generous bounds, which catch a change that costs ten times as much. The figures of
README.md come from

    OVERHEAD=full python3 tests/system/test_overhead.py

which also asks the npm gateway in the same run where build/gateway has it
(npm install --prefix build/gateway @portkey-ai/gateway)."""
import json, os, subprocess
import harness
from harness import BUILD, free_port, run, running, wait_for

FULL = os.environ.get("OVERHEAD") == "full"
LOAD = os.path.join(BUILD, "tests/load/load")
GATEWAY = os.path.join(BUILD, "gateway/node_modules/@portkey-ai/gateway/build/start-server.js")
ENGINE_USEC = 2000          # of the stand-in engine where it is to take as long as a fast model
SETTINGS = ["engine.sessions=64", "engine.queue=4096", "log.level=warning"]
MOST_USEC = 3000 if FULL else 50000 * harness.PATIENCE      # added to half of the calls
CHAT = "/v1/chat/completions"
harness.TERND = os.path.join(BUILD, "tests/load/ternd_stub")


def body(model):
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello there, who are you?"}]})


def load(what, *args, n=3000, clients=1):
    n = n if FULL else n // 10
    p = subprocess.run([LOAD, "-c", str(clients), "-n", str(n), "-w", str(n // 3), *map(str, args)], capture_output=True,
                       text=True)
    assert p.returncode == 0, p.stderr
    got = json.loads(p.stdout)
    print(f"      {what:36} p50 {got['p50']:6} p99 {got['p99']:6} µs  {got['per_sec']:6.0f}/s", flush=True)
    assert got["errors"] == 0, got
    return got


def stubbed(usec=0):
    return running(*SETTINGS, cloud="json", stub_args=("--answer", "Hello."), env={"TERN_STUB_USEC": str(usec)})


def check_recorded(d, n):
    """Each of the n answers has its rows, and none is without an outcome once the last were committed."""
    wait_for("the last outcomes", lambda: d.sql("SELECT count(*) AS n FROM outcome WHERE outcome = 'ok'")[0]["n"] == n)
    assert d.sql("SELECT count(*) AS n FROM request")[0]["n"] == n
    assert d.sql("SELECT count(DISTINCT request_id) AS n FROM decision")[0]["n"] == n


def test_local():
    direct = load("the stand-in engine", "engine")
    with stubbed(ENGINE_USEC) as (d, stub):
        got = load(f"local, the engine taking {ENGINE_USEC} µs", d.port, "POST", CHAT, body("local"))
        added = got["p50"] - direct["p50"] - ENGINE_USEC
        print(f"      added p50 {added} µs, p99 {got['p99'] - direct['p50'] - ENGINE_USEC} µs")
        assert added < MOST_USEC
        check_recorded(d, 4000 if FULL else 400)
    with stubbed() as (d, stub):
        load("local, the engine taking no time", d.port, "POST", CHAT, body("local"))


def test_cloud_and_gateway():
    with stubbed() as (d, stub):
        direct = load("the stand-in cloud", stub.port, "POST", CHAT, body("json"))
        got = load("cloud through ternd", d.port, "POST", CHAT, body("cloud"))
        print(f"      added p50 {got['p50'] - direct['p50']} µs, p99 {got['p99'] - direct['p99']} µs")
        assert got["p50"] - direct["p50"] < MOST_USEC
        check_recorded(d, 4000 if FULL else 400)
        egress = d.sql("SELECT count(*) AS n FROM egress")[0]["n"]
        assert egress == (4000 if FULL else 400), "a body for each answer, and a row for each body"
        if not FULL or not os.path.exists(GATEWAY):
            return
        port = free_port()
        p = subprocess.Popen(["node", GATEWAY, f"--port={port}", "--headless"], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        try:
            headers = ["-H", "x-portkey-provider: openai", "-H", f"x-portkey-custom-host: {stub.url}", "-H",
                       "Authorization: Bearer none"]
            wait_for("the gateway", lambda: subprocess.run([LOAD, "-n", "1", *headers, str(port), "POST", CHAT,
                                                            body("json")], capture_output=True).returncode == 0, 30)
            other = load("cloud through @portkey-ai/gateway", *headers, port, "POST", CHAT, body("json"))
            print(f"      added p50 {other['p50'] - direct['p50']} µs, p99 {other['p99'] - direct['p99']} µs")
            load("the stand-in cloud, 64 clients", stub.port, "POST", CHAT, body("json"), clients=64, n=20000)
            load("ternd, cloud, 64 clients", d.port, "POST", CHAT, body("cloud"), clients=64, n=10000)
            load("@portkey-ai/gateway, 64 clients", *headers, port, "POST", CHAT, body("json"), clients=64, n=10000)
        finally:
            p.kill()
            p.wait()


def test_many_at_once():
    with stubbed() as (d, stub):
        got = load("local, 64 clients", d.port, "POST", CHAT, body("local"), clients=64, n=30000)
        assert got["per_sec"] > (2000 if FULL else 200 / harness.PATIENCE), got
        check_recorded(d, 40000 if FULL else 4000)


def test_idle_and_slow_connections():
    """Two thousand that say nothing and two hundred that say a byte each half second: nobody else notices."""
    idle, slow = (2000, 200) if FULL else (400, 50)
    with running("listen.max_connections=4096", "listen.header_timeout=5s") as (d, _):
        p = subprocess.run([LOAD, "-c", "4", "-n", str(4000 if FULL else 1000), "--pause", "2", "--idle", str(idle),
                            "--slow", str(slow), str(d.port), "GET", "/health"], capture_output=True, text=True)
        assert p.returncode == 0, p.stderr
        got = json.loads(p.stdout)
        print(f"      /health beside {idle} idle and {slow} slow: p50 {got['p50']} p99 {got['p99']} µs, "
              f"{got['reopened']} connections were closed and opened again")
        assert got["errors"] == 0
        assert got["p99"] < (10000 if FULL else 50000) * harness.PATIENCE, got


run(globals())
