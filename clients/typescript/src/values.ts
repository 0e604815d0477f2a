// The keyed state of a room: a copy of what is watched, kept over reconnects, and writes with conditions.

import { Emitter } from "./emitter.js";
import { RoomfulError } from "./errors.js";
import type { Change as ChangeFrame, Published, ServerFrameOf, StatePageFrame } from "./frames.js";
import type { RoomAccess } from "./keyed.js";
import { RETRY_MS, unexpected } from "./keyed.js";
import { Payload, type PayloadLike } from "./payload.js";
import type { Position } from "./position.js";
import { Replica } from "./replica.js";
import { Watched } from "./watched.js";

/** A key with its version and its value, decoded by its format. */
export interface Value {
  readonly key: string;
  /** Where it was changed last. */
  readonly version: Position;
  /** Undefined where the key has none. */
  readonly value: unknown;
  /** The same with its bytes; null where the key has none. */
  readonly raw: Payload | null;
}

/** What has to be so for a change to be made. */
export interface Conditions {
  /** The key's version, as it was seen. */
  readonly ifVersion?: Position;
  /** That the key has no value. */
  readonly ifAbsent?: boolean;
  /** That this is the lock's newest grant. */
  readonly ifFence?: { readonly lock: string; readonly fence: Position };
}

/** What to do with one key: give it a value, merge a JSON patch into it (RFC 7396), or take it away. */
export type Change = Conditions & { readonly key: string } & (
    | { readonly put: PayloadLike }
    | { readonly patch: PayloadLike }
    | { readonly delete: true }
  );

/** An entry of the log that changed keys which are watched. */
export interface ValuesChange {
  readonly position: Position;
  readonly timeMs: number;
  readonly user: string;
  /** Whether this client wrote it. */
  readonly own: boolean;
  /** What became of them; one without a value was deleted. */
  readonly changes: readonly Value[];
}

export type SharedValuesEvents = {
  /** Watched keys changed, live or by a recovery. */
  change: ValuesChange;
  /** The copy is whole: at first, and again after it was made anew. */
  ready: readonly Value[];
  /** What was known is void, after a reset or when other keys are watched; `ready` follows. */
  reset: undefined;
  /** A page of the copy, or a watch that was to follow a join, was refused for good; it stays without it. */
  error: RoomfulError;
};

/** The keyed state of a room. What is watched is copied here; `get` and `all` read that copy. */
export class SharedValues extends Emitter<SharedValuesEvents> {
  readonly #room: RoomAccess;
  readonly #replica = new Replica<Value>();
  readonly #watched: Watched<readonly string[] | null>;
  #begun = false;
  /** Pages still to be read: how their keys begin, and after which. */
  #pages: { prefix: string; after: string | null }[] = [];
  #reading: object | undefined;
  /** Undefined until there was one: taking it back has to be said too. */
  #onDisconnect: ChangeFrame[] | undefined;

