// A server on a free port that says what a test tells it to, for what a real one can't be made to do on command.

import { once } from "node:events";
import type { AddressInfo } from "node:net";

import { WebSocket, WebSocketServer } from "ws";

import { decodeClient, encodeServer } from "../src/codec.js";
import type { Emitter } from "../src/emitter.js";
import type { ClientFrame, ClientFrameOf, Entry, ServerFrame, ServerFrameOf } from "../src/frames.js";
import { Client, Payload } from "../src/index.js";
import type { ClientEvents, ClientOptions, Locks, LocksEvents, Room, RoomEvents, Roster, RosterEvents, SharedValues, SharedValuesEvents } from "../src/index.js";
import type { Encoding } from "../src/wire.js";

/** How long a test waits for anything before it fails. */
export const DEADLINE_MS = 5_000;

/** Things that arrive, for those who wait for them. */
export class Inbox<T> {
  readonly #items: T[] = [];
  #wake: (() => void) | undefined;

  put(item: T): void {
    this.#items.push(item);
    this.#wake?.();
  }

  get size(): number {
    return this.#items.length;
  }

  async take(what: string): Promise<T> {
    const deadline = performance.now() + DEADLINE_MS;
    while (this.#items.length === 0) {
      const remaining = deadline - performance.now();
      if (remaining <= 0) throw new Error(`${what} did not arrive within ${DEADLINE_MS} ms`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, remaining);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    return this.#items.shift()!;
  }
}

/** The server's end of one connection. */
export class Peer {
  readonly frames = new Inbox<ClientFrame>();
  readonly closed: Promise<number>;

  constructor(
    readonly socket: WebSocket,
    readonly path: string,
    readonly encoding: Encoding,
  ) {
    socket.on("message", (data: Buffer, binary) => {
      const frame = decodeClient(binary ? new Uint8Array(data) : data.toString(), encoding);
      if (frame) this.frames.put(frame);
    });
    this.closed = once(socket, "close").then(([code]) => code as number);
  }

  send(...frames: ServerFrame[]): void {
    for (const frame of frames) this.socket.send(encodeServer(frame, this.encoding));
  }

  /** The next frame, which must be of this type; pings are answered and stepped over. */
  async expect<N extends ClientFrame["type"]>(type: N): Promise<ClientFrameOf<N>> {
    for (;;) {
      const frame = await this.frames.take(type);
      if (frame.type === type) return frame as ClientFrameOf<N>;
      if (frame.type !== "ping") throw new Error(`${type} was expected, ${JSON.stringify(frame)} came`);
      this.send({ type: "pong", request: frame.request, timeMs: 0 });
    }
  }

  /** Answers `hello`. */
  async welcome(overrides: Partial<ServerFrameOf<"welcome">> = {}): Promise<ClientFrameOf<"hello">> {
    const hello = await this.expect("hello");
    this.send({ ...WELCOME, request: hello.request, ...overrides });
    return hello;
  }

  /** Answers `join`: by default live, at its position or at 7-0. */
  async joined(overrides: Partial<ServerFrameOf<"joined">> = {}): Promise<ClientFrameOf<"join">> {
    const join = await this.expect("join");
    const position = overrides.position ?? join.since ?? { epoch: 7, offset: 0 };
    this.send({ ...JOINED, request: join.request, position, head: position, ...overrides });
    return join;
  }

  /** Answers `publish` with a position. */
  async acknowledged(offset: number): Promise<ClientFrameOf<"publish">> {
    const publish = await this.expect("publish");
    const published = { position: { epoch: 7, offset }, timeMs: 1_000, duplicate: false };
    this.send({ type: "ok", request: publish.request, reply: { kind: "published", published } });
    return publish;
  }
}

export class FakeServer {
  readonly peers = new Inbox<Peer>();
  readonly #clients: Client[] = [];
  readonly #server: WebSocketServer;

  private constructor(server: WebSocketServer) {
    this.#server = server;
    server.on("connection", (socket, request) => {
      this.peers.put(new Peer(socket, request.url ?? "", socket.protocol === "roomful.v1.json" ? "json" : "msgpack"));
    });
  }

  static async start(): Promise<FakeServer> {
    const server = new WebSocketServer({ host: "127.0.0.1", port: 0, handleProtocols: ([first]) => first ?? false });
    await once(server, "listening");
    return new FakeServer(server);
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.#server.address() as AddressInfo).port}/v1/ws`;
  }

  /** A client of this server that comes back fast. */
  client(options: ClientOptions = {}): Client {
    const client = new Client(this.url, { webSocket: WebSocket, backoff: { baseMs: 2, capMs: 10 }, ...options });
    this.#clients.push(client);
    return client;
  }

  /** The next connection. */
  peer(): Promise<Peer> {
    return this.peers.take("a connection");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.#clients) void client.close();
    for (const socket of this.#server.clients) socket.terminate();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** Runs a test against a fresh server. */
export function withServer(test: (server: FakeServer) => Promise<void>): () => Promise<void> {
  return async () => {
    const server = await FakeServer.start();
    try {
      await test(server);
    } finally {
      await server[Symbol.asyncDispose]();
    }
  };
}

/** Everything of one event name, in order. */
export function collect<S extends Client | Room | Roster | SharedValues | Locks, N extends keyof EventsOf<S>>(source: S, name: N): Inbox<EventsOf<S>[N]> {
  const inbox = new Inbox<EventsOf<S>[N]>();
  (source as Emitter<any>).on(name, (event) => inbox.put(event));
  return inbox;
}

type EventsOf<S> = S extends Client
  ? ClientEvents
  : S extends Room
    ? RoomEvents
    : S extends SharedValues
      ? SharedValuesEvents
      : S extends Locks
        ? LocksEvents
        : RosterEvents;

/** An entry of room 1 by somebody else. */
export function event(offset: number, text = `n-${offset}`): ServerFrameOf<"event"> {
  const entry: Entry = { offset, timeMs: 1_000 + offset, kind: "publish", user: "bob", op: null, payload: Payload.text(text) };
  return { type: "event", room: JOINED.room, entry };
}

export const WELCOME: ServerFrameOf<"welcome"> = {
  type: "welcome",
  request: 0,
  session: "0".repeat(32),
  resumed: false,
  user: "ada",
  resume: "resume-1",
  heartbeatMs: 25_000,
  timeMs: 0,
  expiresMs: null,
  limits: { messageBytesMax: 65_536, payloadBytesMax: 1_024, roomsMax: 16, requestsMax: 16 },
};

export const JOINED: ServerFrameOf<"joined"> = {
  type: "joined",
  request: 0,
  room: 1,
  member: 11,
  position: { epoch: 7, offset: 0 },
  head: { epoch: 7, offset: 0 },
  recovery: "live",
  durability: "memory",
  revision: 1,
  occupancy: 1,
  state: null,
  locks: null,
};
