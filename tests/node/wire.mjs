// The two encodings of protocol/SPEC.md, written from it alone: frames are arrays that begin with their type, a number in MessagePack and a name in
// JSON, and so is every word of a fixed list.

import { createHash } from "node:crypto";
import { decode, encode } from "@msgpack/msgpack";

const CLIENT = { hello: 1, join: 2, leave: 3, publish: 4, signal: 5, presence: 6, history: 7, refresh: 8, ping: 9, batch: 10 };
const SERVER = {
  welcome: 32, joined: 33, event: 34, advance: 35, signal: 36, presence: 37, ok: 38, error: 39, caught_up: 40, left: 41,
  token_expiring: 42, goaway: 43, pong: 44, batch: 45,
};
const FORMATS = ["binary", "json", "text", "msgpack"];

/** Every list of words; a word's number is its place. */
const WORDS = {
  watch: ["none", "occupancy", "members"],
  recovery: ["live", "recovering", "reset"],
  reply: ["done", "published", "members", "history", "refreshed"],
  action: ["get", "set", "watch"],
  change: ["present", "gone"],
  direction: ["forward", "backward"],
  retry: ["never", "now", "after_ms", "refresh"],
};

export const msgpack = {
  name: "msgpack",
  subprotocol: "roomful.v1.msgpack",
  encode: (type, ...fields) => encode([CLIENT[type], ...fields]),
  decode: (message, isBinary) => {
    if (!isBinary) throw new Error("a text message on a binary subprotocol");
    return decode(message);
  },
  type: (code) => Object.keys(SERVER).find((name) => SERVER[name] === code),
  word: (list, name) => WORDS[list].indexOf(name),
  payload: (format, value) => [FORMATS.indexOf(format), format === "binary" ? value : Buffer.from(format === "json" ? JSON.stringify(value) : value)],
  content: ([format, bytes]) => read(FORMATS[format], Buffer.from(bytes)),
  trailing: Buffer.from([0x92, CLIENT.ping, 5, 0xc0]),
  unknown: Buffer.from([0x92, 99, 5]),
};

export const json = {
  name: "json",
  subprotocol: "roomful.v1.json",
  encode: (type, ...fields) => JSON.stringify([type, ...fields]),
  decode: (message, isBinary) => {
    if (isBinary) throw new Error("a binary message on a text subprotocol");
    return JSON.parse(message.toString());
  },
  type: (name) => name,
  word: (_list, name) => name,
  payload: (format, value) => [format, format === "binary" ? Buffer.from(value).toString("base64") : value],
  content: ([format, value]) => (format === "binary" ? Buffer.from(value, "base64").toString("hex") : value),
  trailing: '["ping",5] 1',
  unknown: '["hullo",5]',
};

/** Bytes as something that compares: binary in hexadecimal digits. */
function read(format, bytes) {
  if (format === "json") return JSON.parse(bytes.toString());
  return format === "text" ? bytes.toString() : bytes.toString("hex");
}

/** The first 64 bits of the room name's SHA-256, in hexadecimal digits. */
export function placementKey(room) {
  return createHash("sha256").update(room).digest("hex").slice(0, 16);
}
