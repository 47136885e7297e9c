"""ternd's life as a service manager sees it, with this test as the service manager: passed sockets, readiness, reload, watchdog,
stop; and what the processes may do, read from /proc."""
import os, sys
sys.path.insert(0, os.path.join(os.environ["TERN_SOURCE"], "tests/system"))
from harness import *

# exec() with sockets at 3 and 4 and $LISTEN_PID naming the process that ternd becomes.
ACTIVATE = """import os, sys
a, b = int(sys.argv[1]), int(sys.argv[2])
a, b = os.dup(a), os.dup(b)
while min(a, b) < 5: a, b = os.dup(a), os.dup(b)
os.dup2(a, 3); os.dup2(b, 4); os.closerange(5, 64)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", WATCHDOG_PID=str(os.getpid()))
os.execv(sys.argv[3], sys.argv[3:])"""


class Manager:
    """The notify socket, and what came in on it."""

    def __init__(self, directory):
        self.path = os.path.join(directory, "notify")
        self.s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.s.bind(self.path)
        self.s.setblocking(False)
        self.said = []

    def read(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                self.said.append(self.s.recv(4096).decode())
        return self.said

    def hears(self, words, seconds=20):
        """Wait for a message that holds all words; forget it and those before it."""
        def look():
            for i, m in enumerate(self.read()):
                if all(w in m for w in ([words] if isinstance(words, str) else words)):
                    self.said = self.said[i + 1:]
                    return m
        return wait_for(f"the daemon to say {words}; it said {self.said}", look, seconds)


@contextlib.contextmanager
def managed(*settings, config="", env=None, activate=False):
    directory = tempfile.mkdtemp(prefix="tern-daemon-")
    m = Manager(directory)
    d = Daemon(directory, *settings, config=config, wait=False, env={"NOTIFY_SOCKET": m.path, **(env or {})}) if not activate else None
    try:
        yield m, d, directory
        for line in d.log_text().splitlines() if d else []:
            assert "Sanitizer" not in line and "runtime error:" not in line, line
    except BaseException:
        if d:
            sys.stderr.write(d.log_text()[-8000:])
        raise
    finally:
        if d:
            d.close()
        m.s.close()
        shutil.rmtree(directory, ignore_errors=True)


def status_of(pid, field):
    with open(f"/proc/{pid}/status") as f:
        return re.search(rf"^{field}:\s*(.*)$", f.read(), re.M).group(1)


def alive(pid):
    try:
        return status_of(pid, "State")[0] not in "ZX"
    except OSError:
        return False


def test_ready_reload_stop():
    with managed(config="[listen]\nhosts = one.example\n") as (m, d, _):
        m.hears(["READY=1", "STATUS=answering on 127.0.0.1:"])
        assert d.ready(), "READY=1 was said too early"
        assert d.request("GET", "/healthz", headers={"Host": "two.example"}).status in (400, 403, 421)
        with open(d.conf, "w") as f:
            f.write("[listen]\nhosts = two.example\n")
        d.p.send_signal(signal.SIGHUP)
        stamp = int(re.search(r"MONOTONIC_USEC=(\d+)", m.hears("RELOADING=1")).group(1))
        assert abs(stamp / 1e6 - time.monotonic()) < 5 * PATIENCE
        m.hears("READY=1")
        assert d.request("GET", "/healthz", headers={"Host": "two.example"}).status == 200

        with open(d.conf, "w") as f:
            f.write("[listen]\nhosts = three.example\nnonsense = 1\n")
        d.p.send_signal(signal.SIGHUP)
        m.hears("RELOADING=1")
        m.hears(["READY=1", "configuration not reloaded", "tern.conf:3"])
        assert d.request("GET", "/healthz", headers={"Host": "two.example"}).status == 200, "the old one stays"
        assert d.log_text().count("unknown option") == 1

        with open(d.conf, "w") as f:
            f.write("[listen]\nhosts = four.example\n[engine]\nsessions = 2\n")
        d.p.send_signal(signal.SIGHUP)
        m.hears(["READY=1", "answering on"])
        assert "engine.sessions changed, which takes a restart" in d.log_text()
        assert d.request("GET", "/healthz", headers={"Host": "four.example"}).status == 200

        children = d.children()
        assert d.stop() == 0
        m.hears("STOPPING=1")
        assert not os.path.exists(d.sock), "its unix socket stays behind"
        assert not any(alive(p) for p in children.values())


def test_passed_sockets():
    with managed(activate=True) as (m, _, directory):
        tcp = socket.create_server(("127.0.0.1", 0))
        unix = socket.socket(socket.AF_UNIX)
        path = os.path.join(directory, "passed.sock")
        unix.bind(path)
        unix.listen(8)
        conf = os.path.join(directory, "tern.conf")
        open(conf, "w").close()
        p = subprocess.Popen([sys.executable, "-c", ACTIVATE, str(tcp.fileno()), str(unix.fileno()), TERND, "--config", conf,
                              "--set", f"listen.unix={path}"], pass_fds=(tcp.fileno(), unix.fileno()),
                             env=dict(os.environ, NOTIFY_SOCKET=m.path, WATCHDOG_USEC="900000", STATE_DIRECTORY=directory))
        try:
            m.hears(["READY=1", f"127.0.0.1:{tcp.getsockname()[1]}", f"unix:{path}"])
            assert os.path.exists(os.path.join(directory, "tern.db")), "$STATE_DIRECTORY was not taken"
            c = http.client.HTTPConnection("127.0.0.1", tcp.getsockname()[1], timeout=20)
            c.request("GET", "/readyz")
            assert c.getresponse().status == 200
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(20)
                s.connect(path)
                s.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert s.recv(64).startswith(b"HTTP/1.1 200")
            for _ in range(3):
                m.hears("WATCHDOG=1", 3)
            # A writer or loop that hangs would stop these; so does a front that is stopped.
            p.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            m.read().clear()
            time.sleep(1)
            assert not m.read()
            p.send_signal(signal.SIGCONT)
            m.hears("WATCHDOG=1", 3)
            p.terminate()
            assert p.wait(30 * PATIENCE) == 0
            assert os.path.exists(path), "a socket that was passed in is not ours to remove"
        finally:
            p.kill()
            p.wait()
            tcp.close()
            unix.close()


def test_model_that_cannot_be_loaded():
    with managed("engine.model=/nonexistent/model.gguf") as (m, d, _):
        m.hears(["READY=1", "STATUS=no local model", "/nonexistent/model.gguf"])
        r = d.request("GET", "/readyz")
        assert r.status == 503 and b"/nonexistent/model.gguf" in r.body, r.body
        assert d.request("GET", "/healthz").status == 200
        assert d.stop() == 0


def test_every_role_is_shut_in():
    with managed() as (m, d, _):
        m.hears("READY=1")
        # The engine binds its sandbox before it is ready; the egress worker may still be on its way.
        workers = wait_for("both workers", lambda: len(d.children()) == 2 and d.children())
        for pid in (d.p.pid, *workers.values()):
            wait_for(f"a filter on {pid}", lambda: status_of(pid, "Seccomp") == "2")
            assert status_of(pid, "NoNewPrivs") == "1"
        def embedded(pid):
            """Bytes of ternd's file that are mapped read-only, without code."""
            with open(f"/proc/{pid}/maps") as f:
                maps = re.findall(r"^(\w+)-(\w+) r--p .*/ternd$", f.read(), re.M)
            return sum(int(b, 16) - int(a, 16) for a, b in maps)
        model = os.path.getsize(os.path.join(SOURCE, "models/tern-nano.gguf"))
        assert embedded(workers["engine"]) > model
        wait_for("egress to drop the model", lambda: embedded(workers["egress"]) < model)


def test_requests_are_finished_before_the_end():
    with running("policy.mode=cloud-only", cloud="slow-chunks-200") as (d, _):
        c = http.client.HTTPConnection("127.0.0.1", d.port, timeout=60)
        c.request("POST", "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}),
                  {"Content-Type": "application/json"})
        r = c.getresponse()
        r.read(10)
        d.p.send_signal(signal.SIGTERM)
        assert b"[DONE]" in r.read(), "the running answer was cut off"
        assert d.p.wait(30 * PATIENCE) == 0


def test_told_twice_it_ends_at_once():
    with running("policy.mode=cloud-only", cloud="slow-chunks-2000") as (d, _):
        c = http.client.HTTPConnection("127.0.0.1", d.port, timeout=60)
        c.request("POST", "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}),
                  {"Content-Type": "application/json"})
        c.getresponse().read(10)
        d.p.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert d.p.poll() is None
        began = time.monotonic()
        d.p.send_signal(signal.SIGTERM)
        assert d.p.wait(10 * PATIENCE) == 1 and time.monotonic() - began < 3 * PATIENCE
        rows = d.sql("SELECT outcome FROM decisions_v")
        assert [r["outcome"] for r in rows] == ["cancelled"], f"the cut-off request has its last record: {rows}"
        assert "Assertion" not in d.log_text()


def test_no_orphans():
    with running() as (d, _):
        children = d.children()
        assert len(children) == 2, children
        d.p.kill()
        d.p.wait()
        wait_for("the workers to end", lambda: not any(alive(p) for p in children.values()), 1)


def test_second_instance_is_refused():
    with running() as (d, _):
        p = subprocess.run([TERND, "--config", d.conf, "--set", f"store.path={d.db}", "--set", f"listen.tcp=127.0.0.1:{free_port()}"],
                           capture_output=True, text=True, timeout=30 * PATIENCE)
        assert p.returncode == 1 and "tern.db" in p.stderr, p
        p = subprocess.run([TERND, "--config", d.conf, "--set", f"store.path={d.db}2", "--set", f"listen.tcp=127.0.0.1:{d.port}"],
                           capture_output=True, text=True, timeout=30 * PATIENCE)
        assert p.returncode == 1 and "is another ternd running?" in p.stderr, p
        p = subprocess.run([TERND, "--config", d.conf, "--set", f"store.path={d.db}2", "--set", "listen.tcp=", "--set", f"listen.unix={d.sock}"],
                           capture_output=True, text=True, timeout=30 * PATIENCE)
        assert p.returncode == 1 and "is another ternd running?" in p.stderr, p
        assert os.path.exists(d.sock) and d.ready()


def test_killed_and_stopped_workers_are_replaced():
    with running() as (d, _):
        before = d.children()
        os.kill(before["engine"], signal.SIGKILL)
        os.kill(before["egress"], signal.SIGKILL)
        wait_for("new workers", lambda: len(d.children()) == 2 and not set(d.children().values()) & set(before.values()), 5)
        wait_for("readiness", d.ready, 10)
        stopped = d.children()["engine"]
        os.kill(stopped, signal.SIGSTOP)
        # 30 s without a beat, then the next second's look.
        wait_for("a new engine", lambda: d.children().get("engine", stopped) != stopped, 40)
        wait_for("readiness", d.ready, 10)
        assert "Paris" in d.ask("what is the capital of france").json()["choices"][0]["message"]["content"]


run(globals())
