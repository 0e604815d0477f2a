// One live socket: frames out, frames in, and the one reply of each request. Knows nothing of rooms or of coming back.
//
// Replies are handed over in the turn in which they arrive, not through promises: what follows a `joined` in the same message needs it done.

import { decodeServer, encodeClient, subprotocol, type Message } from "./codec.js";
import { RoomfulError } from "./errors.js";
import type { ClientFrame, ServerFrame, ServerFrameOf } from "./frames.js";
import { Heartbeat } from "./heartbeat.js";
import type { WebSocketConstructor, WebSocketLike } from "./socket.js";
import { DecodeError, type Encoding } from "./wire.js";

/** A client frame that gets a reply, before it has its number. */
export type RequestFrame = ClientFrame extends infer F ? (F extends { request: number | null } ? Omit<F, "request"> : never) : never;

/** What a request is answered with, when it succeeds. */
export type ReplyFrame = ServerFrameOf<"welcome"> | ServerFrameOf<"joined"> | ServerFrameOf<"ok"> | ServerFrameOf<"pong">;

/** Called once for each request, in the turn of its reply. */
export interface ReplyHandler {
  resolve(reply: ReplyFrame): void;
  reject(error: RoomfulError): void;
}

/** Who is told what happens on a connection. */
export interface ConnectionEvents {
  opened(): void;
  /** Every frame that is no reply. */
  frame(frame: Exclude<ServerFrame, ReplyFrame | { type: "batch" }>): void;
  /** It is over; nothing follows. Every request without a reply has been rejected. */
  lost(error: RoomfulError): void;
}

export interface ConnectionOptions {
  readonly webSocket: WebSocketConstructor;
  readonly encoding: Encoding;
  readonly requestTimeoutMs: number;
}

interface PendingRequest extends ReplyHandler {
  readonly timer: ReturnType<typeof setTimeout>;
}

export class Connection {
  readonly #options: ConnectionOptions;
  readonly #events: ConnectionEvents;
  readonly #socket: WebSocketLike;
  readonly #requests = new Map<number, PendingRequest>();
  #heartbeat: Heartbeat | undefined;
  #lastRequest = 0;
  #sentLength = 0;
  #over = false;

  constructor(url: string, options: ConnectionOptions, events: ConnectionEvents) {
    this.#options = options;
    this.#events = events;
    const socket = new options.webSocket(url, [subprotocol(options.encoding)]);
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => events.opened();
    socket.onmessage = (event) => this.#received(event.data);
    socket.onclose = (event) => this.#end(RoomfulError.fromClose(event.code ?? 1006, event.reason ?? ""));
    // A close event follows every error, and says more.
    socket.onerror = () => {};
    socket.on?.("unexpected-response", (_request, refusal) => this.drop(RoomfulError.fromRefusal(refusal)));
  }

  /** How much has been sent so far: bytes, or characters of JSON. */
  get sentLength(): number {
    return this.#sentLength;
  }

  /** Bytes that wait in this process to be sent. */
  get bufferedBytes(): number {
    return this.#socket.bufferedAmount;
  }

  /** Sends a frame that gets no reply. */
  send(frame: ClientFrame): void {
    if (this.#over) return;
    this.#heartbeat?.sent();
    const message = encodeClient(frame, this.#options.encoding);
    this.#sentLength += message.length;
    this.#socket.send(message);
  }

  /** Sends a request. */
  request(frame: RequestFrame, handler: ReplyHandler): void {
    if (this.#over) return handler.reject(connectionLost());
    const request = (this.#lastRequest += 1);
    const timer = setTimeout(() => this.#timedOut(request), this.#options.requestTimeoutMs);
    this.#requests.set(request, { ...handler, timer });
    this.send({ ...frame, request } as ClientFrame);
  }

  /** Sends a request whose reply nothing in the same message depends on. */
  ask(frame: RequestFrame): Promise<ReplyFrame> {
    return new Promise((resolve, reject) => this.request(frame, { resolve, reject }));
  }

  /** Sends a ping and gives the round trip, in milliseconds. */
  async ping(): Promise<number> {
    const startMs = performance.now();
    await this.ask({ type: "ping" });
    return performance.now() - startMs;
  }

  /** Begins to ping and to watch for silence. A ping's round trip goes to `measured`. */
  startHeartbeat(heartbeatMs: number, measured: (rttMs: number) => void): void {
    this.#heartbeat = new Heartbeat(heartbeatMs, {
      // A ping that fails ends with the connection, which is told elsewhere.
      ping: () => void this.ping().then(measured, () => {}),
      giveUp: () => this.drop(RoomfulError.local(902, "nothing was heard from the server for two heartbeats")),
    });
  }

  /** Ends the connection at once, as a failed network would, and without waiting for the other side. */
  drop(error: RoomfulError): void {
    this.#detach();
    if (this.#socket.terminate) this.#socket.terminate();
    else this.#socket.close(DROPPED, "dropped");
    this.#end(error);
  }

  /** Says goodbye; resolves when the other side has said it too. */
  close(): Promise<void> {
    this.#end(connectionLost());
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#socket.terminate?.();
        resolve();
      }, CLOSE_TIMEOUT_MS);
      this.#socket.onclose = () => {
        clearTimeout(timer);
        resolve();
      };
      this.#socket.close(1000);
    });
  }

  #received(data: unknown): void {
    if (this.#over) return;
    this.#heartbeat?.received();
    try {
      const message = data instanceof ArrayBuffer ? new Uint8Array(data) : (data as Message);
      const frame = decodeServer(message, this.#options.encoding);
      if (frame?.type === "batch") frame.frames.forEach((inner) => this.#dispatch(inner));
      else if (frame) this.#dispatch(frame);
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      this.drop(RoomfulError.local(904, `the server sent a message that is no frame: ${error.message}`, { cause: error }));
    }
  }

  #dispatch(frame: Exclude<ServerFrame, { type: "batch" }>): void {
    // A frame earlier in the same batch may have ended the connection.
    if (this.#over) return;
    switch (frame.type) {
      case "welcome":
      case "joined":
      case "ok":
      case "pong":
        return this.#take(frame.request)?.resolve(frame);
      case "error": {
        const request = frame.request === null ? undefined : this.#take(frame.request);
        return request ? request.reject(RoomfulError.fromFrame(frame)) : this.#events.frame(frame);
      }
      default:
        return this.#events.frame(frame);
    }
  }

  #take(request: number): PendingRequest | undefined {
    const pending = this.#requests.get(request);
    this.#requests.delete(request);
    clearTimeout(pending?.timer);
    return pending;
  }

  #timedOut(request: number): void {
    this.#take(request)?.reject(RoomfulError.local(901, `no answer came within ${this.#options.requestTimeoutMs} ms`));
  }

  #end(error: RoomfulError): void {
    if (this.#over) return;
    this.#over = true;
    this.#heartbeat?.stop();
    this.#detach();
    for (const request of [...this.#requests.keys()]) this.#take(request)?.reject(connectionLost());
    this.#events.lost(error);
  }

  #detach(): void {
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
  }
}

function connectionLost(): RoomfulError {
  return RoomfulError.local(902, "the connection was lost before the answer");
}

/** A private close code: this side dropped the connection and will be back, which 1000 would deny. */
const DROPPED = 4000;
/** How long a goodbye waits for its echo. */
const CLOSE_TIMEOUT_MS = 1_000;
