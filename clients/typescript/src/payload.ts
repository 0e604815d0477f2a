// Payloads: what a frame carries for the application, bytes with a format tag that the server never interprets.

import { decode } from "@msgpack/msgpack";

/** Any value that JSON can write. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** What a payload's bytes are. */
export type PayloadFormat = "binary" | "json" | "text" | "msgpack";

/** What the calls that send accept: a string goes as `text`, bytes as `binary`, everything else as `json`. */
export type PayloadLike = Payload | Uint8Array | Json;

/** Bytes of the application and what they are. */
export class Payload {
  constructor(
    /** What the bytes are. */
    readonly format: PayloadFormat,
    /** The bytes as the sender gave them. */
    readonly bytes: Uint8Array,
  ) {}

  /**
   * Chooses the format by the value. To send a string as `json`, or ready MessagePack, say so with {@link Payload.json} or the constructor.
   * @throws TypeError for a payload that is not what its format says, and for a value that has no JSON form
   */
  static from(value: PayloadLike): Payload {
    if (value instanceof Payload) return value.#checked();
    if (value instanceof Uint8Array) return new Payload("binary", value);
    return typeof value === "string" ? Payload.text(value) : Payload.json(value);
  }

  /** A text. */
  static text(text: string): Payload {
    return new Payload("text", utf8.encode(text));
  }

  /**
   * A JSON value.
   * @throws TypeError where JSON has no form for it.
   */
  static json(value: Json): Payload {
    const text: string | undefined = JSON.stringify(value);
    if (text === undefined) throw new TypeError("the payload has no JSON form");
    return new Payload("json", utf8.encode(text));
  }

  /**
   * The content by its format: a string for `text`, the value for `json` and `msgpack`, the bytes for `binary`. Where the bytes are not what the format
   * says, this is the bytes too; the server refuses such `text` and `json`, and doesn't look into `msgpack`.
   */
  get value(): unknown {
    try {
      return readers[this.format](this.bytes);
    } catch {
      return this.bytes;
    }
  }

  #checked(): this {
    if (this.format !== "msgpack" && this.format !== "binary") readers[this.format](this.bytes);
    return this;
  }
}

const utf8 = new TextEncoder();
const fromUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Each throws where the bytes are something else. */
const readers: Record<PayloadFormat, (bytes: Uint8Array) => unknown> = {
  binary: (bytes) => bytes,
  json: (bytes) => JSON.parse(fromUtf8.decode(bytes)),
  text: (bytes) => fromUtf8.decode(bytes),
  msgpack: (bytes) => decode(bytes),
};
