// A room as the application sees it: the log as a gap-free stream of events, publishing, signals, presence and history.
//
// A room outlives connections. It joins on every new one with the position it stands at, checks that no offset is missing or comes twice, and sends
// again what has no answer. The client drives it; nothing here opens or closes a socket.

import { Backoff, type BackoffOptions } from "./backoff.js";
import type { Connection, ReplyFrame, RequestFrame } from "./connection.js";
import { Emitter } from "./emitter.js";
import { RoomfulError } from "./errors.js";
import type { ClientFrameOf, Cursors, Entry, Limits, OpId, Published, Reply, ServerFrameOf, Watch } from "./frames.js";
import { unexpected, type RoomAccess } from "./keyed.js";
import { Locks } from "./locks.js";
import { Payload, type PayloadLike } from "./payload.js";
import { comparePositions, formatPosition, type Position } from "./position.js";
import { payloads, PublishQueue, type Operation, type Operations, type QueueBudget, type QueuedPublish } from "./publish-queue.js";
import type { Content, HistoryOptions, HistoryPage, Joined, JoinOptions, Member, MembersPage, RoomEvent, RoomEvents, RoomState, Timer } from "./room-events.js";
import { SharedValues } from "./values.js";

/** What a room needs of its client. */
export interface RoomContext {
  readonly budget: QueueBudget;
  readonly operations: Operations;
  readonly backoff: BackoffOptions;
  readonly requestTimeoutMs: number;
  /** Which room an alias stands for on the present connection. */
  readonly routes: Map<number, Room>;
  /** The names of rooms whose join is on its way: the server refuses another one. */
  readonly joining: Set<string>;
  limits(): Limits | undefined;
  /** The server broke the protocol, or fell silent: this connection is worth no more. */
  abandon(connection: Connection, error: RoomfulError): void;
  /** The room has ended. */
  forget(room: Room): void;
  /** The room had ended before its join was answered; now the next one of its name may join. */
  freed(): void;
}

interface Membership {
  readonly alias: number;
  readonly info: Joined;
  readonly sinceMs: number;
}

export class Room extends Emitter<RoomEvents> {
  /** The keyed state. */
  readonly values: SharedValues;
  /** The locks. */
  readonly locks: Locks;
  readonly #context: RoomContext;
  readonly #echo: boolean;
  readonly #queue: PublishQueue;
  readonly #backoff: Backoff;
  #state: RoomState = "waiting";
  #connection: Connection | undefined;
  /** Exists from `joined` to the end of that membership. */
  #membership: Membership | undefined;
  #member: number | undefined;
  #position: Position | undefined;
  /** The recovery that is going on, and what it has brought so far. */
  #recovery: { from: Position; events: number; skipped: number } | undefined;
  #watch: Watch;
  #presence: Payload | null;
  /** The value that the server has; undefined where it may have any that was on its way. */
  #presenceTold: Payload | null | undefined = null;
  #presenceAsked: object | undefined;
  #error: RoomfulError | undefined;
  #rejoinTimer: ReturnType<typeof setTimeout> | undefined;
  #resendTimer: ReturnType<typeof setTimeout> | undefined;

  /** @internal Rooms come from `client.join`. */
  constructor(
    /** `namespace:rest` */
    readonly name: string,
    options: JoinOptions,
    context: RoomContext,
  ) {
    super();
    this.#context = context;
    this.#position = options.since;
    this.#echo = options.echo ?? true;
    this.#watch = options.watch ?? "none";
    this.#presence = payloadOrNull(options.presence);
    this.#queue = new PublishQueue(context.budget, context.operations);
    const access: RoomAccess = {
      ask: (frame) => this.#ask(({ alias }) => frame(alias)),
      askNow: (frame) => this.#askNow(({ alias }) => frame(alias)),
      write: (changes) => this.#enqueue({ changes }),
    };
    this.values = new SharedValues(access, options.values);
    this.locks = new Locks(access, options.locks ?? false);
    this.#backoff = new Backoff(context.backoff);
  }

  get state(): RoomState {
    return this.#state;
  }

  /** Where the stream stands; `undefined` before the first `joined`, unless the join brought a position. */
  get position(): Position | undefined {
    return this.#position;
  }

