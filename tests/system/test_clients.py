"""Real SDKs from npm, pinned in tests/clients/package.json and installed beside the build, against a running daemon: each
file of tests/clients is one client, on both routes. docs/compatibility.md is the table of what they showed."""
import contextlib, os, shutil, subprocess, tempfile
from concurrent.futures import ThreadPoolExecutor
from harness import *

SOURCES = os.path.join(SOURCE, "tests/clients")
LINES = os.path.join(BUILD, "clients/lines.json")
sys.path.insert(0, SOURCES)
import table


def installed():
    """The build's copy of tests/clients with its packages."""
    if not shutil.which("npm"):
        raise Skip("npm is not installed")
    there = os.path.join(BUILD, "clients")
    os.makedirs(there, exist_ok=True)
    for name in os.listdir(SOURCES):
        if name.endswith((".json", ".mjs")):
            shutil.copy(os.path.join(SOURCES, name), there)
    stamp = os.path.join(there, "node_modules/.installed.json")
    with open(os.path.join(there, "package-lock.json")) as f:
        wanted = f.read()
    if not os.path.exists(stamp) or open(stamp).read() != wanted:
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"], cwd=there,
                       check=True, timeout=500)
        with open(stamp, "w") as f:
            f.write(wanted)
    return there


def run_client(there, name, port):
    """The lines that one file printed."""
    p = subprocess.run(["node", name, f"http://127.0.0.1:{port}"], cwd=there, capture_output=True, text=True, timeout=120 * PATIENCE)
    lines = [json.loads(line) for line in p.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        if not line["ok"]:
            print(f"FAIL  {line['client']} {line['route']} {line['feature']}: {line['why']}")
    assert lines and (p.returncode == 0) == all(line["ok"] for line in lines), p.stdout[-4000:] + p.stderr[-4000:]
    return lines


def test_every_client_on_both_routes():
    there = installed()
    if os.path.exists(LINES):
        os.unlink(LINES)
    clients = sorted(n for n in os.listdir(SOURCES)
                     if n.endswith(".mjs") and not n.endswith(("suite.mjs", "_features.mjs")))
    # The same stand-in three times: "main" in OpenAI's dialect, "claude" in Anthropic's, "broken" fails in mid-stream. A
    # daemon for each client, since a broken cloud is soon left alone.
    with tempfile.TemporaryDirectory() as directory, contextlib.closing(Stub(directory)) as stub:
        endpoints = cloud_settings(stub.url, "main") + cloud_settings(stub.url, "claude", dialect="anthropic") + \
                    cloud_settings(stub.url, "broken", "error-after-3")

        def run_one(name):
            with running(*endpoints) as (d, _):
                return run_client(there, name, d.port)

        with ThreadPoolExecutor(2) as pool:
            lines = [line for made in pool.map(run_one, clients) for line in made]
    with open(LINES, "w") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
    failed = [f"{line['client']} {line['route']} {line['feature']}" for line in lines if not line["ok"]]
    assert not failed, failed


def test_the_committed_table_is_this_one():
    if not os.path.exists(LINES):
        raise Skip("the clients did not run")
    with open(LINES) as f:
        made = table.table([json.loads(line) for line in f])
    with open(os.path.join(SOURCE, "docs/compatibility.md")) as f:
        assert f.read() == made, f"docs/compatibility.md is not what was seen; tests/clients/table.py {LINES} writes it anew"


run(globals())