  /** @internal It comes with its room. */
  constructor(room: RoomAccess, prefixes: readonly string[] | undefined) {
    super();
    this.#room = room;
    this.#watched = new Watched(prefixes ?? null, {
      ask: (prefixes) => room.askNow((room) => ({ type: "state", room, what: { kind: "watch", prefixes: prefixes && [...prefixes] } })),
      renew: (isJoined) => {
        this.#begin(null);
        if (isJoined) void this.#read();
        else this.#begun = false;
      },
      again: () => this.#insist(),
    });
  }

  /** @internal What a join says of it. */
  joining(): string[] | null {
    const prefixes = this.#watched.joining();
    return prefixes && [...prefixes];
  }

  /** Whether every watched key is known. */
  get complete(): boolean {
    return this.#replica.complete;
  }

  /** A watched key, as far as this client knows; undefined where it has no value. */
  get(key: string): Value | undefined {
    return this.#replica.get(key);
  }

  /** All watched keys with a value, ascending. */
  all(): Value[] {
    return this.#replica.values();
  }

  /**
   * Makes changes, all of them or none; resolves once they are stored. Like `publish` it waits for the connection and takes effect once.
   * @throws RoomfulError `conflict`, with what is there in `current`; `stale_fence`; `fence_required`; `quota_exceeded`; and what `publish` throws
   */
  async write(changes: readonly Change[]): Promise<Published> {
    return this.#room.write(changes.map(changeFrame));
  }

  /** Gives a key a value. Throws as {@link write}. */
  put(key: string, value: PayloadLike, conditions: Conditions = {}): Promise<Published> {
    return this.write([{ ...conditions, key, put: value }]);
  }

  /** Merges a JSON patch into a key's value (RFC 7396). Throws as {@link write}. */
  patch(key: string, patch: PayloadLike, conditions: Conditions = {}): Promise<Published> {
    return this.write([{ ...conditions, key, patch }]);
  }

  /** Takes a key's value away. Throws as {@link write}. */
  delete(key: string, conditions: Conditions = {}): Promise<Published> {
    return this.write([{ ...conditions, key, delete: true }]);
  }

  /**
   * Leaves a write with the server for when this member is gone, in the place of the one before; none takes it away. It is left again after every
   * reconnect.
   * @throws RoomfulError
   */
  async onDisconnect(changes: readonly Change[]): Promise<void> {
    this.#onDisconnect = changes.map(changeFrame);
    await this.#leaveWrite(this.#onDisconnect);
  }

  /**
   * Changes what is watched: keys that begin with one of these, of which the empty one is every key's; null: nothing. The copy is made anew.
   * @throws RoomfulError
   */
  async watch(prefixes: readonly string[] | null): Promise<void> {
    await this.#watched.say(prefixes, () => false);
  }

  /**
   * One page of values from the server, watched or not.
   * @throws RoomfulError
   */
  async page(options: { prefix?: string; after?: string | null; limit?: number } = {}): Promise<{ position: Position; items: Value[]; next: string | null }> {
    const { prefix = "", after = null, limit = 1_000 } = options;
    const reply = await this.#room.ask((room) => ({ type: "state", room, what: { kind: "get", prefix, after, limit } }));
    if (reply.kind !== "state") throw unexpected(reply.kind);
    return { ...reply.page, items: reply.page.items.map(({ key, version, value }) => item(key, version, value)) };
  }

  /** @internal The room was joined; a page begins the copy, and without one it goes on. */
  joined(page: StatePageFrame | null): void {
    if (this.#onDisconnect) void this.#leaveWrite(this.#onDisconnect).catch((error: RoomfulError) => this.emit("error", error));
    // Changed while the join was on its way, whose page is of what it said.
    if (this.#watched.isLate) return this.#insist();
    if (!this.#watched.value) return;
    if (page || !this.#begun) this.#begin(page);
    void this.#read();
  }

  /** @internal The membership is over. */
  interrupted(): void {
    this.#reading = undefined;
    this.#watched.interrupted();
  }

  /** @internal An entry of the log. */
  changed(position: Position, frame: ServerFrameOf<"state">, own: boolean): void {
    const prefixes = this.#watched.value ?? [];
    const watched = frame.changes.filter(({ key }) => prefixes.some((prefix) => key.startsWith(prefix)));
    const changes = watched.map(({ key, value }) => item(key, position, value));
    const taken = changes.filter((change) => this.#replica.take(change.key, position, change.raw ? change : undefined));
    if (taken.length > 0) this.emit("change", { position, timeMs: frame.timeMs, user: frame.user, own, changes: taken });
  }

  /** As {@link watch}, for those who were told that it will be said. */
  #insist(): void {
    this.#watched.say(this.#watched.value, () => true).catch((error: RoomfulError) => error.retry === "never" && this.emit("error", error));
  }

  async #leaveWrite(changes: ChangeFrame[]): Promise<void> {
    const what = { kind: "on_disconnect", changes } as const;
    await this.#room.askNow((room) => ({ type: "state", room, what }))?.catch(unlessLost);
  }

  /** Throws the copy away, and notes what is to be read for the new one. */
  #begin(first: StatePageFrame | null): void {
    const again = this.#begun;
    this.#reading = undefined;
    this.#replica.clear();
    this.#begun = true;
    this.#pages = first?.next === null ? [] : (this.#watched.value ?? []).map((prefix) => ({ prefix, after: first?.next ?? null }));
    for (const { key, version, value } of first?.items ?? []) this.#replica.take(key, version, item(key, version, value));
    if (again) this.emit("reset", undefined);
  }

  /** Reads what is still missing, page by page. A membership that ends leaves the rest to the next one. */
  async #read(): Promise<void> {
    const reading = {};
    this.#reading = reading;
    for (let next = this.#pages[0]; next; next = this.#pages[0]) {
      try {
        const page = await this.page(next);
        if (reading !== this.#reading) return;
        for (const value of page.items) this.#replica.take(value.key, value.version, value);
        if (page.next === null) this.#pages.shift();
        else next.after = page.next;
      } catch (error) {
        if (reading !== this.#reading || !(error instanceof RoomfulError) || error.code === 902) return;
        if (error.retry === "never") {
          this.#pages.shift();
          this.emit("error", error);
        } else {
          await new Promise((resolve) => setTimeout(resolve, error.afterMs ?? RETRY_MS));
          if (reading !== this.#reading) return;
        }
      }
    }
    if (this.#replica.complete) return;
    this.#replica.finish();
    this.emit("ready", this.all());
  }
}

/** @internal */
export function item(key: string, version: Position, raw: Payload | null): Value {
  return { key, version, value: raw?.value, raw };
}

function changeFrame(change: Change): ChangeFrame {
  const [action, value] = "put" in change ? (["put", change.put] as const) : "patch" in change ? (["patch", change.patch] as const) : (["delete", null] as const);
  return {
    key: change.key,
    action,
    value: action === "delete" ? null : Payload.from(value),
    ifVersion: change.ifVersion ?? null,
    ifAbsent: change.ifAbsent ?? false,
    ifFence: change.ifFence ?? null,
  };
}

function unlessLost(error: unknown): void {
  if (!(error instanceof RoomfulError) || error.code !== 902) throw error;
}
