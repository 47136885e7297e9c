"""API keys from end to end: ternctl makes and revokes them while ternd runs, each limit holds, and what a key may not is
refused in the shape of the API that was asked."""
import contextlib, json, os, shutil, subprocess, tempfile, time
from harness import PATIENCE, TERNCTL, run, running, wait_for


@contextlib.contextmanager
def keyed(*settings, **kw):
    """A daemon that wants keys. Yields (daemon, key): key(NAME, *limits) makes one and waits until it is known."""
    directory = tempfile.mkdtemp(prefix="tern-keys-")
    file = os.path.join(directory, "keys.conf")

    def ctl(*args, check=True):
        p = subprocess.run([TERNCTL, "key", *args, "--file", file], capture_output=True, text=True)
        assert not check or p.returncode == 0, p.stderr
        return p

    try:
        ctl("add", "first")
        with running("auth.required=yes", f"auth.keys_file={file}", "policy.hold_tokens=0", *settings, **kw) as (d, stub):
            def key(name, *limits):
                token = ctl("add", name, *limits).stdout.strip()
                wait_for(f"key {name} to be known", lambda: status(d, token) != 401)
                return token
            key.ctl, key.file = ctl, file
            yield d, key
    finally:
        shutil.rmtree(directory)


def bearer(token, **more):
    return {"Authorization": f"Bearer {token}", **more}


def status(d, token):
    return d.request("GET", "/v1/models", headers=bearer(token)).status


def ask(d, token, headers=None, **more):
    more.setdefault("max_tokens", 4)
    return d.ask("Hello", headers=bearer(token, **(headers or {})), **more)


def error(r, status, code):
    assert r.status == status, (r.status, r.body)
    assert r.json()["error"]["code"] == code, r.body
    return r


def test_made_listed_revoked_while_running():
    with keyed() as (d, key):
        assert d.ask("Hello").status == 401
        token = key("laptop", "--label", "internal", "--rate", "600")
        assert len(token) == 69 and ask(d, token).status == 200
        assert d.request("GET", "/v1/models", headers={"x-api-key": token}).status == 200
        listed = json.loads(key.ctl("list", "--json").stdout)
        assert [k["name"] for k in listed] == ["first", "laptop"] and listed[1]["rate"] == "600", listed
        with open(key.file) as f:
            text = f.read()
        assert token not in text and token[5:] not in text and token not in d.log_text()
        assert key.ctl("add", "laptop", check=False).returncode == 1
        row = d.sql("SELECT key, label FROM request")[0]
        assert row == {"key": "laptop", "label": "internal"}, row
        key.ctl("revoke", "laptop")
        wait_for("the revocation", lambda: status(d, token) == 401)
        key.ctl("revoke", "first")
        wait_for("no key at all", lambda: "[key" not in open(key.file).read())
        assert d.ask("Hello").status == 401, "without any key left the door stays shut"


def test_what_ternctl_refuses():
    with tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, "keys.conf")
        for args in (["add"], ["add", "a b"], ["add", "x", "--modes", "anything"], ["add", "x", "--rate", "many"],
                     ["add", "x", "--endpoints", "a\nsha256 = 0"], ["revoke"], ["list", "x"], ["burn", "x"]):
            p = subprocess.run([TERNCTL, "key", *args, "--file", file], capture_output=True, text=True)
            assert p.returncode == 2 and not p.stdout, (args, p)
        assert not os.path.exists(file)


def test_apis():
    with keyed() as (d, key):
        token = key("openai-only", "--apis", "openai")
        assert ask(d, token).status == 200
        r = d.request("POST", "/v1/messages", {"messages": [], "max_tokens": 1}, bearer(token))
        assert r.status == 403 and r.json()["type"] == "error" and r.json()["error"]["type"] == "permission_error", r.body
        r = d.request("POST", "/api/chat", {"messages": []}, bearer(token))
        assert r.status == 403 and "apis" in r.json()["error"], r.body
        error(d.request("GET", "/v1/tern/log", headers=bearer(token)), 403, "api_not_allowed")
        error(d.request("GET", "/metrics", headers=bearer(token)), 403, "api_not_allowed")
        auditor = key("auditor", "--apis", "tern")
        assert d.request("GET", "/v1/tern/log", headers=bearer(auditor)).status == 200
        error(ask(d, auditor), 403, "api_not_allowed")


