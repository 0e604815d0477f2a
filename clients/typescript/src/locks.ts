// The locks of a room: who holds them, and those that this client holds or waits for, which it renews and asks for again after every reconnect.
//
// A lock counts as held until its lease ends by this side's own clock, counted from when the request that got it was sent, so that this client never
// believes longer than the server. What a lock guards is made safe by its fence alone.

import { Emitter } from "./emitter.js";
import { errorCode, RoomfulError } from "./errors.js";
import type { LocksPageFrame, ServerFrameOf } from "./frames.js";
import { unexpected, type RoomAccess } from "./keyed.js";
import { comparePositions, type Position } from "./position.js";
import { Replica } from "./replica.js";

/** A lock as it stands. */
export interface Lock {
  readonly lock: string;
  /** Who holds it; null: nobody. `untilMs` is the server's time as of the last entry; renewals are not told. */
  readonly held: { readonly fence: number; readonly member: number; readonly user: string; readonly untilMs: number } | null;
  /** Who waits, the next one first. */
  readonly queue: readonly { readonly member: number; readonly user: string }[];
}

/** What happened to a lock. */
export interface LockChange extends Lock {
  readonly position: Position;
  readonly timeMs: number;
  readonly why: ServerFrameOf<"lock">["why"];
}

export type LocksEvents = {
  /** A lock changed hands, or somebody came to wait for it; for those who watch locks. */
  change: LockChange;
  /** All locks are known: at first, and again after a reset. */
  ready: readonly Lock[];
  /** This client holds a lock from now on. */
  granted: { readonly lock: string; readonly fence: Position };
  /** This client holds a lock no longer, without having released it. */
  lost: { readonly lock: string; readonly fence: Position };
  /** A page of locks was refused for good. */
  error: RoomfulError;
};

/** A lock that is asked for. */
interface Wanted {
  readonly ttlMs: number;
  readonly wait: boolean;
  /** When it was asked for last. */
  sentMs: number;
  /** Whether the server said that it waits. */
  queued: boolean;
  readonly granted: Promise<Position>;
  readonly resolve: (fence: Position) => void;
  readonly reject: (error: RoomfulError) => void;
}

/** A lock that is held. */
interface Held {
  readonly fence: Position;
  readonly ttlMs: number;
  endsMs: number;
  timer: ReturnType<typeof setTimeout> | undefined;
}

/** The locks of a room. */
export class Locks extends Emitter<LocksEvents> {
  readonly #room: RoomAccess;
  readonly #replica = new Replica<Lock>();
  readonly #wanted = new Map<string, Wanted>();
  readonly #held = new Map<string, Held>();
  /** Given up while there was no way to say so. */
  readonly #givenUp = new Set<string>();
  #watching: boolean;
  #begun = false;
  #after: string | null = null;
  #reading: object | undefined;
  #member: number | undefined;

  /** @internal It comes with its room. */
  constructor(room: RoomAccess, watching: boolean) {
    super();
    this.#room = room;
    this.#watching = watching;
  }

  /** Whether locks are watched: asked for with the join or {@link watch}, or because this client waits for one. */
  get watching(): boolean {
    return this.#watching;
  }

  /** Who holds a lock and who waits for it; undefined where nobody does. For those who watch locks. */
  get(lock: string): Lock | undefined {
    return this.#replica.get(lock);
  }

  /** All locks that are held, by ascending name. */
  all(): Lock[] {
    return this.#replica.values();
  }

  /** The fence by which this client holds a lock, for `ifFence`; undefined where it doesn't. */
  fence(lock: string): Position | undefined {
    return this.#held.get(lock)?.fence;
  }

