// What this package needs of a WebSocket, so that any constructor with the browser's face will do.

import { RoomfulError } from "./errors.js";

/** The part of the WebSocket interface that is used. */
export interface WebSocketLike {
  binaryType: string;
  readonly bufferedAmount: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(data: string | Uint8Array<ArrayBuffer>): void;
  close(code?: number, reason?: string): void;
  /** Drops the socket without a close frame, where the platform can. */
  terminate?(): void;
  /** Tells of an answer that is no handshake, as `ws` does. A browser keeps it to itself. */
  on?(event: "unexpected-response", listener: (request: any, response: HandshakeRefusal) => void): unknown;
}

/** The HTTP answer to a handshake that was refused. */
export interface HandshakeRefusal {
  readonly statusCode?: number | undefined;
  readonly headers: { readonly "retry-after"?: string | undefined };
}

/** A WebSocket constructor: the browser's, or the one of `ws`. */
export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocketLike;

/** The given constructor, or the platform's. */
export function webSocketConstructor(given: WebSocketConstructor | undefined): WebSocketConstructor {
  const found = given ?? (globalThis as { WebSocket?: WebSocketConstructor }).WebSocket;
  if (found) return found;
  throw RoomfulError.local(105, "this platform has no WebSocket; pass one: new Client(url, { webSocket })");
}