  /** The own member number, from the first `joined` on; it survives a resume. */
  get member(): number | undefined {
    return this.#member;
  }

  /** How many publishes have no answer yet. */
  get pending(): number {
    return this.#queue.length;
  }

  /**
   * Resolves once joined, at once when it is so already.
   * @throws RoomfulError why the room has ended
   */
  async whenJoined(): Promise<Joined> {
    for (;;) {
      if (this.#error) throw this.#error;
      if (this.#membership) return this.#membership.info;
      await new Promise<void>((resolve) => {
        const off = this.on("state", () => {
          off();
          resolve();
        });
      });
    }
  }

  /**
   * Appends to the room's log; resolves once it is stored at the room's durability class. While the connection is away it waits in the queue, and it
   * takes effect once however often it has to be sent.
   * @throws RoomfulError `queue_full`; `closed` when the room is left meanwhile; what the server refuses it with for good. After `op_id_expired` it is
   * unknown whether it took effect.
   */
  async publish(payload: PayloadLike): Promise<Published> {
    return this.#enqueue({ payload: Payload.from(payload) });
  }

  /**
   * Sends something ephemeral to all other members, or to one. On a slow connection a newer signal with the same key replaces an older one.
   * Gives whether it went out: while the room is away, or too much waits to be sent, it is dropped.
   */
  signal(payload: PayloadLike, options: { to?: number; key?: string } = {}): boolean {
    const [connection, membership] = [this.#connection, this.#membership];
    if (!connection || !membership || connection.bufferedBytes > SIGNAL_BUFFER_BYTES_MAX) return false;
    connection.send({ ...this.#signalFrame(membership, payload, options), request: null });
    return true;
  }

  /**
   * As {@link signal}, and waits until the server has taken it.
   * @throws RoomfulError
   */
  async signalAcknowledged(payload: PayloadLike, options: { to?: number; key?: string } = {}): Promise<void> {
    await this.#ask((membership) => this.#signalFrame(membership, payload, options));
  }

  /**
   * Sets the own presence value; null takes it away. It is kept, and set again after every reconnect.
   * @throws RoomfulError
   */
  async setPresence(value: PayloadLike | null): Promise<void> {
    const [wanted, previous] = [payloadOrNull(value), this.#presence];
    this.#checkSize(wanted);
    this.#presence = wanted;
    // A join carries the value too. So this ends when either way has told it, or a later call wants another one.
    while ((await this.whenJoined()) && this.#presence === wanted && this.#presenceTold !== wanted) {
      const request = (this.#presenceAsked = {});
      this.#presenceTold = undefined;
      try {
        await this.#ask(({ alias }) => ({ type: "presence", room: alias, what: { kind: "set", value: wanted } }));
        if (request === this.#presenceAsked) this.#presenceTold = wanted;
      } catch (error) {
        if (error instanceof RoomfulError && error.code === 902) continue;
        if (this.#presence === wanted) this.#presence = previous;
        throw error;
      }
    }
  }

  /**
   * Changes how much of presence is sent.
   * @throws RoomfulError
   */
  async watch(level: Watch): Promise<void> {
    this.#watch = level;
    await this.#ask(({ alias }) => ({ type: "presence", room: alias, what: { kind: "watch", level } }));
  }

  /**
   * All members, by ascending number. With changes coming in meanwhile, a {@link Roster} keeps the picture whole.
   * @throws RoomfulError
   */
  async members(): Promise<Member[]> {
    const members: Member[] = [];
    for (let after: number | null | undefined; after !== null; ) {
      const page: MembersPage = await this.membersPage(after === undefined ? {} : { after });
      members.push(...page.members);
      after = page.next;
    }
    return members;
  }

  /**
   * One page of members.
   * @throws RoomfulError
   */
  async membersPage(options: { after?: number; limit?: number } = {}): Promise<MembersPage> {
    const what = { kind: "get", after: options.after ?? null, limit: options.limit ?? 100 } as const;
    const reply = await this.#ask(({ alias }) => ({ type: "presence", room: alias, what }));
    if (reply.kind !== "members") throw unexpected(reply.kind);
    return { ...reply.page, members: reply.page.members.map(member) };
  }

  /**
   * One page of the log.
   * @throws RoomfulError
   */
  async history(options: HistoryOptions = {}): Promise<HistoryPage> {
    const { before, after, limit = 100 } = options;
    const direction = after ? "forward" : "backward";
    const reply = await this.#ask(({ alias }) => ({ type: "history", room: alias, from: after ?? before ?? null, direction, limit }));
    if (reply.kind !== "history") throw unexpected(reply.kind);
    // A page is of the epoch that the room was joined in: the server ends the membership before it changes.
    const epoch = this.#position?.epoch ?? 0;
    return { events: reply.page.entries.map((entry) => this.#event(epoch, entry, true)), next: reply.page.next };
  }

  /**
   * Leaves. What was published and has no answer is rejected with `closed`; nothing more is emitted.
   * @throws RoomfulError where the server refuses
   */
  async leave(): Promise<void> {
    const [connection, membership] = [this.#connection, this.#membership];
    this.end(RoomfulError.local(903, `the room ${this.name} was left`));
    if (connection && membership) await connection.ask({ type: "leave", room: membership.alias }).catch(unlessLost);
  }

  /**
   * Sets a timer in the place of one of that name: at `dueMs`, in milliseconds since 1970 by the server's clock, every member gets a `timer` event.
   * @throws RoomfulError
   */
  async setTimer(name: string, dueMs: number, payload: PayloadLike): Promise<Published> {
    const sent = Payload.from(payload);
    this.#checkSize(sent);
    return this.#askTimer({ kind: "set", name, dueMs, payload: sent });
  }

  /**
   * Takes a timer away.
   * @throws RoomfulError
   */
  async cancelTimer(name: string): Promise<Published> {
    return this.#askTimer({ kind: "cancel", name });
  }

  /**
   * One page of the timers that are set, by ascending name.
   * @throws RoomfulError
   */
  async timersPage(options: { after?: string; limit?: number } = {}): Promise<{ timers: Timer[]; next: string | null }> {
    const what = { kind: "get", after: options.after ?? null, limit: options.limit ?? 100 } as const;
    const reply = await this.#ask(({ alias }) => ({ type: "timer", room: alias, what }));
    if (reply.kind !== "timers") throw unexpected(reply.kind);
    const { timers, next } = reply.page;
    return { timers: timers.map(({ payload: raw, ...timer }) => ({ ...timer, payload: raw.value, raw })), next };
  }

  /**
   * How far this user has read and been delivered to, over all of the user's connections, and how much of others is unread.
   * @throws RoomfulError
   */
  async cursors(): Promise<Cursors> {
    return this.#askCursors({ kind: "get" });
  }

  /**
   * Moves this user's cursors forward, and gives where they stand then.
   * @throws RoomfulError
   */
  async setCursors(to: { read?: Position; delivered?: Position }): Promise<Cursors> {
    return this.#askCursors({ kind: "set", read: to.read ?? null, delivered: to.delivered ?? null });
  }

  /** @internal Joins on a new connection, before its welcome. */
  join(connection: Connection): void {
    clearTimeout(this.#rejoinTimer);
    this.#connection = connection;
    // A join without a value leaves the one that is there.
    if (this.#presence) this.#presenceTold = this.#presence;
    const { operations, joining } = this.#context;
    const frame: RequestFrame = {
      type: "join",
      room: this.name,
      since: this.#position ?? null,
      producer: { producer: operations.producer, next: operations.next },
      echo: this.#echo,
      watch: this.#watch,
      presence: this.#presence,
      state: this.values.joining(),
      locks: this.locks.joining(),
    };
    joining.add(this.name);
    connection.request(frame, {
      resolve: (reply) => {
        joining.delete(this.name);
        this.#joined(connection, reply);
      },
      reject: (error) => {
        joining.delete(this.name);
        this.#joinFailed(connection, error);
      },
    });
    this.#become("joining");
  }

  /** @internal The alias by which frames of this room are known on the present connection. */
  get alias(): number | undefined {
    return this.#membership?.alias;
  }

  /** @internal A frame of this room arrived. */
  receive(frame: RoomFrame): void {
    switch (frame.type) {
      case "event":
        return this.#received(frame.entry);
      case "state": {
        const own = frame.op?.producer === this.#context.operations.producer;
        return this.#follow(frame.offset, (position) => this.values.changed(position, frame, own));
      }
      case "lock":
        return this.#follow(frame.offset, (position) => this.locks.changed(position, frame));
      case "timer":
        return this.#follow(frame.offset, (position) => {
          const { timeMs, user, name, what, dueMs, payload: raw } = frame;
          this.emit("timer", { position, timeMs, user, name, what, dueMs, payload: raw?.value, raw });
        });
      case "advance":
        return this.#advanced(frame.offset);
      case "caught_up":
        return this.#caughtUp(frame.offset);
      case "signal":
        return this.emit("signal", { ...content(frame.payload), from: frame.from, user: frame.user, key: frame.key });
      case "presence":
        return this.emit("presence", {
          revision: frame.revision,
          occupancy: frame.occupancy,
          changes: frame.changes.map((change) => ({ ...member(change), kind: change.kind })),
        });
      case "left":
        return this.#membershipEnded(RoomfulError.fromFrame(frame));
    }
  }

  /** @internal The connection is gone; the client will bring another one. */
  disconnected(): void {
    clearTimeout(this.#rejoinTimer);
    this.#connection = undefined;
    this.#suspend();
  }

  /** @internal The room is over. */
  end(error: RoomfulError): void {
    if (this.#error) return;
    this.#error = error;
    this.disconnected();
    this.#context.forget(this);
    this.#queue.rejectAll(error);
    this.locks.end(error);
    this.#become("left");
  }

  #joined(connection: Connection, reply: ReplyFrame): void {
    if (reply.type !== "joined") return this.#context.abandon(connection, unexpected(reply.type));
    if (connection !== this.#connection) {
      // Left while the join was on its way.
      void connection.ask({ type: "leave", room: reply.room }).catch(() => {});
      return this.#context.freed();
    }
    const { request: _, room: alias, type: __, state, locks, ...info } = reply;
    const previous = this.#position;
    if (previous && info.recovery !== "reset" && comparePositions(previous, info.position) !== 0) {
      return this.#broken(`joined at ${formatPosition(info.position)} instead of ${formatPosition(previous)}`);
    }
    this.#membership = { alias, info, sinceMs: performance.now() };
    this.#member = info.member;
    this.#context.routes.set(alias, this);
    this.#position = info.position;
    this.#recovery = info.recovery === "recovering" ? { from: info.position, events: 0, skipped: 0 } : undefined;
    this.#become(this.#recovery ? "recovering" : "live");
    this.emit("joined", info);
    if (info.recovery === "reset") this.emit("reset", { position: info.position, previous: previous ?? info.position });
    this.values.joined(state);
    this.locks.joined(locks, info.member);
    if (info.recovery === "live" && previous) this.emit("caughtUp", { from: previous, position: info.position, events: 0, skipped: 0 });
    this.#flush();
  }

  #joinFailed(connection: Connection, error: RoomfulError): void {
    if (error.code === 902) return;
    if (error.code === 901) return this.#context.abandon(connection, error);
    if (connection !== this.#connection) return this.#context.freed();
    this.#membershipEnded(error);
  }

  /** Everything between two events is accounted for, or the connection is not to be trusted any more. */
  #received(entry: Entry): void {
    this.#follow(entry.offset, ({ epoch }) => this.emit("event", this.#event(epoch, entry, this.#recovery !== undefined)));
  }

  /** An entry of the log in its place, or none. */
  #follow(offset: number, show: (position: Position) => void): void {
    const position = this.#position!;
    if (offset !== position.offset + 1) return this.#broken(`entry ${offset} came after ${formatPosition(position)}`);
    this.#position = { epoch: position.epoch, offset };
    if (this.#recovery) this.#recovery.events += 1;
    show(this.#position);
  }

  #advanced(offset: number): void {
    const position = this.#position!;
    if (offset <= position.offset) return this.#broken(`advance to ${offset} came after ${formatPosition(position)}`);
    this.#position = { epoch: position.epoch, offset };
    if (this.#recovery) this.#recovery.skipped += offset - position.offset;
    this.emit("advance", this.#position);
  }

  #caughtUp(offset: number): void {
    const [position, recovery] = [this.#position!, this.#recovery];
    if (!recovery || offset !== position.offset) return this.#broken(`caught_up at ${offset} came at ${formatPosition(position)}`);
    this.#recovery = undefined;
    this.#become("live");
    this.emit("caughtUp", { ...recovery, position });
  }

  #broken(what: string): void {
    if (this.#connection) this.#context.abandon(this.#connection, RoomfulError.local(904, `${this.name}: ${what}`));
  }

  /** The membership ended on a living connection: for good, or to begin again. */
  #membershipEnded(error: RoomfulError): void {
    const connection = this.#connection;
    const rejoining = error.retry !== "never" && connection !== undefined;
    if (rejoining) {
      this.#suspend();
      const waitMs = error.retry === "now" ? this.#backoff.nextAfterFirst() : this.#backoff.next(error.afterMs);
      this.#rejoinTimer = setTimeout(() => this.join(connection), waitMs);
    } else {
      this.end(error);
    }
    this.emit("left", { error, rejoining });
  }

  /** Between two memberships. */
  #suspend(): void {
    if (this.#membership) {
      this.#backoff.worked(performance.now() - this.#membership.sinceMs);
      this.#context.routes.delete(this.#membership.alias);
    }
    clearTimeout(this.#resendTimer);
    this.#resendTimer = undefined;
    this.#membership = undefined;
    this.#recovery = undefined;
    this.#queue.interrupt();
    this.values.interrupted();
    this.locks.interrupted();
    if (!this.#error) this.#become("waiting");
  }

  async #enqueue(operation: Operation): Promise<Published> {
    if (this.#error) throw this.#error;
    const queued = this.#queue.add(operation);
    this.#flush();
    return queued;
  }

  /** Sends what waits, in order. */
  #flush(): void {
    const [connection, membership] = [this.#connection, this.#membership];
    if (!connection || !membership || this.#resendTimer !== undefined) return;
    for (let queued = this.#queue.next(); queued; queued = this.#queue.next()) {
      const tooLarge = payloads(queued.operation).map((payload) => this.#tooLarge(payload)).find((error) => error);
      if (tooLarge) this.#queue.reject(queued, tooLarge);
      else this.#send(connection, membership, queued);
    }
  }

  #send(connection: Connection, membership: Membership, queued: QueuedPublish & { op: OpId }): void {
    const { attempt, operation, op } = queued;
    const room = membership.alias;
    const frame: RequestFrame =
      "payload" in operation
        ? { type: "publish", room, op, payload: operation.payload }
        : { type: "state", room, what: { kind: "write", op, changes: operation.changes } };
    connection.request(frame, {
      resolve: (reply) => this.#publishAnswered(connection, queued, reply),
      // An error for a sending that has been given up says nothing about the one that replaced it.
      reject: (error) => queued.attempt === attempt && this.#publishFailed(connection, queued, error),
    });
  }

  #publishAnswered(connection: Connection, queued: QueuedPublish, frame: ReplyFrame): void {
    if (frame.type !== "ok" || frame.reply.kind !== "published") return this.#context.abandon(connection, unexpected(frame.type));
    this.#queue.resolve(queued, frame.reply.published);
    this.#flush();
  }

  #publishFailed(connection: Connection, queued: QueuedPublish, error: RoomfulError): void {
    if (error.code === 902) return;
    if (error.code === 901) return this.#context.abandon(connection, error);
    if (error.retry === "never") {
      this.#queue.reject(queued, error);
      return this.#flush();
    }
    this.#queue.putBack(queued);
    this.#resendLater(error);
  }

  /** The server was too busy, or its storage failed: with that the membership ends as a rule, and the next one sends it again. Where not, this does. */
  #resendLater(error: RoomfulError): void {
    if (this.#resendTimer !== undefined) return;
    const waitMs = error.retry === "now" ? this.#backoff.nextAfterFirst() : this.#backoff.next(error.afterMs);
    this.#resendTimer = setTimeout(() => {
      this.#resendTimer = undefined;
      this.#flush();
    }, waitMs);
  }

  /** Sends a request of a joined room, when it is joined. */
  async #ask(frame: (membership: Membership) => RequestFrame): Promise<Reply> {
    await this.#joinedInTime();
    const asked = this.#askNow(frame);
    if (!asked) throw this.#away();
    return asked;
  }

  /** Sends a request of a room that is joined; undefined where it isn't. An error that outlives its membership says as little as a loss. */
  #askNow(frame: (membership: Membership) => RequestFrame): Promise<Reply> | undefined {
    const [connection, membership] = [this.#connection, this.#membership];
    if (!connection || !membership) return undefined;
    return new Promise((resolve, reject) =>
      connection.request(frame(membership), {
        resolve: (reply) => (reply.type === "ok" ? resolve(reply.reply) : reject(unexpected(reply.type))),
        reject: (error) => reject(membership === this.#membership ? error : this.#away()),
      }),
    );
  }

  #away(): RoomfulError {
    return RoomfulError.local(902, `the room ${this.name} is away`);
  }

  async #askTimer(what: ClientFrameOf<"timer">["what"]): Promise<Published> {
    const reply = await this.#ask(({ alias }) => ({ type: "timer", room: alias, what }));
    if (reply.kind !== "published") throw unexpected(reply.kind);
    return reply.published;
  }

  async #askCursors(what: ClientFrameOf<"cursor">["what"]): Promise<Cursors> {
    const reply = await this.#ask(({ alias }) => ({ type: "cursor", room: alias, what }));
    if (reply.kind !== "cursors") throw unexpected(reply.kind);
    return reply.cursors;
  }

  async #joinedInTime(): Promise<void> {
    if (this.#membership) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const timeout = new Promise<never>((_, reject) => {
      const error = RoomfulError.local(901, `the room ${this.name} did not come back within ${this.#context.requestTimeoutMs} ms`);
      timer = setTimeout(() => reject(error), this.#context.requestTimeoutMs);
    });
    await Promise.race([this.whenJoined(), timeout]).finally(() => clearTimeout(timer));
  }

  #signalFrame(membership: Membership, payload: PayloadLike, options: { to?: number; key?: string }) {
    const sent = Payload.from(payload);
    this.#checkSize(sent);
    return { type: "signal", room: membership.alias, to: options.to ?? null, key: options.key ?? null, payload: sent } as const;
  }

  #checkSize(payload: Payload | null): void {
    const tooLarge = payload && this.#tooLarge(payload);
    if (tooLarge) throw tooLarge;
  }

  /** The server closes for good on a message beyond its limit, so such a payload never leaves. */
  #tooLarge(payload: Payload): RoomfulError | undefined {
    const max = this.#context.limits()?.payloadBytesMax ?? Infinity;
    if (payload.bytes.length <= max) return undefined;
    return RoomfulError.local(104, `the payload is ${payload.bytes.length} bytes long; at most ${max} are allowed`);
  }

  #event(epoch: number, entry: Entry, recovered: boolean): RoomEvent {
    const { offset, timeMs, kind, user, op } = entry;
    const own = op?.producer === this.#context.operations.producer;
    return { ...content(entry.payload), position: { epoch, offset }, timeMs, kind, user, op, own, recovered };
  }

  #become(state: RoomState): void {
    if (this.#state === state) return;
    this.#state = state;
    this.emit("state", state);
  }
}

/** The frames that name a room by its alias. */
export type RoomFrame = ServerFrameOf<"event" | "advance" | "caught_up" | "signal" | "presence" | "left" | "state" | "lock" | "timer">;

function content(raw: Payload): Content {
  return { payload: raw.value, format: raw.format, raw };
}

function member({ member, user, value }: { member: number; user: string; value: Payload | null }): Member {
  return { member, user, value: value?.value, raw: value };
}

function payloadOrNull(value: PayloadLike | null | undefined): Payload | null {
  return value === null || value === undefined ? null : Payload.from(value);
}

function unlessLost(error: unknown): void {
  if (!(error instanceof RoomfulError) || error.code !== 902) throw error;
}

/** Signals are dropped here already while more than this waits in the socket: later ones will be worth more. */
const SIGNAL_BUFFER_BYTES_MAX = 64 * 1024;
