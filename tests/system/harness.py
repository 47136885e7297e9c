"""What the system tests share: a real ternd in a directory of its own, the stand-in cloud, and plain HTTP to both.

Only the standard library. A test is a script with functions named test_*; run(globals()) runs them in order and exits
non-zero when one fails, 77 when all were skipped."""
import contextlib, http.client, json, os, re, shutil, signal, socket, sqlite3, subprocess, sys, tempfile, time, traceback

BUILD = os.environ.get("TERN_BUILD", os.path.join(os.path.dirname(__file__), "../../build"))
SOURCE = os.environ.get("TERN_SOURCE", os.path.join(os.path.dirname(__file__), "../.."))
SHARED = os.environ.get("TERN_SHARED", os.path.join(SOURCE, "../shared"))
TERND = os.path.join(BUILD, "daemon/ternd")
TERNCTL = os.path.join(BUILD, "ctl/ternctl")
STUB = os.path.join(BUILD, "tests/stub/stub_cloud")
# Sanitizer builds are several times slower; waits scale with this, never what is asserted about order.
PATIENCE = float(os.environ.get("TERN_PATIENCE", "1"))


class Skip(Exception):
    pass


def wait_for(what, fn, seconds=10, every=0.02):
    """Poll fn until it returns something true, and return that."""
    end = time.monotonic() + seconds * PATIENCE
    while True:
        got = fn()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds * PATIENCE:.0f} s for {what}")
        time.sleep(every)


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Stub:
    """The stand-in cloud. The upstream model's name picks its behaviour; see tests/stub/cloud.c."""

    def __init__(self, directory, *args):
        self.log = os.path.join(directory, "stub.log")
        self.p = subprocess.Popen([STUB, "--port", "0", "--log", self.log, *args], stdout=subprocess.PIPE, text=True)
        self.port = int(re.search(r"listening (\d+)", self.p.stdout.readline()).group(1))
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def entries(self):
        try:
            with open(self.log) as f:
                return [json.loads(line) for line in f if line.endswith("\n")]
        except FileNotFoundError:
            return []

    def stop(self):
        self.p.kill()
        self.p.wait()
        self.p.stdout.close()

    close = stop


