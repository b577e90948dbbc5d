"""An HTTP server that gives parts of a file, and breaks off its answers. Prints its port.

/good     parts, a strong ETag, If-Match; each answer ends after CUT bytes
/changed  the same; from the tenth request on it is the second file
/weak     parts with a weak ETag; whole answers are cut, too
/stats    requests and bytes of bodies so far
"""

import http.server
import sys
import threading

FILES = [open(name, "rb").read() for name in sys.argv[1:3]]
CUT = 700_000
lock = threading.Lock()
requests = {}
sent = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        global sent
        path = self.path.split("?")[0]
        if path == "/stats":
            body = f"{sum(requests.values())} {sent}".encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        with lock:
            requests[path] = requests.get(path, 0) + 1
            second = path == "/changed" and requests[path] >= 10
        file = FILES[second]
        etag = f'"file-{second}"'
        if path != "/weak" and self.headers.get("if-match", etag) != etag:
            self.send_response(412)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        start, end = 0, len(file)
        part = self.headers.get("range")
        if part:
            first, last = part.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or end), end - 1) + 1
        self.send_response(206 if part else 200)
        self.send_header("etag", ("W/" if path == "/weak" else "") + etag)
        self.send_header("content-length", str(end - start))
        if part:
            self.send_header("content-range", f"bytes {start}-{end - 1}/{len(file)}")
        self.end_headers()
        body = file[start : min(end, start + CUT)]
        self.wfile.write(body)
        with lock:
            sent += len(body)
        if start + len(body) < end:
            self.close_connection = True


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
