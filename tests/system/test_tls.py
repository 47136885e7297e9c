"""TLS from end to end: what is refused at the start and how it says so, certificates of both sides, versions, a
certificate that is replaced while ternd runs, and handshakes that take for ever."""
import contextlib, http.client, json, os, shutil, signal, socket, ssl, subprocess, tempfile, time
from harness import PATIENCE, TERNCTL, TERND, Skip, free_port, run, running, wait_for


@contextlib.contextmanager
def directory():
    if not shutil.which("openssl"):
        raise Skip("the openssl program is not installed")
    d = tempfile.mkdtemp(prefix="tern-tls-")
    try:
        yield d
    finally:
        shutil.rmtree(d)


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, capture_output=True)


def certificate(d, name, ca=None):
    """NAME.pem and NAME.key; signed by CA.pem where given, else by itself."""
    path = os.path.join(d, name)
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path + ".key", "-subj", f"/CN={name}"]
    if ca:
        openssl("req", *new, "-out", path + ".csr")
        openssl("x509", "-req", "-in", path + ".csr", "-CA", f"{d}/{ca}.pem", "-CAkey", f"{d}/{ca}.key", "-CAcreateserial",
                "-days", "2", "-out", path + ".pem")
    else:
        openssl("req", "-x509", *new, "-days", "2", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out",
                path + ".pem")


def client(d, server="server", cert=None, **limits):
    c = ssl.create_default_context(cafile=os.path.join(d, server + ".pem"))
    if cert:
        c.load_cert_chain(os.path.join(d, cert + ".pem"), os.path.join(d, cert + ".key"))
    for name, value in limits.items():
        setattr(c, name, value)
    return c


def get(port, context, path="/health", headers=None, body=None):
    c = http.client.HTTPSConnection("localhost", port, context=context, timeout=10 * PATIENCE)
    try:
        c.request("POST" if body else "GET", path, body, headers or {})
        r = c.getresponse()
        r.body = r.read()
        return r
    finally:
        c.close()


@contextlib.contextmanager
def served(d, *settings):
    """A daemon on 0.0.0.0 with TLS, wanting keys. Yields (daemon, port, token)."""
    certificate(d, "server")
    keys = os.path.join(d, "keys.conf")
    token = subprocess.run([TERNCTL, "key", "add", "k", "--file", keys], capture_output=True, text=True).stdout.strip()
    port = free_port()
    with running(f"listen.tls=0.0.0.0:{port}", f"listen.tls_cert={d}/server.pem", f"listen.tls_key={d}/server.key",
                 "auth.required=yes", f"auth.keys_file={keys}", *settings) as (daemon, _):
        yield daemon, port, token


def start_fails(config):
    """Exit status 78 at start, and what it said."""
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "tern.conf")
        with open(path, "w") as f:
            f.write(config.replace("DIR", d))
        for key in ("keys.conf", "nokey.conf"):
            open(os.path.join(d, key), "a").close()
        p = subprocess.run([TERND, "--config", path, "--set", f"store.path={d}/t.db"], capture_output=True, text=True,
                           timeout=20 * PATIENCE)
        assert p.returncode != 0, p
        return p.stderr.replace(path, "FILE")


def test_refused_at_start():
    with directory() as d:
        certificate(d, "server")
        certificate(d, "other")
        pair = f"tls_cert = {d}/server.pem\ntls_key = {d}/server.key\n"
        for config, where, remedy in (
                ("[listen]\ntcp = 0.0.0.0:0\n", "FILE:2: ", "tls_cert"),
                ("[listen]\n\ntcp = [::]:0\n", "FILE:3: ", "tls_cert"),
                ("[listen]\ntcp =\ntls = 0.0.0.0:0\n", "FILE:3: ", "set tls_cert and tls_key"),
                ("[listen]\ntcp =\n" + pair + "tls = 0.0.0.0:0\n", "FILE:5: ", "required = yes"),
                ("[listen]\ntcp =\ntls = here\n" + pair, "FILE:3: ", "ADDRESS:PORT"),
                ("[auth]\nrequired = yes\nkeys_file = DIR/nokey.conf\n[listen]\ntcp =\ntls = 0.0.0.0:0\n" + pair, "",
                 "ternctl key add"),
                (f"[listen]\ntcp =\ntls = 127.0.0.1:0\ntls_cert = {d}/server.pem\ntls_key = {d}/other.key\n", "tls_key", ""),
                (f"[listen]\ntcp =\ntls = 127.0.0.1:0\ntls_cert = {d}/none.pem\ntls_key = {d}/other.key\n", "tls_cert", "")):
            said = start_fails(config)
            assert where in said and remedy in said, (config, said)


