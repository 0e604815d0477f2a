// The client: keeps one connection to the server, comes back when it is lost, and brings its rooms and its session along.

import { Backoff, type BackoffOptions } from "./backoff.js";
import { Connection, type ConnectionEvents, type ReplyFrame } from "./connection.js";
import { Emitter } from "./emitter.js";
import { RoomfulError, closeCode, errorCode } from "./errors.js";
import type { Limits } from "./frames.js";
import { placementKey } from "./placement.js";
import { Operations, QueueBudget, type QueueMax } from "./publish-queue.js";
import { Room, type RoomContext } from "./room.js";
import type { JoinOptions } from "./room-events.js";
import { webSocketConstructor, type WebSocketConstructor } from "./socket.js";
import { VERSION } from "./version.js";
import type { Encoding } from "./wire.js";

/** Why a token is wanted: for a new connection, because the one in use expires soon, or because the server refused it. */
export type TokenReason = "connect" | "expiring" | "refused";

export interface ClientOptions {
  /** Gives the token to sign in with; null for an anonymous connection. Asked for every connection, and before a token expires. */
  readonly getToken?: (request: { reason: TokenReason }) => string | null | Promise<string | null>;
  /** The WebSocket constructor; needed where the platform has none, as in Node 20. Default: the platform's. */
  readonly webSocket?: WebSocketConstructor;
  /** How frames are written. Default `msgpack`; `json` is readable in the browser's network panel. */
  readonly encoding?: Encoding;
  /** Name and version of the application, for the server's log. Default: this package's. */
  readonly agent?: string;
  /** Bounds of the publishes without an answer, over all rooms. */
  readonly queueMax?: QueueMax;
  /** Bounds of the waits between attempts. */
  readonly backoff?: BackoffOptions;
  /** How long a connection may take, from the token to the welcome, in milliseconds. Default 10,000. */
  readonly connectTimeoutMs?: number;
  /** How long an answer may take, in milliseconds. Default 10,000. */
  readonly requestTimeoutMs?: number;
}

/**
 * `idle`: nothing wants a connection yet. `waiting`: for the next attempt. `offline`: away because the application said so. `closed`: for good.
 */
export type ClientState = "idle" | "connecting" | "connected" | "waiting" | "offline" | "closed";

/** What the server said in `welcome`. */
export interface Session {
  readonly id: string;
  /** The user, from the token or given by the server. */
  readonly user: string;
  /** Whether it is the one from before the connection was lost. */
  readonly resumed: boolean;
  readonly limits: Limits;
  /** When the token expires, in milliseconds since 1970. */
  readonly expiresMs: number | null;
}

export type ClientEvents = {
  state: {
    readonly state: ClientState;
    /** With `waiting`: how long until the next attempt. */
    readonly retryInMs?: number;
    /** With `waiting` and `closed`: why. */
    readonly error?: RoomfulError;
  };
  /** A round trip was measured, in milliseconds. */
  rtt: number;
  /** Something went wrong that belongs to no call. */
  error: RoomfulError;
};

export class Client extends Emitter<ClientEvents> {
  /** What this client's operations are signed with: 53 random bits, or fewer. */
  readonly producer = randomProducer();
  readonly #url: string;
  readonly #options: ClientOptions;
  readonly #webSocket: WebSocketConstructor;
  readonly #budget: QueueBudget;
  readonly #backoff: Backoff;
  readonly #rooms = new Map<string, Room>();
  readonly #routes = new Map<number, Room>();
  readonly #joining = new Set<string>();
  /** By room: a sequence is never used twice, also when the room is left and joined again. */
  readonly #operations = new Map<string, Operations>();
  #state: ClientState = "idle";
  #connection: Connection | undefined;
  #session: Session | undefined;
  #resume: string | undefined;
  #rttMs: number | undefined;
  /** The error that `hello` was answered with; the close that follows it says less. */
  #refusal: RoomfulError | undefined;
  #reconnectAfterMs: number | undefined;
  #tokenReason: TokenReason = "connect";
  /** When the present connection opened: from then on, frames may leave. */
  #openedMs: number | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #closedBy: RoomfulError | undefined;
  /** Counts attempts, so that a token that comes late meets no attempt but its own. */
  #attempt = 0;
  readonly #onNetwork = () => this.#retryNow();

