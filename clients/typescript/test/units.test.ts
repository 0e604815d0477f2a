// The small parts alone: waits, hashes, positions, payloads.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Backoff } from "../src/backoff.js";
import { comparePositions, formatPosition, parsePosition, Payload } from "../src/index.js";
import { sha256 } from "../src/placement.js";

test("waits double up to the cap, and jitter goes from nothing to all of them", () => {
  const longest = new Backoff({}, () => 1);
  assert.deepEqual(Array.from({ length: 8 }, () => longest.next()), [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
  for (let attempts = 0; attempts < 5_000; attempts += 1) assert.equal(longest.next(), 30_000);
  const shortest = new Backoff({}, () => 0);
  assert.deepEqual([shortest.next(), shortest.next()], [0, 0]);
});

test("the server's time is the least wait, and doesn't count as a failure", () => {
  const backoff = new Backoff({ baseMs: 100 }, () => 0.5);
  assert.deepEqual([backoff.next(3_000), backoff.next(), backoff.next()], [3_050, 50, 100]);
});

test("before connecting, what the server asks for goes first, and the jitter on top grows", () => {
  const backoff = new Backoff({ baseMs: 100 }, () => 1);
  assert.deepEqual([backoff.nextMore(3_000), backoff.nextMore(3_000), backoff.nextMore()], [3_100, 3_200, 400]);
  assert.equal(backoff.nextMore(2 ** 53), 2 ** 31 - 1);
});

test("the class now waits for nothing once; after a while of working it may again", () => {
  const backoff = new Backoff({ baseMs: 100 }, () => 1);
  assert.deepEqual([backoff.nextAfterFirst(), backoff.nextAfterFirst()], [0, 200]);
  backoff.worked(10);
  assert.equal(backoff.nextAfterFirst(), 400);
  backoff.worked(5_000);
  assert.equal(backoff.nextAfterFirst(), 0);
});

test("SHA-256 agrees with the platform's for every length around the block borders", async () => {
  for (let length = 0; length <= 257; length += 1) {
    const message = Uint8Array.from({ length }, (_, index) => (index * 7 + length) % 256);
    const expected = new DataView(await crypto.subtle.digest("SHA-256", message));
    const words = Array.from({ length: 8 }, (_, index) => expected.getUint32(index * 4));
    assert.deepEqual([...sha256(message)], words, `${length} bytes`);
  }
});

test("a position has one text form", () => {
  assert.equal(formatPosition({ epoch: 7, offset: 42 }), "7-42");
  assert.deepEqual(parsePosition("7-42"), { epoch: 7, offset: 42 });
  for (const bad of ["", "7", "7-", "-42", "7-42-1", "07-42", "+7-42", "7-9007199254740992", "7 -42", " 7-42"]) {
    assert.equal(parsePosition(bad), undefined, bad);
  }
  assert.ok(comparePositions({ epoch: 8, offset: 0 }, { epoch: 7, offset: 42 }) > 0);
});

test("a payload's format follows the value, and the value comes back", () => {
  const cases = [["grüezi", "text"], ["", "text"], [{ a: [1, null] }, "json"], [null, "json"], [new Uint8Array([0, 255]), "binary"]] as const;
  for (const [value, format] of cases) {
    const payload = Payload.from(value);
    assert.equal(payload.format, format);
    assert.deepEqual(payload.value, value);
  }
  assert.equal(Payload.json("a string").format, "json");
  assert.deepEqual(new Payload("msgpack", new Uint8Array([0x93, 1, 2, 3])).value, [1, 2, 3]);
  assert.throws(() => Payload.from(undefined as never), TypeError);
});

test("bytes that are not what their format says are given as bytes", () => {
  for (const format of ["json", "text", "msgpack"] as const) {
    const bytes = new Uint8Array([0xff, 0xc1]);
    assert.equal(new Payload(format, format === "msgpack" ? new Uint8Array([0xc1]) : bytes).value instanceof Uint8Array, true, format);
  }
});
