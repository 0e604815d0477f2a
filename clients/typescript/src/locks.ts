// The locks of a room: who holds them, and those that this client holds or waits for, which it renews and asks for again after every reconnect.
//
// A lock counts as held until its lease ends by this side's own clock, counted from when the request that got it was sent, so that this client never
// believes longer than the server. What a lock guards is made safe by its fence alone.
//
// An answer counts for the claim that asked, which has one request on its way at a time. What the room shows of a lock that is waited for gives no
// fence, since it may be older than the claim or come instead of what it hides; it makes the claim ask again.

import { Emitter } from "./emitter.js";
import { errorCode, RoomfulError } from "./errors.js";
import type { LocksPageFrame, ServerFrameOf } from "./frames.js";
import { RETRY_MS, unexpected, type RoomAccess } from "./keyed.js";
import { comparePositions, type Position } from "./position.js";
import { Replica } from "./replica.js";
import { Watched } from "./watched.js";

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
  /** A page of locks, or watching them, was refused for good. */
  error: RoomfulError;
};

/** A lock that is asked for. */
interface Wanted {
  readonly ttlMs: number;
  wait: boolean;
  /** The request on its way, or soon to be sent again; `again` where the room has shown something since that the answer may not know. */
  asked: { again: boolean } | undefined;
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
  readonly #watched: Watched<boolean>;
  /** Not to be watched any more as soon as nobody waits. */
  #unwatching = false;
  #begun = false;
  #after: string | null = null;
  #reading: object | undefined;
  #member: number | undefined;

