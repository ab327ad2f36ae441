"""Servers of several runtimes, put to sleep by CRIU and woken again: OUT CYCLES PACKAGES.

Below OUT comes one directory per server and one per sleep in it: OUT/<runtime>-<number>/<cycle>. Between two sleeps a
server is restored and asked 30 times. PACKAGES is a directory in which npm installed express, hono and
@oven/bun-linux-x64-baseline, and which has a virtual environment `venv` with flask.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

WARM_REQUESTS = 60
REQUESTS = 30

STATE = """
const seed = Number(process.argv[2]), port = Number(process.argv[3]);
let random = seed;
const next = () => (random = (Math.imul(random, 1103515245) + 12345) >>> 0);
const sessions = new Map(), log = [];
for (let n = 0; n < 3000; n++) sessions.set('user' + next(), { visits: next() % 9, mail: `user${next()}@example.org` });
function visit(count) {
  const body = { ok: true, items: [] };
  for (let n = 0; n < 20; n++) body.items.push({ id: next(), name: 'item ' + next() % 1000, at: new Date(next() * 1000) });
  sessions.set('user' + next(), { visits: 1, mail: `user${next()}@example.org`, last: body.items[0] });
  log.push(JSON.stringify(body));
  if (log.length > 500) log.shift();
  return JSON.stringify({ ...body, count, sessions: sessions.size, log: log.length });
}
let count = 0;
"""
NODE = STATE + "require('node:http').createServer((q, r) => r.end(visit(++count))).listen(port, '127.0.0.1');"
EXPRESS = STATE + """
const app = require('express')();
app.use(require('express').json());
app.get('/', (request, response) => response.type('json').send(visit(++count)));
app.listen(port, '127.0.0.1');
"""
BUN = STATE + "Bun.serve({ port, hostname: '127.0.0.1', fetch: () => new Response(visit(++count)) });"
HONO = """import { Hono } from 'hono';
""" + STATE + """
const app = new Hono();
app.get('/', (context) => context.body(visit(++count)));
Bun.serve({ port, hostname: '127.0.0.1', fetch: app.fetch });
"""
PYTHON_STATE = """
import json, random, sys
random.seed(int(sys.argv[1]))
sessions = {f'user{random.getrandbits(32)}': {'visits': n % 9, 'mail': f'user{n}@example.org'} for n in range(3000)}
log = []
def visit():
    items = [{'id': random.getrandbits(32), 'name': f'item {n}'} for n in range(20)]
    sessions[f'user{random.getrandbits(32)}'] = {'visits': 1, 'last': items[0]}
    log.append(json.dumps(items))
    del log[:-500]
    return json.dumps({'items': items, 'sessions': len(sessions)}).encode()
"""
PYTHON = PYTHON_STATE + """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(visit())
    def log_message(self, *arguments): pass
HTTPServer(('127.0.0.1', int(sys.argv[2])), Handler).serve_forever()
"""
FLASK = PYTHON_STATE + """
import flask, logging
logging.getLogger('werkzeug').setLevel(logging.ERROR)
app = flask.Flask('app')
app.route('/')(lambda: flask.Response(visit(), mimetype='application/json'))
app.run('127.0.0.1', int(sys.argv[2]), threaded=False)
"""


def servers(packages):
    """Name, program, source and its file's name, of each server."""
    bun = packages / "node_modules/@oven/bun-linux-x64-baseline/bin/bun"
    venv = packages / "venv/bin/python3"
    kinds = [("node", "node", NODE, "cjs"), ("node-express", "node", EXPRESS, "cjs"),
             ("bun", bun, BUN, "mjs"), ("bun-hono", bun, HONO, "mjs"),
             ("python", venv, PYTHON, "py"), ("python-flask", venv, FLASK, "py")]
    for kind, program, source, suffix in kinds:
        for number in (1, 2):
            yield f"{kind}-{number}", program, source, suffix, number


def wait(complaint, look):
    for _ in range(3000):
        found = look()
        if found:
            return found
        time.sleep(0.01)
    raise SystemExit(complaint)


def ask(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as reply:
            return reply.read()
    except OSError:
        return None


def run(name, program, source, suffix, number, out, cycles, packages):
    script = packages / f"{name}.{suffix}"
    script.write_text(source)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # CRIU cannot dump an io_uring.
    environment = dict(os.environ, UV_USE_IO_URING="0", BUN_JSC_useConcurrentJIT="1")
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parent = subprocess.Popen([program, script, str(number), str(port)], cwd=packages, env=environment,
                              start_new_session=True, **quiet)
    process = parent.pid
    try:
        for _ in range(WARM_REQUESTS):
            wait(f"{name} does not reply", lambda: ask(port))
        for cycle in range(cycles):
            images = out / name / str(cycle)
            images.mkdir(parents=True)
            subprocess.run(["criu", "dump", "--tree", str(process), "--tcp-close", "--log-file", "dump.log",
                            "--images-dir", images], check=True, **quiet)
            parent.wait()
            wait(f"{name} does not go away", lambda: not os.path.exists(f"/proc/{process}"))
            if cycle + 1 < cycles:
                parent = subprocess.Popen(["criu", "restore", "--tcp-close", "--log-file", "restore.log",
                                           "--images-dir", images], **quiet)
                for _ in range(REQUESTS):
                    wait(f"{name} does not reply", lambda: ask(port))
    finally:
        if os.path.exists(f"/proc/{process}"):
            os.kill(process, 9)
        parent.wait()
    (out / name / "port").write_text(str(port))


def main():
    out, cycles, packages = pathlib.Path(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]).resolve()
    for name, program, source, suffix, number in servers(packages):
        if not (out / name / "port").exists():
            run(name, program, source, suffix, number, out, cycles, packages)
        print(name, flush=True)


main()