class Daemon:
    """A running ternd: its own database, sockets and log. settings: "section.key=value" strings."""

    def __init__(self, directory, *settings, config="", wait=True, env=None, port=None, args=()):
        self.dir = directory
        self.db = os.path.join(directory, "tern.db")
        self.sock = os.path.join(directory, "tern.sock")
        self.port = port or free_port()
        self.conf = os.path.join(directory, "tern.conf")
        with open(self.conf, "w") as f:
            f.write(config)
        self.logfile = open(os.path.join(directory, "ternd.log"), "a")
        self.cmd = [TERND, "--config", self.conf, "--set", f"store.path={self.db}", "--set", f"listen.tcp=127.0.0.1:{self.port}",
                    "--set", f"listen.unix={self.sock}", *args]
        for s in settings:
            self.cmd += ["--set", s]
        self.env = dict(os.environ, **(env or {}))
        self.start(wait)

    def start(self, wait=True):
        self.p = subprocess.Popen(self.cmd, stdin=subprocess.DEVNULL, stdout=self.logfile, stderr=self.logfile, env=self.env)
        if wait:
            wait_for("ternd to be ready; see its log:\n" + self.log_text(), self.ready, 20)

    def log_text(self):
        with open(self.logfile.name, errors="replace") as f:
            return f.read()

    def ready(self):
        if self.p.poll() is not None:
            raise AssertionError(f"ternd ended with status {self.p.returncode}:\n{self.log_text()}")
        try:
            return self.request("GET", "/readyz").status == 200
        except OSError:
            return False

    def listening(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True

    def request(self, method, path, body=None, headers=None, timeout=60):
        """One request over TCP on a connection of its own; the answer is read whole. Returns it with .body and .json()."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout * PATIENCE)
        try:
            h = dict(headers or {})
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
                h.setdefault("Content-Type", "application/json")
            c.request(method, path, body, h)
            r = c.getresponse()
            r.body = r.read()
            r.json = lambda: json.loads(r.body)
            return r
        finally:
            c.close()

    def ask(self, text, headers=None, **more):
        return self.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **more}, headers)

    def stream(self, text, headers=None, **more):
        """Ask with stream; returns (response, [event data as text]) after the end."""
        r = self.ask(text, headers, stream=True, **more)
        return r, [e[6:] for e in r.body.decode().split("\n\n") if e.startswith("data: ")]

    def children(self):
        """{"engine": pid, "egress": pid} of this daemon's workers."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    argv = f.read().split(b"\0")
                if self.conf.encode() in argv and b"--role" in argv:
                    found[argv[argv.index(b"--role") + 1].decode()] = int(pid)
        return found

    def sql(self, query, *args):
        with contextlib.closing(sqlite3.connect(f"file:{self.db}?mode=ro", uri=True, timeout=10)) as c:
            c.row_factory = sqlite3.Row
            return [dict(r) for r in c.execute(query, args)]

    def row(self, id, outcome=True):
        """The request's row of decisions_v, waited for until its outcome is recorded."""
        def get():
            rows = self.sql("SELECT * FROM decisions_v WHERE id = ?", id)
            return rows and (not outcome or rows[0]["outcome"] != "lost") and rows[0]
        return wait_for(f"the row of {id}", get)

    def ctl(self, *args, check=True, **kw):
        p = subprocess.run([TERNCTL, "--url", f"http://127.0.0.1:{self.port}", *args], capture_output=True, text=True,
                           timeout=60 * PATIENCE, **kw)
        assert not check or p.returncode == 0, p.stderr
        return p

    def stop(self, sig=signal.SIGTERM, seconds=30):
        if self.p.poll() is None:
            self.p.send_signal(sig)
        status = self.p.wait(seconds * PATIENCE)
        return status

    def close(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()
        self.logfile.close()


def cloud_settings(url, name="main", model="ok", labels="public,internal", **more):
    """--set values for one endpoint that unlabelled requests may use."""
    out = ["policy.default_label=internal", f"cloud.{name}.url={url}", f"cloud.{name}.model={model}", f"cloud.{name}.labels={labels}"]
    return out + [f"cloud.{name}.{k}={v}" for k, v in more.items()]


@contextlib.contextmanager
def running(*settings, cloud=None, stub_args=(), **kw):
    """A daemon, and with cloud=MODEL also the stand-in cloud behind endpoint "main". Yields (daemon, stub or None)."""
    directory = tempfile.mkdtemp(prefix="tern-test-")
    stub = d = None
    try:
        if cloud is not None:
            stub = Stub(directory, *stub_args)
            settings = [*cloud_settings(stub.url, model=cloud), *settings]
        d = Daemon(directory, *settings, **kw)
        yield d, stub
        for line in d.log_text().splitlines():
            assert "Sanitizer" not in line and "runtime error:" not in line, line
    except BaseException:
        if d:
            sys.stderr.write("---- ternd's log ----\n" + d.log_text()[-8000:] + "---------------------\n")
        raise
    finally:
        if d:
            d.close()
        if stub:
            stub.stop()
        shutil.rmtree(directory, ignore_errors=True)


def shared(path):
    full = os.path.join(SHARED, path)
    if not os.path.exists(full):
        raise Skip(f"test data {path} is absent")
    return full


def run(tests):
    failed = passed = skipped = 0
    only = sys.argv[1:]
    for name, fn in list(tests.items()):
        if not name.startswith("test_") or (only and name not in only):
            continue
        began = time.monotonic()
        try:
            fn()
            passed += 1
            print(f"ok    {name} ({time.monotonic() - began:.1f} s)", flush=True)
        except Skip as e:
            skipped += 1
            print(f"skip  {name}: {e}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 77 if skipped and not passed else 0)