  /** @internal It comes with its room. */
  constructor(room: RoomAccess, watching: boolean) {
    super();
    this.#room = room;
    this.#watched = new Watched(watching, {
      ask: (locks) => room.askNow((room) => ({ type: "lock", room, what: { kind: "watch", locks } })),
      renew: (isJoined) => this.#renewCopy(isJoined),
      again: () => {
        this.#insist();
        // What was granted meanwhile was not told.
        for (const [lock, wanted] of this.#waiting()) this.#request(lock, wanted);
      },
    });
  }

  /** @internal What a join says of it. */
  joining(): boolean {
    return this.#watched.joining();
  }

  /** Whether locks are watched: asked for with the join or {@link watch}, or because this client waits for one. */
  get watching(): boolean {
    return this.#watched.value;
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
    if (before) {
      // Where the answer on its way is that somebody else has it, it is asked for again, to wait.
      before.wait ||= wait;
      return before.granted;
    }
    this.#givenUp.delete(lock);
    const wanted: Wanted = { ttlMs, wait, asked: undefined, ...withResolvers<Position>() };
    this.#wanted.set(lock, wanted);
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
      // A claim made since then asks again, and gets what there is.
      if (!this.#isClaimed(lock)) this.#giveUp(lock);
    });
  }

  /**
   * Changes whether all locks are watched. As long as this client waits for one, they are: it has to hear of its grant.
   * @throws RoomfulError
   */
  async watch(locks: boolean): Promise<void> {
    const isReliedOn = () => this.#waiting().length > 0;
    this.#unwatching = !locks && isReliedOn();
    if (!this.#unwatching) await this.#say(locks, () => locks && isReliedOn());
  }

  /** @internal The room was joined: everything is asked for again, and what the server still knows of, it confirms. */
  joined(page: LocksPageFrame | null, member: number): void {
    this.#member = member;
    // Changed while the join was on its way, whose page is of what it said.
    if (this.#watched.isLate) this.#insist();
    else if (this.watching) {
      if (page || !this.#begun) this.#begin(page);
      void this.#read();
    }
    for (const lock of this.#givenUp) this.#giveUp(lock);
    this.#givenUp.clear();
    for (const [lock, held] of this.#held) this.#renew(lock, held);
    for (const [lock, wanted] of this.#wanted) {
      // What the last membership asked gets no answer that counts.
      wanted.asked = undefined;
      this.#request(lock, wanted);
    }
  }

  /** @internal The membership is over. */
  interrupted(): void {
    this.#reading = undefined;
    this.#watched.interrupted();
  }

  /** @internal The room is over. */
  end(error: RoomfulError): void {
    this.interrupted();
    this.#unwatching = false;
    for (const lock of [...this.#held.keys()]) this.#letGo(lock);
    for (const lock of [...this.#wanted.keys()]) this.#take(lock)?.reject(error);
  }

  /** @internal An entry of the log. */
  changed(position: Position, frame: ServerFrameOf<"lock">): void {
    const { lock, why, held, queue, timeMs } = frame;
    if (this.watching && this.#replica.take(lock, position, held || queue.length > 0 ? { lock, held, queue } : undefined)) {
      this.emit("change", { position, timeMs, lock, why, held, queue });
    }
    const own = held?.member === this.#member ? held?.fence : undefined;
    const mine = this.#held.get(lock);
    const wanted = this.#wanted.get(lock);
    if (mine) {
      if (comparePositions(mine.fence, position) < 0 && own !== mine.fence.offset) this.#lose(lock);
    } else if (wanted?.wait && !queue.some(({ member }) => member === this.#member)) {
      // Its turn has come; or it came and went while this client lagged, and nobody will tell of it.
      this.#request(lock, wanted);
    }
  }

  /** Asks for a lock: once more after the answer, if one is on its way. */
  #request(lock: string, wanted: Wanted): void {
    if (wanted.asked) {
      wanted.asked.again = true;
      return;
    }
    const { ttlMs, wait: queue } = wanted;
    // Whoever waits has to hear of its grant.
    if (queue && !this.watching) this.#insist(true);
    const sentMs = performance.now();
    const request = { again: false };
    const answer = this.#room.askNow((room) => ({ type: "lock", room, what: { kind: "acquire", lock, ttlMs, queue } }));
    if (!answer) return;
    wanted.asked = request;
    const counts = () => this.#wanted.get(lock) === wanted && wanted.asked === request;
    const askAgain = () => {
      wanted.asked = undefined;
      this.#request(lock, wanted);
    };
    answer.then(
      (reply) => {
        const outcome = reply.kind === "lock" ? reply.lock : undefined;
        // A grant that nobody wants any more is given back.
        if (!counts()) return outcome?.kind === "granted" && !this.#isClaimed(lock) && this.#giveUp(lock);
        if (!outcome) return this.#fail(lock, unexpected(reply.kind));
        if (outcome.kind === "granted") return this.#grant(lock, outcome.fence, sentMs);
        if (request.again) askAgain();
        else wanted.asked = undefined;
      },
      (error: RoomfulError) => {
        // After a loss the next membership asks again.
        if (error.code === 902 || !counts()) return;
        const taken = error.code === errorCode.lock_taken;
        // Somebody has come to wait for it since it was asked for.
        if (taken && wanted.wait) askAgain();
        else if (taken || error.code === 901 || error.retry === "never") this.#fail(lock, error);
        else setTimeout(() => counts() && askAgain(), error.afterMs ?? RETRY_MS);
      },
    );
  }

  /** Nobody will get this lock: whoever waits is told, and so is the server, which may keep a place for it. */
  #fail(lock: string, error: RoomfulError): void {
    this.#take(lock)?.reject(error);
    if (error.code !== errorCode.lock_taken) this.#giveUp(lock);
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
    if (this.#unwatching && this.#waiting().length === 0) {
      this.#unwatching = false;
      this.#insist(false);
    }
    return wanted;
  }

  /** Says whether locks are watched. Whoever would never be told of a grant waits no longer. */
  async #say(locks: boolean, isReliedOn: () => boolean): Promise<void> {
    try {
      await this.#watched.say(locks, isReliedOn);
    } catch (error) {
      if (error instanceof RoomfulError && error.retry === "never" && !this.watching) {
        for (const [lock] of this.#waiting()) this.#fail(lock, error);
      }
      throw error;
    }
  }

  /** As {@link watch}, for those who wait or were told that it will be said. */
  #insist(locks = this.watching): void {
    this.#say(locks, () => true).catch((error: RoomfulError) => error.retry === "never" && this.emit("error", error));
  }

  #isClaimed(lock: string): boolean {
    return this.#held.has(lock) || this.#wanted.has(lock);
  }

  #waiting(): [string, Wanted][] {
    return [...this.#wanted].filter(([, { wait }]) => wait);
  }

  #renewCopy(isJoined: boolean): void {
    this.#begin(null);
    if (!isJoined) this.#begun = false;
    else if (this.watching) void this.#read();
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
        await new Promise((resolve) => setTimeout(resolve, error.afterMs ?? RETRY_MS));
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
