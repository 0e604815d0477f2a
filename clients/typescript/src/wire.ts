// The parts that frames are made of, and how each is read and written. A part is read from what a MessagePack or JSON reader gave, so every
// value is checked here, once; the two encodings differ in enums (number or name) and payloads alone.

import { Payload, type PayloadFormat } from "./payload.js";

/** How frames are written; chosen by the WebSocket subprotocol. */
export type Encoding = "msgpack" | "json";

/** A message is not a frame. */
export class DecodeError extends Error {
  override readonly name = "DecodeError";
}

/** One kind of value on the wire. */
export interface Type<T> {
  write(value: T, encoding: Encoding): unknown;
  /** @throws DecodeError */
  read(wire: unknown, encoding: Encoding): T;
  /** What stands for it where the sender left it out. Without this, leaving it out is an error. */
  readonly absent?: () => T;
}

/** The values of a type. */
export type Infer<X> = X extends Type<infer T> ? T : never;

/** The fields of a frame or record, in wire order. */
export type Fields = { readonly [name: string]: Type<any> };

/** The values of fields. */
export type Values<F extends Fields> = { -readonly [K in keyof F]: Infer<F[K]> };

/** An integer from 0 to 2^53 − 1. */
export const integer: Type<number> = {
  write: (value) => value,
  read: (wire) => {
    // A reader gives 64-bit integers beyond 2^53 as inexact numbers, which are not safe ones.
    if (typeof wire === "number" && Number.isSafeInteger(wire) && wire >= 0) return wire;
    throw new DecodeError("an integer from 0 to 2^53 − 1 was expected");
  },
};

export const text: Type<string> = {
  write: (value) => value,
  read: (wire) => {
    if (typeof wire === "string") return wire;
    throw new DecodeError("a text was expected");
  },
};

export const boolean: Type<boolean> = {
  write: (value) => value,
  read: (wire) => {
    if (typeof wire === "boolean") return wire;
    throw new DecodeError("true or false was expected");
  },
};

/** The value, or null. */
export function nullable<T>(inner: Type<T>): Type<T | null> {
  return {
    write: (value, encoding) => (value === null ? null : inner.write(value, encoding)),
    read: (wire, encoding) => (wire === null || wire === undefined ? null : inner.read(wire, encoding)),
  };
}

/** A value that the sender may leave out, together with everything after it. */
export function withDefault<T>(inner: Type<T>, value: T): Type<T> {
  return { ...inner, absent: () => value };
}

/** A small number in MessagePack, a name in JSON: the name's index is the number. */
export function oneOf<const N extends readonly string[]>(...names: N): Type<N[number]> {
  return {
    write: (name, encoding) => (encoding === "json" ? name : names.indexOf(name)),
    read: (wire, encoding) => {
      const name = encoding === "json" ? names.find((known) => known === wire) : at(names, wire);
      if (name !== undefined) return name;
      throw new DecodeError(`one of ${names.join(", ")} was expected`);
    },
  };
}

export function list<T>(item: Type<T>): Type<T[]> {
  return {
    write: (values, encoding) => values.map((value) => item.write(value, encoding)),
    read: (wire, encoding) => array(wire).map((element) => item.read(element, encoding)),
  };
}

/** Fields in fixed order, as an array. */
export function record<F extends Fields>(fields: F): Type<Values<F>> {
  return {
    write: (values, encoding) => writeFields(fields, values, encoding),
    read: (wire, encoding) => readFields(fields, array(wire), 0, encoding),
  };
}

export function writeFields<F extends Fields>(fields: F, values: Values<F>, encoding: Encoding): unknown[] {
  return Object.entries(fields).map(([name, type]) => type.write(values[name], encoding));
}

/** Reads the fields from index `start` on. What a later version appended is left alone. */
export function readFields<F extends Fields>(fields: F, wire: readonly unknown[], start: number, encoding: Encoding): Values<F> {
  const values: Record<string, unknown> = {};
  Object.entries(fields).forEach(([name, type], index) => {
    values[name] = readField(name, type, wire, start + index, encoding);
  });
  return values as Values<F>;
}

function readField(name: string, type: Type<unknown>, wire: readonly unknown[], index: number, encoding: Encoding): unknown {
  if (index < wire.length) {
    try {
      return type.read(wire[index], encoding);
    } catch (error) {
      throw new DecodeError(`field ${name}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  if (type.absent) return type.absent();
  throw new DecodeError(`missing field ${name}`);
}

export function array(wire: unknown): unknown[] {
  if (Array.isArray(wire)) return wire;
  throw new DecodeError("an array was expected");
}

/** In MessagePack `[tag, bytes]`; in JSON `[name, value]`, where binary formats are base64. */
export const payload: Type<Payload> = {
  write: (value, encoding) =>
    encoding === "json" ? [value.format, writeJsonPayload(value)] : [FORMATS.indexOf(value.format), value.bytes],
  read: (wire, encoding) => (encoding === "json" ? readJsonPayload(array(wire)) : readBinaryPayload(array(wire))),
};

function writeJsonPayload(value: Payload): unknown {
  return value.format === "json" || value.format === "text" ? value.value : toBase64(value.bytes);
}

function readJsonPayload([name, content]: readonly unknown[]): Payload {
  const format = FORMATS.find((known) => known === name);
  if (format === "json" && content !== undefined) return new Payload(format, utf8.encode(JSON.stringify(content)));
  if (format === undefined || typeof content !== "string") throw new DecodeError("a payload was expected: [format, value]");
  return new Payload(format, format === "text" ? utf8.encode(content) : fromBase64(content));
}

function readBinaryPayload([tag, bytes]: readonly unknown[]): Payload {
  const format = at(FORMATS, tag);
  if (format === undefined || !(bytes instanceof Uint8Array)) throw new DecodeError("a payload was expected: [tag, bytes]");
  return new Payload(format, bytes);
}

/** The name of a number. What came over the wire may be anything, also the name of a property that every array has. */
function at<N extends string>(names: readonly N[], index: unknown): N | undefined {
  return typeof index === "number" ? names[index] : undefined;
}

function toBase64(bytes: Uint8Array): string {
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

function fromBase64(encoded: string): Uint8Array {
  try {
    return Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  } catch {
    throw new DecodeError("base64 was expected");
  }
}

const FORMATS: readonly PayloadFormat[] = ["binary", "json", "text", "msgpack"];
const utf8 = new TextEncoder();
