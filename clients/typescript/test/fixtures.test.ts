// The golden fixtures that every implementation of the protocol is tested against, and what no fixture foresaw.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { decodeClient, decodeServer, encodeClient, encodeServer, type Message } from "../src/codec.js";
import { clientFrames, serverFrames, type ClientFrame, type ServerFrame } from "../src/frames.js";
import { closeCode, errorCode, Payload, placementKey, RoomfulError } from "../src/index.js";
import { DecodeError, type Encoding } from "../src/wire.js";

function fixture<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(`../../../../protocol/fixtures/${name}.json`, import.meta.url), "utf8")) as T;
}

interface FrameRow {
  name: string;
  direction: "client" | "server";
  json: unknown;
  msgpack_hex: string;
  reads_as?: unknown;
}

const frames = fixture<FrameRow[]>("frames");

function decode(direction: FrameRow["direction"], message: Message, encoding: Encoding): ClientFrame | ServerFrame | undefined {
  return direction === "client" ? decodeClient(message, encoding) : decodeServer(message, encoding);
}

function encode(direction: FrameRow["direction"], frame: ClientFrame | ServerFrame, encoding: Encoding): Message {
  return direction === "client" ? encodeClient(frame as ClientFrame, encoding) : encodeServer(frame as ServerFrame, encoding);
}

function bytes(hex: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Buffer.from(hex, "hex"));
}

/** A frame for comparison: JSON payloads by their value, since reading and writing JSON changes its spaces. */
function plain(frame: unknown): unknown {
  return JSON.parse(JSON.stringify(frame, (_, value: unknown) => (value instanceof Payload ? { format: value.format, content: value.value } : value)));
}

/** Goal: both encodings mean the same frame, and are written as the fixture says. Method: decode each, compare, encode again, compare. */
test("every frame decodes and encodes to its bytes", () => {
  for (const { name, direction, json, msgpack_hex, reads_as } of frames) {
    const fromJson = decode(direction, JSON.stringify(json), "json");
    const fromMessagePack = decode(direction, bytes(msgpack_hex), "msgpack");
    assert.ok(fromJson && fromMessagePack, name);
    assert.deepEqual(plain(fromJson), plain(fromMessagePack), name);
    assert.deepEqual(JSON.parse(encode(direction, fromMessagePack, "json") as string), reads_as ?? json, name);
    if (!reads_as) assert.equal(Buffer.from(encode(direction, fromMessagePack, "msgpack") as Uint8Array).toString("hex"), msgpack_hex, name);
  }
});

test("the fixtures cover every frame type, and no other exists here", () => {
  const { client_frames, server_frames } = fixture<Record<"client_frames" | "server_frames", { code: number; name: string }[]>>("catalogue");
  for (const [types, direction] of [[client_frames, "client"], [server_frames, "server"]] as const) {
    for (const { code, name } of types) {
      const row = frames.find((row) => row.direction === direction && (row.json as unknown[])[0] === name);
      assert.ok(row && bytes(row.msgpack_hex)[1] === code, `${direction} ${name}`);
    }
  }
  assert.throws(() => clientFrames.write({ type: "pong" } as never, "json"), TypeError);
  assert.throws(() => serverFrames.write({ type: "ping" } as never, "json"), TypeError);
});

interface InvalidRow {
  name: string;
  direction: "client" | "server";
  msgpack_hex?: string;
  json_text?: string;
  kind: "malformed" | "unknown_type" | "trailing_bytes";
}

/** What clients send is judged by servers; here it has to be refused, or at least to do no harm. */
test("an invalid message of a server is refused, and one of an unknown type is stepped over", () => {
  for (const { name, direction, msgpack_hex, json_text, kind } of fixture<InvalidRow[]>("invalid")) {
    const read = () => (json_text === undefined ? decode(direction, bytes(msgpack_hex ?? ""), "msgpack") : decode(direction, json_text, "json"));
    if (direction === "client") assertHarmless(read);
    else if (kind === "unknown_type") assert.equal(read(), undefined, name);
    else assert.throws(read, DecodeError, name);
  }
});

test("truncated, mutated and random messages are refused or harmless, whatever they are", () => {
  const seed = Math.floor(Math.random() * 2 ** 32);
  const random = randomBytes(seed);
  for (const { direction, msgpack_hex, json } of frames) {
    const message = bytes(msgpack_hex);
    for (let length = 0; length < message.length; length += 1) {
      assert.throws(() => decode(direction, message.slice(0, length), "msgpack"), DecodeError);
    }
    const text = JSON.stringify(json);
    for (let round = 0; round < 200; round += 1) {
      const mutated = message.slice();
      mutated[random() % mutated.length] = random();
      assertHarmless(() => decode(direction, mutated, "msgpack"), `seed ${seed}`);
      const at = random() % text.length;
      assertHarmless(() => decode(direction, text.slice(0, at) + String.fromCharCode(random()) + text.slice(at + 1), "json"), `seed ${seed}`);
      assertHarmless(() => decode(direction, Uint8Array.from({ length: random() }, random), "msgpack"), `seed ${seed}`);
    }
  }
});

test("a message that announces more than it holds allocates nothing for it", () => {
  const before = process.memoryUsage().heapUsed;
  for (const hex of ["ddffffffff", "dd01ffffff", "dfffffffff", "c6ffffffff", "dbffffffff", "922ddd00ffffff"]) {
    assert.throws(() => decodeServer(bytes(hex), "msgpack"), DecodeError);
  }
  assert.ok(process.memoryUsage().heapUsed - before < 16 * 1024 * 1024);
  assert.throws(() => decodeServer("[".repeat(1_000_000), "json"), DecodeError);
});

test("a text message is no MessagePack, and a binary one no JSON", () => {
  assert.throws(() => decodeServer('["pong",1,2]', "msgpack"), DecodeError);
  assert.throws(() => decodeServer(new Uint8Array([0x90]), "json"), DecodeError);
});

test("the tables of errors and close codes are the protocol's", () => {
  type Row = { code: number; name: string; retry: string };
  const { errors, closes } = fixture<{ errors: Row[]; closes: Row[] }>("catalogue");
  for (const { code, name, retry } of errors) {
    assert.equal((errorCode as Record<string, number>)[name], code);
    assert.deepEqual(asRow(RoomfulError.local(code as never, "")), { code, name, retry });
  }
  for (const { code, name, retry } of closes) {
    assert.equal((closeCode as Record<string, number>)[name], code);
    assert.deepEqual(asRow(RoomfulError.fromClose(code, "")), { code, name, retry });
  }
  const own = Object.values(errorCode).filter((code) => code >= 900);
  assert.equal(Object.keys(errorCode).length, errors.length + own.length);
  assert.equal(Object.keys(closeCode).length, closes.length);
  assert.deepEqual(asRow(RoomfulError.fromClose(1006, "")), { code: 902, name: "connection_lost", retry: "now" });
  assert.deepEqual(asRow(RoomfulError.fromClose(4999, "")), { code: 4999, name: "close_4999", retry: "after_ms" });
});

test("placement keys match the vectors", () => {
  for (const { room, key } of fixture<{ room: string; key: string }[]>("placement")) assert.equal(placementKey(room), key, room);
});

function asRow({ code, name, retry }: RoomfulError) {
  return { code, name, retry };
}

function assertHarmless(read: () => unknown, message?: string): void {
  try {
    read();
  } catch (error) {
    assert.ok(error instanceof DecodeError, `${message}: ${String(error)}`);
  }
}

/** Bytes that a seed determines (a linear congruential generator; its high bits). */
function randomBytes(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state >>> 24;
  };
}
