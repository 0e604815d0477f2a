// The publishes of one room that have no answer yet, in their order: those on their way, and those that wait for the room to come back.

import { RoomfulError } from "./errors.js";
import type { Change, OpId, Published } from "./frames.js";
import type { Payload } from "./payload.js";

/** Bounds of the publishes without an answer, over all rooms of a client. */
export interface QueueMax {
  /** How many. Default 1,000. */
  readonly count?: number;
  /** Their payloads' bytes. Default 4 MiB. */
  readonly bytes?: number;
}

/** Counts what the rooms of a client hold together. */
export class QueueBudget {
  readonly #countMax: number;
  readonly #bytesMax: number;
  #count = 0;
  #bytes = 0;

  constructor(max: QueueMax = {}) {
    this.#countMax = max.count ?? 1_000;
    this.#bytesMax = max.bytes ?? 4 * 1024 * 1024;
  }

  /** @throws RoomfulError `queue_full` */
  take(bytes: number): void {
    if (this.#count + 1 > this.#countMax || this.#bytes + bytes > this.#bytesMax) {
      throw RoomfulError.local(900, `${this.#count} publishes with ${this.#bytes} bytes have no answer yet; at most ${this.#countMax} with ${this.#bytesMax} bytes may wait`);
    }
    this.#count += 1;
    this.#bytes += bytes;
  }

  give(bytes: number): void {
    this.#count -= 1;
    this.#bytes -= bytes;
  }
}

/** The operations of one producer in one room; it outlives a membership, since a sequence is never used twice. */
export class Operations {
  /** The lowest sequence that was never sent. */
  next = 1;

  constructor(readonly producer: number) {}

  take(): OpId {
    const sequence = this.next;
    this.next += 1;
    return { producer: this.producer, sequence };
  }
}

/** What goes into the log under an op id: a payload, or a write of the keyed state. */
export type Operation = { readonly payload: Payload } | { readonly changes: Change[] };

/** The payloads of an operation. */
export function payloads(operation: Operation): Payload[] {
  if ("payload" in operation) return [operation.payload];
  return operation.changes.flatMap(({ value }) => (value ? [value] : []));
}

/** A publish or write without an answer. */
export interface QueuedPublish {
  readonly operation: Operation;
  readonly bytes: number;
  /** Its operation's id, the same for every sending; none before the first. */
  op: OpId | undefined;
  /** Which sending the awaited answer belongs to; 0 while it isn't on its way. */
  attempt: number;
  readonly resolve: (published: Published) => void;
  readonly reject: (error: RoomfulError) => void;
}

export class PublishQueue {
  readonly #budget: QueueBudget;
  readonly #operations: Operations;
  readonly #queued = new Set<QueuedPublish>();
  #lastAttempt = 0;
  #onTheirWay = 0;
  #onTheirWayMax = ON_THEIR_WAY_MAX;

  constructor(budget: QueueBudget, operations: Operations) {
    this.#budget = budget;
    this.#operations = operations;
  }

  get length(): number {
    return this.#queued.size;
  }

  /** Adds to the end. Rejects with `queue_full` at the bound. */
  add(operation: Operation): Promise<Published> {
    return new Promise((resolve, reject) => {
      const bytes = payloads(operation).reduce((sum, payload) => sum + payload.bytes.length, 0);
      this.#budget.take(bytes);
      this.#queued.add({ operation, bytes, op: undefined, attempt: 0, resolve, reject });
    });
  }

  /** Nothing is on its way any more; everything without an answer will be sent again. */
  interrupt(): void {
    for (const queued of this.#queued) queued.attempt = 0;
    this.#onTheirWay = 0;
  }

  /** The next one to send, with its operation's id; undefined when all are on their way, or as many as may be. */
  next(): (QueuedPublish & { op: OpId }) | undefined {
    if (this.#onTheirWay >= this.#onTheirWayMax) return undefined;
    for (const queued of this.#queued) {
      if (queued.attempt > 0) continue;
      queued.op ??= this.#operations.take();
      this.#lastAttempt += 1;
      this.#onTheirWay += 1;
      queued.attempt = this.#lastAttempt;
      return queued as QueuedPublish & { op: OpId };
    }
    return undefined;
  }

  /** The server took nothing of it for now. It goes one by one for a while, so that what was published first is stored first. */
  putBack(queued: QueuedPublish): void {
    queued.attempt = 0;
    this.#onTheirWay -= 1;
    this.#onTheirWayMax = 1;
  }

  resolve(queued: QueuedPublish, published: Published): void {
    if (!this.#remove(queued)) return;
    this.#onTheirWayMax = Math.min(ON_THEIR_WAY_MAX, this.#onTheirWayMax + 1);
    queued.resolve(published);
  }

  reject(queued: QueuedPublish, error: RoomfulError): void {
    if (this.#remove(queued)) queued.reject(error);
  }

  /** Gives up on everything. */
  rejectAll(error: RoomfulError): void {
    for (const queued of [...this.#queued]) this.reject(queued, error);
  }

  #remove(queued: QueuedPublish): boolean {
    const removed = this.#queued.delete(queued);
    if (removed) this.#budget.give(queued.bytes);
    if (removed && queued.attempt > 0) this.#onTheirWay -= 1;
    return removed;
  }
}

/**
 * So many publishes of a room may be without an answer at a time. The server keeps the results of the last 128 by default: with no more on their way, none
 * of those that have to be sent again is below them.
 */
const ON_THEIR_WAY_MAX = 64;