def test_labels_modes_endpoints():
    with keyed("policy.default_label=public", cloud="echo") as (d, key):
        low = key("low", "--max-label", "internal")
        assert ask(d, low).status == 200 and ask(d, low, {"x-tern-label": "internal"}).status == 200
        error(ask(d, low, {"x-tern-label": "private"}), 403, "label_not_allowed")
        row = wait_for("its outcome", lambda: d.sql("SELECT outcome, error FROM outcome WHERE error IS NOT NULL"))
        assert row == [{"outcome": "refused", "error": "label_not_allowed"}], row

        local = key("local", "--modes", "local")
        r = ask(d, local)
        assert r.status == 200 and r.headers["x-tern-route"] == "local", "narrowed without being asked"
        for headers, more in (({"x-tern-mode": "auto"}, {}), ({"x-tern-mode": "cloud-only"}, {})):
            error(ask(d, local, headers, **more), 403, "mode_not_allowed")
        for model in ("cloud", "main", "echo"):
            error(ask(d, local, model=model), 403, "model_not_allowed")
        assert ask(d, local, {"x-tern-mode": "local-only"}).status == 200

        cloud = key("cloud", "--modes", "cloud")
        assert ask(d, cloud).headers["x-tern-route"] == "cloud"
        error(ask(d, cloud, model="local"), 403, "model_not_allowed")
        error(ask(d, cloud, {"x-tern-mode": "local-only"}), 403, "mode_not_allowed")

        elsewhere = key("elsewhere", "--endpoints", "other")
        error(ask(d, elsewhere, model="main"), 403, "model_not_allowed")
        r = ask(d, elsewhere, {"x-tern-mode": "cloud-only"})
        assert r.status in (400, 503) and not d.sql("SELECT 1 FROM egress e JOIN request r ON r.id = e.request_id "
                                                    "WHERE r.key = 'elsewhere'"), r.body
        assert ask(d, elsewhere).headers["x-tern-route"] == "local"
        named = key("named", "--endpoints", "main")
        assert ask(d, named, model="main").headers["x-tern-route"] == "cloud"


def test_rate():
    with keyed() as (d, key):
        token = key("slow", "--rate", "5")
        answers = [status(d, token) for _ in range(8)]
        assert 3 <= answers.count(200) <= 5 and 429 in answers, answers
        r = error(ask(d, token), 429, "rate_limit_exceeded")
        assert 1 <= int(r.headers["Retry-After"]) <= 13, r.headers["Retry-After"]
        assert status(d, key("other")) == 200


def test_budgets_survive_a_restart():
    with keyed(cloud="echo", config="[cloud main]\nprice_in = 1000\nprice_out = 1000\n") as (d, key):
        tokens, money = key("tokens", "--tokens-per-day", "60"), key("money", "--usd-per-day", "0.05")
        while ask(d, tokens).status == 200:
            pass
        r = error(ask(d, tokens), 429, "token_budget_used")
        assert 0 < int(r.headers["Retry-After"]) <= 86401
        while ask(d, money, model="main").status == 200:
            pass
        error(ask(d, money, model="main"), 429, "spend_budget_used")
        used = d.sql("SELECT sum(tokens_in + tokens_out) AS n FROM outcome o JOIN request r ON r.id = o.request_id "
                     "WHERE key = 'tokens'")[0]["n"]
        assert 60 <= used < 120, used
        assert d.stop() == 0
        d.start()
        # The first one of each asks the record; neither would use up a budget by itself.
        assert ask(d, tokens).status == 200 and ask(d, money, model="main").status == 200
        time.sleep(PATIENCE)
        error(ask(d, tokens), 429, "token_budget_used")
        error(ask(d, money, model="main"), 429, "spend_budget_used")


def test_socket_users():
    if os.getuid() != 0:
        return
    with running() as (d, _):
        os.chmod(os.path.dirname(d.sock), 0o755)
        os.chmod(d.sock, 0o777)
        def as_user(uid):
            p = subprocess.run([TERNCTL, "--socket", d.sock, "status"], capture_output=True, text=True, user=uid)
            return p.returncode, p.stderr
        assert as_user(0)[0] == 0
        code, text = as_user(12345)
        assert code == 1 and "unix_uids" in text, (code, text)
        with open(d.conf, "w") as f:
            f.write("[listen]\nunix_uids = 12345\n")
        d.p.send_signal(1)
        wait_for("the reload", lambda: as_user(12345)[0] == 0)


run(globals())
