"""Closed loops over kept-alive connections, without an HTTP library: the bytes of a request are made once."""
import socket
import threading
import time


def request(path, body, headers=()):
    head = ["POST %s HTTP/1.1" % path, "Host: 127.0.0.1", "Content-Length: %d" % len(body), *headers, "", ""]
    return "\r\n".join(head).encode() + body


class Connection:
    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, message):
        """Sends a request and returns the body of its answer, which must be a 200."""
        self.sock.sendall(message)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.more()
        head, body = data.split(b"\r\n\r\n", 1)
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(repr((head + b"\n" + body)[:400]))
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
                while len(body) < length:
                    body += self.more()
                return body
        while not body.endswith(b"0\r\n\r\n"):  # chunked
            body += self.more()
        return body

    def more(self):
        data = self.sock.recv(1 << 16)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data


def closed_loop(port, message, clients, seconds):
    """Milliseconds of every answer, and answers per second."""
    times = [[] for _ in range(clients)]
    connections = [Connection(port) for _ in range(clients)]
    end = time.perf_counter() + seconds

    def run(connection, mine):
        while True:
            t = time.perf_counter()
            if t >= end:
                return
            connection.ask(message)
            mine.append(1e3 * (time.perf_counter() - t))

    threads = [threading.Thread(target=run, args=(c, m)) for c, m in zip(connections, times)]
    began = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    took = time.perf_counter() - began
    for c in connections:
        c.sock.close()
    ms = [x for m in times for x in m]
    return ms, len(ms) / took
