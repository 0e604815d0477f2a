// The placement key: where a connection would like to be. The first 64 bits of SHA-256 (FIPS 180-4) over the room's name, as 16 hexadecimal
// digits. The hash is written out here because the platform's own is asynchronous, and the URL is needed at once.

/** The key of a room, for the `k` parameter of the URL. */
export function placementKey(room: string): string {
  const words = sha256(new TextEncoder().encode(room));
  return [words[0]!, words[1]!].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}

/** SHA-256 as eight 32-bit words. */
export function sha256(message: Uint8Array): Uint32Array {
  const state = INITIAL.slice();
  const blocks = padded(message);
  for (let start = 0; start < blocks.byteLength; start += BLOCK_BYTES) {
    compress(state, new DataView(blocks.buffer, start, BLOCK_BYTES));
  }
  return state;
}

function padded(message: Uint8Array): Uint8Array<ArrayBuffer> {
  // One byte 0x80, then zeros, then the length in bits as 64 bits.
  const blocks = new Uint8Array(Math.ceil((message.length + 9) / BLOCK_BYTES) * BLOCK_BYTES);
  blocks.set(message);
  blocks[message.length] = 0x80;
  const view = new DataView(blocks.buffer);
  view.setUint32(blocks.length - 8, Math.floor(message.length / 0x2000_0000));
  view.setUint32(blocks.length - 4, (message.length << 3) >>> 0);
  return blocks;
}

function compress(state: Uint32Array, block: DataView): void {
  const schedule = new Uint32Array(64);
  for (let t = 0; t < 16; t += 1) schedule[t] = block.getUint32(t * 4);
  for (let t = 16; t < 64; t += 1) {
    const [x, y] = [schedule[t - 15]!, schedule[t - 2]!];
    const s0 = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3);
    const s1 = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10);
    schedule[t] = schedule[t - 16]! + s0 + schedule[t - 7]! + s1;
  }
  let [a, b, c, d, e, f, g, h] = state as unknown as [number, number, number, number, number, number, number, number];
  for (let t = 0; t < 64; t += 1) {
    const s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    const t1 = h + s1 + ((e & f) ^ (~e & g)) + CONSTANTS[t]! + schedule[t]!;
    const s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    const t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((word, index) => {
    state[index] = state[index]! + word;
  });
}

function rotate(word: number, bits: number): number {
  return (word >>> bits) | (word << (32 - bits));
}

/** The first 32 bits of the fractional parts of the given roots of the first primes (FIPS 180-4 §4.2.2 and §5.3.3). */
function fractions(count: number, root: (prime: number) => number): Uint32Array {
  const words: number[] = [];
  for (let candidate = 2; words.length < count; candidate += 1) {
    if (isPrime(candidate)) words.push((root(candidate) % 1) * 2 ** 32);
  }
  return Uint32Array.from(words);
}

function isPrime(candidate: number): boolean {
  for (let divisor = 2; divisor * divisor <= candidate; divisor += 1) {
    if (candidate % divisor === 0) return false;
  }
  return true;
}

const BLOCK_BYTES = 64;
const INITIAL = fractions(8, Math.sqrt);
const CONSTANTS = fractions(64, Math.cbrt);
