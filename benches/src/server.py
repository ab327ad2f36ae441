# A server with state: argument 1 is how many MiB it holds, argument 2 its port on loopback.
import http.server
import random
import sys

NOISE = random.Random(42)
BLOCKS = [NOISE.randbytes(1 << 19) + bytes(range(256)) * 2048 for _ in range(int(sys.argv[1]))]


class Visit(http.server.BaseHTTPRequestHandler):
    """Each visit reads a little of the state."""

    def do_GET(self):
        answer = str(BLOCKS[len(BLOCKS) // 2][4096]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        """Quiet."""


http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Visit).serve_forever()