  /**
   * @param url the server's WebSocket address, for example `ws://127.0.0.1:7400/v1/ws`
   * @throws RoomfulError where there is no WebSocket constructor
   */
  constructor(url: string, options: ClientOptions = {}) {
    super();
    this.#url = url;
    this.#options = options;
    this.#webSocket = webSocketConstructor(options.webSocket);
    this.#budget = new QueueBudget(options.queueMax);
    this.#backoff = new Backoff(options.backoff);
    platform.addEventListener?.("online", this.#onNetwork);
  }

  get state(): ClientState {
    return this.#state;
  }

  /** The session, from the first welcome on. */
  get session(): Session | undefined {
    return this.#session;
  }

  /** The latest round trip, in milliseconds. */
  get rttMs(): number | undefined {
    return this.#rttMs;
  }

  /** @internal The present connection, for those who test the server with frames that the rooms would never send. */
  get connection(): Connection | undefined {
    return this.#connection;
  }

  /**
   * Joins a room, on the present connection or as soon as there is one. The room comes back by itself after every loss.
   * @throws RoomfulError `already_joined`; what closed the client
   */
  join(name: string, options: JoinOptions = {}): Room {
    if (this.#closedBy) throw this.#closedBy;
    if (this.#rooms.has(name)) throw RoomfulError.local(303, `${name} is joined already`);
    const room = new Room(name, options, this.#roomContext(name));
    this.#rooms.set(name, room);
    if (this.#state === "idle") this.#connectSoon();
    else if (this.#state === "connected") this.#joinNow(room, this.#connection!);
    return room;
  }

  /**
   * Resolves once connected, and connects if nothing has yet.
   * @throws RoomfulError what closed the client
   */
  async connect(): Promise<Session> {
    if (this.#state === "idle") this.#connectSoon();
    for (;;) {
      if (this.#closedBy) throw this.#closedBy;
      if (this.#state === "connected") return this.#session!;
      await new Promise<void>((resolve) => {
        const off = this.on("state", () => {
          off();
          resolve();
        });
      });
    }
  }

  /**
   * Measures the round trip, in milliseconds.
   * @throws RoomfulError `connection_lost`, `request_timeout`
   */
  async ping(): Promise<number> {
    if (this.#state !== "connected") throw RoomfulError.local(902, "there is no connection");
    const rttMs = await this.#connection!.ping();
    this.#measured(rttMs);
    return rttMs;
  }

  /** Drops the connection as a failing network would. The client comes back by itself. */
  dropConnection(): void {
    this.#connection?.drop(RoomfulError.local(902, "the connection was dropped on purpose"));
  }

  /** Drops the connection and stays away until {@link online}. What is published meanwhile waits in the queue. */
  offline(): void {
    if (this.#state === "closed") return;
    this.#standStill();
    this.#become("offline");
  }

  /** Ends {@link offline}. */
  online(): void {
    if (this.#state !== "offline") return;
    this.#backoff.reset();
    this.#open();
  }

  /**
   * Ends everything: rooms are left, and what was published and has no answer is rejected with `closed`. Resolves when the server has said goodbye too.
   */
  async close(): Promise<void> {
    const connection = this.#openedMs === undefined ? undefined : this.#connection;
    // A connection that ends leaves its members there for a while, in case it comes back. This one won't. Nobody waits for these answers.
    for (const room of connection ? [...this.#routes.values()] : []) room.leave().catch(() => {});
    // Forgotten first, so that its end is no loss to come back from.
    if (connection) this.#connection = undefined;
    this.#end(RoomfulError.local(903, "the client was closed"));
    await connection?.close();
  }

  #roomContext(name: string): RoomContext {
    const operations = this.#operations.get(name) ?? new Operations(this.producer);
    this.#operations.set(name, operations);
    return {
      operations,
      budget: this.#budget,
      backoff: this.#options.backoff ?? {},
      requestTimeoutMs: this.#options.requestTimeoutMs ?? 10_000,
      routes: this.#routes,
      joining: this.#joining,
      limits: () => this.#session?.limits,
      abandon: (connection, error) => connection.drop(error),
      forget: (room) => this.#rooms.delete(room.name),
      freed: () => {
        const next = this.#rooms.get(name);
        if (next && this.#state === "connected") this.#joinNow(next, this.#connection!);
      },
    };
  }

  /** After the present turn, so that all rooms that are joined in it travel with the hello. */
  #connectSoon(): void {
    this.#become("connecting");
    queueMicrotask(() => this.#state === "connecting" && !this.#connection && this.#open());
  }

  #open(): void {
    this.#become("connecting");
    this.#attempt += 1;
    const attempt = this.#attempt;
    const timeoutMs = this.#options.connectTimeoutMs ?? 10_000;
    this.#timer = setTimeout(() => this.#attemptFailed(RoomfulError.local(901, `no welcome came within ${timeoutMs} ms`)), timeoutMs);
    this.#token(this.#tokenReason).then(
      (token) => attempt === this.#attempt && this.#openSocket(token),
      (error: RoomfulError) => attempt === this.#attempt && this.#attemptFailed(error),
    );
  }

  async #token(reason: TokenReason): Promise<string | null> {
    try {
      return (await this.#options.getToken?.({ reason })) ?? null;
    } catch (error) {
      if (error instanceof RoomfulError) throw error;
      throw RoomfulError.local(905, "getToken failed", { cause: error });
    }
  }

  #openSocket(token: string | null): void {
    const { encoding = "msgpack", requestTimeoutMs = 10_000 } = this.#options;
    const options = { webSocket: this.#webSocket, encoding, requestTimeoutMs };
    const events: ConnectionEvents = {
      opened: () => this.#opened(connection, token),
      frame: (frame) => this.#received(frame),
      lost: (error) => connection === this.#connection && this.#lost(error),
    };
    let connection: Connection;
    try {
      connection = new Connection(this.#urlWithPlacement(), options, events);
    } catch (cause) {
      return this.#end(RoomfulError.local(105, `${this.#url} is no address of a WebSocket`, { cause }));
    }
    this.#connection = connection;
  }

  #urlWithPlacement(): string {
    const [first] = this.#rooms.keys();
    if (first === undefined) return this.#url;
    return `${this.#url}${this.#url.includes("?") ? "&" : "?"}k=${placementKey(first)}`;
  }

  /** The hello and the joins leave in one go; what is more than the server takes before its welcome waits for that. */
  #opened(connection: Connection, token: string | null): void {
    const agent = this.#options.agent ?? `roomful-typescript/${VERSION}`;
    connection.request({ type: "hello", token, resume: this.#resume ?? null, agent }, {
      resolve: (reply) => this.#welcomed(connection, reply),
      reject: (error) => {
        if (error.code === 901) connection.drop(error);
        else if (error.code !== 902) this.#refusal = error;
      },
    });
    this.#openedMs = performance.now();
    this.#joinAll(connection, BEFORE_WELCOME_MAX);
  }

  #joinAll(connection: Connection, lengthMax: number): void {
    for (const room of [...this.#rooms.values()]) {
      if (room.state === "waiting" && connection.sentLength < lengthMax) this.#joinNow(room, connection);
    }
  }

  /** A room that was left before it was joined is in the way until its join is answered. */
  #joinNow(room: Room, connection: Connection): void {
    if (!this.#joining.has(room.name)) room.join(connection);
  }

  #welcomed(connection: Connection, welcome: ReplyFrame): void {
    if (welcome.type !== "welcome") return connection.drop(RoomfulError.local(904, `hello was answered with ${welcome.type}`));
    clearTimeout(this.#timer);
    const { session: id, user, resumed, limits, expiresMs } = welcome;
    this.#session = { id, user, resumed, limits, expiresMs };
    this.#resume = welcome.resume;
    this.#tokenReason = "connect";
    connection.startHeartbeat(welcome.heartbeatMs, (rttMs) => this.#measured(rttMs));
    this.#become("connected");
    this.#joinAll(connection, Infinity);
  }

  #received(frame: ConnectionFrame): void {
    switch (frame.type) {
      case "token_expiring":
        return void this.#refresh(frame.expiresMs);
      case "goaway":
        this.#resume = frame.resume;
        this.#reconnectAfterMs = frame.reconnectAfterMs;
        return;
      case "error":
        return this.emit("error", RoomfulError.fromFrame(frame));
      default:
        // A room that was just left may still be spoken of.
        return this.#routes.get(frame.room)?.receive(frame);
    }
  }

  /** Brings a fresh token while the connection lives; a failure is tried again until the old one has expired. */
  async #refresh(expiresMs: number): Promise<void> {
    const connection = this.#connection;
    const backoff = new Backoff(this.#options.backoff);
    while (connection && connection === this.#connection) {
      try {
        const token = await this.#token("expiring");
        if (token === null) return;
        const reply = await connection.ask({ type: "refresh", token });
        if (reply.type === "ok" && reply.reply.kind === "refreshed" && this.#session) {
          this.#session = { ...this.#session, expiresMs: reply.reply.expiresMs };
        }
        return;
      } catch (error) {
        if (connection !== this.#connection || !(error instanceof RoomfulError)) return;
        this.emit("error", error);
        const waitMs = backoff.next(error.afterMs);
        if (error.retry === "never" || Date.now() + waitMs > expiresMs) return;
        await new Promise((resolve) => setTimeout(resolve, waitMs));
      }
    }
  }

  #measured(rttMs: number): void {
    this.#rttMs = rttMs;
    this.emit("rtt", rttMs);
  }

  /** The present attempt came to nothing: no token, or no welcome in time. */
  #attemptFailed(error: RoomfulError): void {
    if (this.#connection) this.#connection.drop(error);
    else this.#lost(error);
  }

  #lost(closed: RoomfulError): void {
    const error = this.#refusal ?? closed;
    const hintMs = this.#reconnectAfterMs ?? error.afterMs;
    if (this.#openedMs !== undefined) this.#backoff.worked(performance.now() - this.#openedMs);
    this.#connection = undefined;
    this.#standStill();
    if (error.code === 904) this.emit("error", error);
    if (error.retry === "never" || (error.retry === "refresh" && !this.#options.getToken)) return this.#end(error);
    if (error.retry === "refresh") this.#tokenReason = "refused";
    // The session is over: its resume token would only be refused.
    if (error.code === errorCode.revoked || error.code === closeCode.revoked) this.#resume = undefined;
    // A server that says now says it to one client. A connection that just ended may have ended for all, who must not come back at the same moment.
    const atOnce = error.retry === "now" && error.code !== 902 && hintMs === undefined;
    const retryInMs = atOnce ? this.#backoff.nextAfterFirst() : this.#backoff.nextMore(hintMs);
    this.#timer = setTimeout(() => this.#open(), retryInMs);
    this.#become("waiting", { retryInMs, error });
  }

  /** The network is back, says the platform: no use in waiting longer. */
  #retryNow(): void {
    if (this.#state !== "waiting") return;
    clearTimeout(this.#timer);
    this.#open();
  }

  /** No connection, no attempt, no timer; the rooms wait. */
  #standStill(): void {
    clearTimeout(this.#timer);
    this.#attempt += 1;
    this.#openedMs = this.#refusal = this.#reconnectAfterMs = undefined;
    const connection = this.#connection;
    this.#connection = undefined;
    connection?.drop(RoomfulError.local(902, "the connection was given up"));
    for (const room of [...this.#rooms.values()]) room.disconnected();
  }

  #end(error: RoomfulError): void {
    if (this.#closedBy) return;
    this.#closedBy = error;
    platform.removeEventListener?.("online", this.#onNetwork);
    this.#standStill();
    for (const room of [...this.#rooms.values()]) room.end(error);
    this.#become("closed", { error });
  }

  #become(state: ClientState, more: { retryInMs?: number; error?: RoomfulError } = {}): void {
    if (this.#state === state && state !== "waiting") return;
    this.#state = state;
    this.emit("state", { state, ...more });
  }
}

/** Half of what the server takes before its welcome: the last join may be long. */
const BEFORE_WELCOME_MAX = 32 * 1024;

type ConnectionFrame = Parameters<ConnectionEvents["frame"]>[0];

/** Half of the bits from above 2^32, half from below: a number has no more than 53. */
function randomProducer(): number {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high! & 0x1f_ffff) * 2 ** 32 + low!;
}

/** The part of a browser's global object that tells when the network is back; Node has none. */
const platform = globalThis as {
  addEventListener?: (name: string, listener: () => void) => void;
  removeEventListener?: (name: string, listener: () => void) => void;
};