def test_serves_and_wants_keys():
    with directory() as d, served(d) as (daemon, port, token):
        context = client(d)
        assert get(port, context).status == 200
        assert get(port, context, "/v1/models").status == 401
        r = get(port, context, "/v1/chat/completions", {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                json.dumps({"model": "local", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}))
        assert r.status == 200 and json.loads(r.body)["choices"], r.body
        r = get(port, context, "/v1/chat/completions", {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                json.dumps({"model": "local", "max_tokens": 40, "stream": True,
                            "messages": [{"role": "user", "content": "Hello" * 50000}]}))
        assert r.status in (200, 400), (r.status, r.body)            # longer than the context: but read whole
        r = get(port, context, "/v1/chat/completions", {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                json.dumps({"model": "local", "max_tokens": 40, "stream": True,
                            "messages": [{"role": "user", "content": "Hello"}]}))
        assert r.status == 200 and r.body.endswith(b"data: [DONE]\n\n"), r.body
        r = get(port, context, headers={"Host": "evil.example"})
        assert r.status == 403, "names are checked here too"
        for version, works in ((ssl.TLSVersion.TLSv1_3, True), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_1, False)):
            context = client(d)
            if version == ssl.TLSVersion.TLSv1_1:
                context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version
            try:
                assert get(port, context).status == 200 and works, version
            except ssl.SSLError:
                assert not works, version
        weak = client(d, maximum_version=ssl.TLSVersion.TLSv1_2)
        weak.set_ciphers("AES128-SHA:AES256-SHA:AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA")
        try:
            get(port, weak)
            raise AssertionError("a suite without forward secrecy or authentication was accepted")
        except ssl.SSLError:
            pass
        with socket.create_connection(("127.0.0.1", port), timeout=10) as s:     # no TLS at all
            s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200" not in s.recv(4096)
        h2 = client(d)
        h2.set_alpn_protocols(["h2"])
        try:
            get(port, h2)
            raise AssertionError("h2 was agreed to")
        except ssl.SSLError:
            pass


def test_client_certificates():
    with directory() as d:
        certificate(d, "ca")
        certificate(d, "friend", "ca")
        certificate(d, "stranger")
        with served(d, f"listen.tls_client_ca={d}/ca.pem") as (daemon, port, token):
            assert get(port, client(d, cert="friend")).status == 200
            for cert in (None, "stranger"):
                try:
                    assert get(port, client(d, cert=cert)).status is None
                except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
                    pass


def test_certificate_replaced_while_running():
    with directory() as d, served(d) as (daemon, port, token):
        old = client(d)
        assert get(port, old).status == 200
        certificate(d, "server")
        daemon.p.send_signal(signal.SIGHUP)

        def renewed():
            with contextlib.suppress(ssl.SSLError):
                return get(port, client(d)).status == 200
        wait_for("the new certificate", renewed)
        try:
            get(port, old)
            raise AssertionError("the old certificate is still shown")
        except ssl.SSLError:
            pass
        with open(os.path.join(d, "server.key"), "w") as f:          # broken: what runs goes on
            f.write("nothing")
        daemon.p.send_signal(signal.SIGHUP)
        wait_for("the refusal to reload", lambda: "not reloaded" in daemon.log_text())
        assert "tls_key" in daemon.log_text() and get(port, client(d)).status == 200


def test_slow_handshakes_block_nobody():
    with directory() as d, served(d, "listen.header_timeout=1s") as (daemon, port, token):
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        for i, s in enumerate(slow):
            s.sendall(b"\x16\x03\x01\x02\x00\x01"[:i % 7])
        worst = 0
        for _ in range(20):
            began = time.monotonic()
            assert get(port, client(d)).status == 200
            worst = max(worst, time.monotonic() - began)
        assert worst < 0.5 * PATIENCE, worst
        time.sleep(1.5 * PATIENCE)
        for s in slow:
            s.settimeout(5 * PATIENCE)
            with contextlib.suppress(ConnectionError):
                while s.recv(4096):
                    pass
            s.close()


run(globals())