  /**
   * Takes a lock, or waits in its queue (without `wait`: `lock_taken`), and gives its fence. It is renewed until it is released or lost; `ttlMs`
   * (default 30 s) is how long it outlives this client.
   * @throws RoomfulError `lock_taken`; `closed` when it is released or the room left meanwhile; what the server refuses it with
   */
  async acquire(lock: string, options: { ttlMs?: number; wait?: boolean } = {}): Promise<Position> {
    const held = this.#held.get(lock);
    if (held) return held.fence;
    const { ttlMs = 30_000, wait = true } = options;
    const before = this.#wanted.get(lock);
    if (before && (before.wait || !wait)) return before.granted;
    this.#givenUp.delete(lock);
    const wanted: Wanted = { ttlMs, wait, sentMs: performance.now(), queued: false, ...withResolvers<Position>() };
    this.#wanted.set(lock, wanted);
    if (before) wanted.granted.then(before.resolve, before.reject);
    if (wait && !this.#watching) this.watch(true).catch((error: RoomfulError) => this.emit("error", error));
    this.#request(lock, wanted);
    return wanted.granted;
  }

  /**
   * Gives a lock back, or stops waiting for it. While the room is away, the next membership says it.
   * @throws RoomfulError `lock_not_held` where the server has ended it before
   */
  async release(lock: string): Promise<void> {
    this.#letGo(lock);
    this.#take(lock)?.reject(RoomfulError.local(903, `${lock} was released while it was waited for`));
    const asked = this.#room.askNow((room) => ({ type: "lock", room, what: { kind: "release", lock } }));
    if (!asked) {
      this.#givenUp.add(lock);
      return;
    }
    await asked.catch((error: unknown) => {
      if (!(error instanceof RoomfulError) || error.code !== 902) throw error;
      this.#givenUp.add(lock);
    });
  }

  /**
   * Changes whether all locks are watched.
   * @throws RoomfulError
   */
  async watch(locks: boolean): Promise<void> {
    const before = this.#watching;
    this.#watching = locks;
    this.#begin(null);
    const asked = this.#room.askNow((room) => ({ type: "lock", room, what: { kind: "watch", locks } }));
    // Without a membership, the next join says it.
    if (!asked) {
      this.#begun = false;
      return;
    }
    if (locks) void this.#read();
    await asked.catch((error: unknown) => {
      if (error instanceof RoomfulError && error.code === 902) return;
      // The server goes on as before; the next join must not ask for what it refuses.
      this.#watching = before;
      throw error;
    });
  }

  /** @internal The room was joined: everything is asked for again, and what the server still knows of, it confirms. */
  joined(page: LocksPageFrame | null, member: number): void {
    this.#member = member;
    if (this.#watching) {
      if (page || !this.#begun) this.#begin(page);
      void this.#read();
    }
    for (const lock of this.#givenUp) this.#giveUp(lock);
    this.#givenUp.clear();
    for (const [lock, held] of this.#held) this.#renew(lock, held);
    for (const [lock, wanted] of this.#wanted) this.#request(lock, wanted);
  }

  /** @internal The membership is over. */
  interrupted(): void {
    this.#reading = undefined;
  }

  /** @internal The room is over. */
  end(error: RoomfulError): void {
    this.interrupted();
    for (const lock of [...this.#held.keys()]) this.#letGo(lock);
    for (const lock of [...this.#wanted.keys()]) this.#take(lock)?.reject(error);
  }

  /** @internal An entry of the log. */
  changed(position: Position, frame: ServerFrameOf<"lock">): void {
    const { lock, why, held, queue, timeMs } = frame;
    if (this.#watching && this.#replica.take(lock, position, held || queue.length > 0 ? { lock, held, queue } : undefined)) {
      this.emit("change", { position, timeMs, lock, why, held, queue });
    }
    const own = held?.member === this.#member ? held?.fence : undefined;
    const mine = this.#held.get(lock);
    if (mine) {
      if (comparePositions(mine.fence, position) < 0 && own !== mine.fence.offset) this.#lose(lock);
    } else if (own !== undefined) {
      const { queued = false, sentMs = 0 } = this.#wanted.get(lock) ?? {};
      this.#grant(lock, { epoch: position.epoch, offset: own }, queued ? performance.now() : sentMs);
      const granted = this.#held.get(lock);
      // How long after its turn came it was told, this side does not know.
      if (granted && queued) this.#renew(lock, granted);
    }
  }

  #request(lock: string, wanted: Wanted): void {
    const { ttlMs, wait: queue } = wanted;
    const sentMs = (wanted.sentMs = performance.now());
    const asked = this.#room.askNow((room) => ({ type: "lock", room, what: { kind: "acquire", lock, ttlMs, queue } }));
    asked?.then(
      (reply) => {
        if (reply.kind !== "lock") this.#take(lock)?.reject(unexpected(reply.kind));
        else if (reply.lock.kind === "granted") this.#grant(lock, reply.lock.fence, sentMs);
        else wanted.queued = true;
      },
      // After a loss the next membership asks again.
      (error: RoomfulError) => error.code !== 902 && this.#wanted.get(lock) === wanted && this.#take(lock)?.reject(error),
    );
  }

  #grant(lock: string, fence: Position, sinceMs: number): void {
    const wanted = this.#take(lock);
    if (!wanted) return;
    const held: Held = { fence, ttlMs: wanted.ttlMs, endsMs: sinceMs + wanted.ttlMs, timer: undefined };
    this.#held.set(lock, held);
    this.#schedule(lock, held);
    wanted.resolve(fence);
    this.emit("granted", { lock, fence });
  }

  /** Until the next renewal, or the end of the lease where that comes first. */
  #schedule(lock: string, held: Held): void {
    clearTimeout(held.timer);
    const leftMs = held.endsMs - performance.now();
    held.timer = setTimeout(() => this.#due(lock, held), Math.max(0, Math.min(held.ttlMs / 3, leftMs)));
  }

  #due(lock: string, held: Held): void {
    if (performance.now() < held.endsMs) return this.#renew(lock, held);
    this.#lose(lock);
    this.#giveUp(lock);
  }

  #renew(lock: string, held: Held): void {
    const { fence, ttlMs } = held;
    const sentMs = performance.now();
    this.#schedule(lock, held);
    const asked = this.#room.askNow((room) => ({ type: "lock", room, what: { kind: "renew", lock, fence, ttlMs } }));
    asked?.then(
      () => {
        held.endsMs = Math.max(held.endsMs, sentMs + ttlMs);
        if (this.#held.get(lock) === held) this.#schedule(lock, held);
      },
      (error: RoomfulError) => {
        const over = error.code === errorCode.lock_not_held || error.code === errorCode.stale_fence;
        if (over && this.#held.get(lock) === held) this.#lose(lock);
      },
    );
  }

  #lose(lock: string): void {
    const held = this.#letGo(lock);
    if (held) this.emit("lost", { lock, fence: held.fence });
  }

  #giveUp(lock: string): void {
    const asked = this.#room.askNow((room) => ({ type: "lock", room, what: { kind: "release", lock } }));
    // Most often the server has ended it too, and says so.
    if (asked) asked.catch(() => {});
    else this.#givenUp.add(lock);
  }

  #letGo(lock: string): Held | undefined {
    const held = this.#held.get(lock);
    clearTimeout(held?.timer);
    this.#held.delete(lock);
    return held;
  }

  #take(lock: string): Wanted | undefined {
    const wanted = this.#wanted.get(lock);
    this.#wanted.delete(lock);
    return wanted;
  }

  #begin(first: LocksPageFrame | null): void {
    this.#reading = undefined;
    this.#replica.clear();
    this.#begun = true;
    this.#after = null;
    if (first) this.#takePage(first);
  }

  /** A lock has no version of its own: a page tells of it as of the page's position. */
  #takePage({ position, locks, next }: LocksPageFrame): void {
    for (const lock of locks) this.#replica.take(lock.lock, position, lock);
    this.#after = next;
    if (next !== null) return;
    this.#replica.finish();
    this.emit("ready", this.all());
  }

  /** Reads what is still missing, page by page. A membership that ends leaves the rest to the next one. */
  async #read(): Promise<void> {
    const reading = {};
    this.#reading = reading;
    while (!this.#replica.complete) {
      const what = { kind: "get", after: this.#after, limit: 1_000 } as const;
      try {
        const reply = await this.#room.ask((room) => ({ type: "lock", room, what }));
        if (reading !== this.#reading) return;
        if (reply.kind !== "locks") throw unexpected(reply.kind);
        this.#takePage(reply.page);
      } catch (error) {
        if (reading !== this.#reading || !(error instanceof RoomfulError) || error.code === 902) return;
        if (error.retry === "never") return this.emit("error", error);
        await new Promise((resolve) => setTimeout(resolve, error.afterMs ?? PAGE_RETRY_MS));
        if (reading !== this.#reading) return;
      }
    }
  }
}

function withResolvers<T>(): { granted: Promise<T>; resolve: (value: T) => void; reject: (error: RoomfulError) => void } {
  let resolve!: (value: T) => void;
  let reject!: (error: RoomfulError) => void;
  const granted = new Promise<T>((...functions) => ([resolve, reject] = functions));
  return { granted, resolve, reject };
}

/** When to ask again for a page that the server had no time for. */
const PAGE_RETRY_MS = 1_000;
