"""Many clients of one daemon in one thread: each asks for a stream, reads it, and asks again until it has had its share.

Raw sockets and one selector, so that what is measured is the daemon: an arrival is noted, events are counted, nothing
is parsed but the status and what tells the end."""
import json, re, selectors, socket, time


class Client:
    """One connection. `ask` makes the next request's body (a dict) or None when it has had enough."""

    def __init__(self, port, ask, headers=None, patient=False):
        self.port, self.ask, self.headers, self.patient = port, ask, headers or {}, patient
        self.sock = None
        self.answers = []           # (status, began, first byte, ended, [arrival of each event], tail of the bytes)
        self.refused = []           # (status, Retry-After, seconds until it was said)
        self.again = 0.0            # not before

    def connect(self):
        if not self.sock:
            self.sock = socket.create_connection(("127.0.0.1", self.port))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self, now):
        body = self.ask()
        if body is None:
            return False
        data = json.dumps(body).encode()
        head = "".join(f"{k}: {v}\r\n" for k, v in self.headers.items())
        self.connect()
        self.began = time.monotonic()
        self.arrivals, self.seen, self.good = [], b"", False
        self.sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                          + f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return True

    def close(self):
        if self.sock:
            self.sock.close()
            self.sock = None

    def readable(self, now):
        """True when the answer is whole."""
        data = self.sock.recv(1 << 17)
        if not data:
            raise AssertionError(f"the connection was closed after {self.seen[-300:]!r}")
        self.good = self.good or not self.seen and data.startswith(b"HTTP/1.1 200")
        if self.good:
            self.arrivals += [now] * data.count(b"data: {")
            self.seen = (self.seen + data)[-2000:]
            if not self.seen.endswith(b"\r\n0\r\n\r\n"):
                return False
            self.answers.append((200, self.began, self.arrivals[0], now, self.arrivals, self.seen))
            return True
        self.seen += data
        head, _, body = self.seen.partition(b"\r\n\r\n")
        fields = {k.strip().lower(): v.strip() for k, _, v in (l.partition(b":") for l in head.split(b"\r\n")[1:])}
        if len(body) < int(fields.get(b"content-length", 0)):
            return False
        after = float(fields.get(b"retry-after", 0))
        self.refused.append((int(head[9:12]), after, now - self.began))
        self.again = now + after if self.patient else now
        return True


def run(clients, seconds=60, every_turn=None):
    """Until every client has had enough. Returns the seconds it took."""
    sel, waiting = selectors.DefaultSelector(), []
    for c in clients:
        c.connect()
    began = time.monotonic()
    live = 0
    for c in clients:
        if c.start(began):
            sel.register(c.sock, selectors.EVENT_READ, c)
            live += 1
    while live:
        now = time.monotonic()
        assert now - began < seconds, f"{live} clients are not done after {seconds} s"
        for c in [c for c in waiting if c.again <= now]:
            waiting.remove(c)
            c.again = 0.0
            if c.start(now):
                sel.register(c.sock, selectors.EVENT_READ, c)
            else:
                live -= 1
                c.close()
        for key, _ in sel.select(0.01 if waiting else 1):
            c = key.data
            if not c.readable(time.monotonic()):
                continue
            sel.unregister(c.sock)
            if c.again > time.monotonic():
                c.close()
                waiting.append(c)
            elif c.start(time.monotonic()):
                sel.register(c.sock, selectors.EVENT_READ, c)
            else:
                live -= 1
                c.close()
        if every_turn:
            every_turn(time.monotonic() - began)
    return time.monotonic() - began


def times(n, body):
    """An `ask` that gives the same body n times."""
    left = [n]

    def ask():
        left[0] -= 1
        return body if left[0] >= 0 else None
    return ask


def tokens(answer):
    """Of an answer whose request asked for usage."""
    return int(re.search(rb'"completion_tokens": ?(\d+)', answer[5]).group(1))


def gaps(clients):
    """All gaps between arrivals, sorted, in seconds; bytes that arrive together are one. [0] when there are none: the
    first bytes leave when the request is on record, and a short answer may be whole by then."""
    out = [0]
    for c in clients:
        for a in c.answers:
            at = sorted(set(a[4]))
            out += [y - x for x, y in zip(at, at[1:])]
    return sorted(out)
