// A server with a lot of state: argument 1 is how many MiB it holds, argument 2 its port on loopback.
// Half of each 64 bytes is noise, the rest repeats, so that its memory compresses about as a heap does.
const http = require('node:http');

const BLOCK_LEN_BYTES = 1 << 20;
let seed = 42;
const noise = () => (seed = (Math.imul(seed, 1103515245) + 12345) >>> 0);

const blocks = [];
for (let count = Number(process.argv[2]); count > 0; count -= 1) {
  const block = Buffer.alloc(BLOCK_LEN_BYTES);
  for (let offset = 0; offset < BLOCK_LEN_BYTES; offset += 4) {
    block.writeUInt32LE(offset % 64 < 32 ? noise() : offset & 0xff00, offset);
  }
  blocks.push(block);
}

// Each request reads one word of the state and changes another, as a session's visit would.
let requests = 0;
const server = http.createServer((request, response) => {
  requests += 1;
  const block = blocks[(requests * 7) % blocks.length];
  block.writeUInt32LE(requests, 8192);
  const answer = { requests, blocks: blocks.length, word: block.readUInt32LE(4096) };
  response.end(JSON.stringify(answer) + '\n');
});
server.listen(Number(process.argv[3]), '127.0.0.1');
