"""Real SDKs from npm, pinned in tests/clients/package.json and installed beside the build, against a running daemon."""
import os, shutil, subprocess
from harness import *


def installed():
    """The build's copy of tests/clients with its packages."""
    if not shutil.which("npm"):
        raise Skip("npm is not installed")
    source, there = os.path.join(SOURCE, "tests/clients"), os.path.join(BUILD, "clients")
    os.makedirs(there, exist_ok=True)
    for name in os.listdir(source):
        if name.endswith((".json", ".mjs")):
            shutil.copy(os.path.join(source, name), there)
    stamp = os.path.join(there, "node_modules/.installed-package.json")
    with open(os.path.join(there, "package.json")) as f:
        wanted = f.read()
    if not os.path.exists(stamp) or open(stamp).read() != wanted:
        subprocess.run(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=there, check=True,
                       timeout=300)
        with open(stamp, "w") as f:
            f.write(wanted)
    return there


def test_openai():
    there = installed()
    with running(cloud="ok") as (d, _):
        p = subprocess.run(["node", "openai.mjs", f"http://127.0.0.1:{d.port}"], cwd=there, capture_output=True, text=True,
                           timeout=120 * PATIENCE)
        print(p.stdout + p.stderr, end="")
        assert p.returncode == 0


run(globals())
