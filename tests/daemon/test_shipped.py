"""What ships beside the executable is true: tern.conf is what ternd prints, the manual holds every option, and the units are
what systemd accepts, with the exposure we promise."""
import os, re, shutil, subprocess, sys, tempfile

SOURCE, BUILD = os.environ["TERN_SOURCE"], os.environ["TERN_BUILD"]
TERND = os.path.join(BUILD, "daemon/ternd")
skipped = []


def read(path):
    with open(os.path.join(SOURCE, path)) as f:
        return f.read()


def ternd(*args):
    return subprocess.run([TERND, *args], capture_output=True, text=True, timeout=60)


def test_conf_is_what_ternd_prints():
    assert read("etc/tern.conf") == ternd("--print-config").stdout, "regenerate it: ternd --print-config > etc/tern.conf"


def test_conf_is_accepted_also_with_every_option_set():
    p = ternd("--config", os.path.join(SOURCE, "etc/tern.conf"), "--check")
    assert p.returncode == 0, p.stderr
    text = re.sub(r"(?m)^#(\[(cloud|key) )NAME\]", r"\1a]", read("etc/tern.conf"))
    text = re.sub(r"(?m)^#([a-z])", r"\1", text)
    for key, value in {"url": "https://a.example/v1", "model": "x", "sha256": "ab" * 32}.items():
        text = re.sub(rf"(?m)^{key} =$", f"{key} = {value}", text)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as f:
        f.write(text)
        f.flush()
        p = ternd("--config", f.name, "--check")
        assert p.returncode == 0, p.stderr
        assert len(re.findall(r"(?m)^[a-z_0-9]+ =", text)) >= 40


def test_conf_says_how_to_escalate():
    assert "To let unlabelled requests escalate" in read("etc/tern.conf") and "default_label = public" in read("etc/tern.conf")


def test_manual_holds_every_option():
    options = ternd("--print-mdoc").stdout
    assert options in read("man/tern.conf.5"), "put the output of ternd --print-mdoc under OPTIONS in man/tern.conf.5"
    for key in re.findall(r"(?m)^#([a-z_0-9]+) =", read("etc/tern.conf")):
        assert f".It Ic {key}\n" in options, key


def test_manual_pages_are_well_formed():
    if not shutil.which("mandoc"):
        return skipped.append("mandoc is not installed")
    for page in ("man/ternd.8", "man/tern.conf.5"):
        p = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", os.path.join(SOURCE, page)], capture_output=True, text=True)
        assert p.returncode == 0, p.stdout + p.stderr
    for option in re.findall(r"--([a-z-]+)", ternd("--help").stdout):
        assert f"Fl -{option}" in read("man/ternd.8"), option


def test_command_line():
    assert ternd("--version").stdout.startswith("ternd ")
    assert ternd("--frobnicate").returncode == 2 and ternd("stray").returncode == 2
    assert ternd("--role", "engine").returncode == 2 and ternd("--role", "nonsense", "--fd", "5").returncode == 2
    p = ternd("--check", "--set", "listen.tcp=0.0.0.0:80")
    assert p.returncode == 78 and "loopback" in p.stderr, p
    p = ternd("--config", "/nonexistent.conf")
    assert p.returncode == 78 and "/nonexistent.conf" in p.stderr, p


def test_units():
    if not shutil.which("systemd-analyze"):
        return skipped.append("systemd-analyze is not installed")
    with tempfile.TemporaryDirectory() as d:
        # The command and the manual need not be installed where the tests run.
        for unit in ("ternd.service", "ternd.socket"):
            text = read(f"etc/systemd/{unit}").replace("/usr/bin/ternd", TERND)
            with open(os.path.join(d, unit), "w") as f:
                f.write(re.sub(r"(?m)^Documentation=.*\n", "", text))
        p = subprocess.run(["systemd-analyze", "verify", *(os.path.join(d, u) for u in os.listdir(d))], capture_output=True, text=True)
        said = "\n".join(line for line in p.stderr.splitlines() if "ternd" in line)
        assert p.returncode == 0 and not said, p.stderr
        p = subprocess.run(["systemd-analyze", "security", "--offline=yes", os.path.join(d, "ternd.service")], capture_output=True, text=True)
        score = float(re.search(r"exposure level for ternd.service: ([\d.]+)", p.stdout).group(1))
        print(f"exposure {score}")
        assert score <= 1.5, p.stdout


failed = 0
for name, fn in list(globals().items()):
    if name.startswith("test_"):
        try:
            fn()
            print("ok   ", name)
        except AssertionError as e:
            failed += 1
            print("FAIL ", name, e)
for reason in skipped:
    print("skip ", reason)
sys.exit(1 if failed else 0)
