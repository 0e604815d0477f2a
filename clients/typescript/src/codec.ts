// From frames to WebSocket messages and back, in the two encodings. Nothing else in the package serializes what goes over the wire.

import { Decoder, Encoder } from "@msgpack/msgpack";

import { clientFrames, serverFrames, type ClientFrame, type Direction, type ServerFrame } from "./frames.js";
import { DecodeError, type Encoding } from "./wire.js";

/** What a WebSocket message holds. */
export type Message = string | Uint8Array<ArrayBuffer>;

/** The WebSocket subprotocol (RFC 6455 §1.9) of an encoding. */
export function subprotocol(encoding: Encoding): string {
  return `roomful.v1.${encoding}`;
}

export function encodeClient(frame: ClientFrame, encoding: Encoding): Message {
  return encode(clientFrames, frame, encoding);
}

export function encodeServer(frame: ServerFrame, encoding: Encoding): Message {
  return encode(serverFrames, frame, encoding);
}

/**
 * Reads a client's message; `undefined` for a frame type that this version doesn't know.
 * @throws DecodeError
 */
export function decodeClient(message: Message, encoding: Encoding): ClientFrame | undefined {
  return decode(clientFrames, message, encoding);
}

/**
 * Reads a server's message; `undefined` for a frame type that this version doesn't know.
 * @throws DecodeError
 */
export function decodeServer(message: Message, encoding: Encoding): ServerFrame | undefined {
  return decode(serverFrames, message, encoding);
}

function encode<F>(direction: Direction<F>, frame: F, encoding: Encoding): Message {
  const wire = direction.write(frame, encoding);
  return encoding === "json" ? JSON.stringify(wire) : encoder.encode(wire);
}

function decode<F>(direction: Direction<F>, message: Message, encoding: Encoding): F | undefined {
  try {
    return direction.read(parse(message, encoding), encoding);
  } catch (error) {
    if (error instanceof DecodeError) throw error;
    // What the two readers throw: SyntaxError, RangeError, and their own.
    throw new DecodeError(error instanceof Error ? error.message : String(error));
  }
}

function parse(message: Message, encoding: Encoding): unknown {
  if (encoding === "json") {
    if (typeof message !== "string") throw new DecodeError("a binary message on the JSON subprotocol");
    return JSON.parse(message);
  }
  if (typeof message === "string") throw new DecodeError("a text message on the MessagePack subprotocol");
  return decoder.decode(message);
}

/** Longer arrays and maps than any frame has are refused before anything is allocated for them. */
const ELEMENTS_MAX = 4_096;

const encoder = new Encoder();
const decoder = new Decoder({ maxArrayLength: ELEMENTS_MAX, maxMapLength: ELEMENTS_MAX });
