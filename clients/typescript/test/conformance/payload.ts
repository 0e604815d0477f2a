// Payloads as the cases write them.

import { Payload, type Json } from "../../src/index.js";

export type PlainPayload = { text: string } | { json: Json } | { binary: string } | { msgpack: string };

export function payloadOf(plain: PlainPayload): Payload {
  if ("text" in plain) return Payload.text(plain.text);
  if ("json" in plain) return Payload.json(plain.json);
  if ("binary" in plain) return new Payload("binary", fromBase64(plain.binary));
  if ("msgpack" in plain) return new Payload("msgpack", fromBase64(plain.msgpack));
  throw new Error(`${JSON.stringify(plain)} is no payload`);
}

export function plainPayload(payload: Payload): PlainPayload {
  switch (payload.format) {
    case "text":
      return { text: payload.value as string };
    case "json":
      return { json: payload.value as Json };
    case "binary":
      return { binary: Buffer.from(payload.bytes).toString("base64") };
    case "msgpack":
      return { msgpack: Buffer.from(payload.bytes).toString("base64") };
  }
}

function fromBase64(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "base64"));
}
