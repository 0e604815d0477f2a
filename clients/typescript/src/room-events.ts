// What goes into a room and what comes out of it, as the application sees it.

import type { RoomfulError } from "./errors.js";
import type { Durability, Entry, OpId, Recovery, Watch } from "./frames.js";
import type { Payload, PayloadFormat, PayloadLike } from "./payload.js";
import type { Position } from "./position.js";

/** How to join. */
export interface JoinOptions {
  /** The last position that is known already; everything after it follows. Default: from now on. */
  readonly since?: Position;
  /** The own presence value. Default none. */
  readonly presence?: PayloadLike;
  /** How much of presence to be sent: nothing, the count, or every change. Default `none`. */
  readonly watch?: Watch;
  /** Whether the own events come back as events. Default true. */
  readonly echo?: boolean;
  /** How the keys begin of the state that is to be watched and copied to {@link Room.values}; `[""]` for all. Default: nothing. */
  readonly values?: readonly string[];
  /** Whether all locks are to be watched and copied to {@link Room.locks}. Default false. */
  readonly locks?: boolean;
}

/** Where a room stands: `waiting` for a connection or for its turn to join again, or one step further. `left` is final. */
export type RoomState = "waiting" | "joining" | "recovering" | "live" | "left";

/** What `joined` said. */
export interface Joined {
  /** Where the stream goes on: events follow from the offset after it. */
  readonly position: Position;
  /** The newest position at that moment. */
  readonly head: Position;
  /** What became of the position that the join brought. */
  readonly recovery: Recovery;
  /** What an answer to `publish` means here. */
  readonly durability: Durability;
  /** The own member number. */
  readonly member: number;
  /** The revision of presence that `occupancy` is of. */
  readonly revision: number;
  /** How many members there are, this one included. */
  readonly occupancy: number;
}

/** Content from another client, decoded by its format. */
export interface Content {
  /** A string for `text`, a value for `json` and `msgpack`, a `Uint8Array` for `binary`. */
  readonly payload: unknown;
  readonly format: PayloadFormat;
  /** The same with its bytes as they were sent. */
  readonly raw: Payload;
}

/** An entry of the room's log. */
export interface RoomEvent extends Content {
  readonly position: Position;
  /** The server's time, in milliseconds since 1970. */
  readonly timeMs: number;
  readonly kind: Entry["kind"];
  /** Whose it is, as the server knows it. */
  readonly user: string;
  readonly op: OpId | null;
  /** Whether this client published it. */
  readonly own: boolean;
  /** Whether it came late, with a recovery or from history. */
  readonly recovered: boolean;
}

/** A timer was set, taken away, or fired. */
export interface TimerEvent {
  readonly position: Position;
  /** The server's time, in milliseconds since 1970. */
  readonly timeMs: number;
  /** Who did it; of one that fired, who had set it. */
  readonly user: string;
  readonly name: string;
  readonly what: "set" | "cancelled" | "fired";
  /** When it fires or was to fire, in milliseconds since 1970 by the server's clock. */
  readonly dueMs: number;
  /** What it brings, decoded by its format; undefined where it was taken away. */
  readonly payload: unknown;
  readonly raw: Payload | null;
}

/** A timer that is set. */
export type Timer = Pick<TimerEvent, "name" | "dueMs" | "user" | "payload"> & { readonly raw: Payload };

/** Something ephemeral from another member. */
export interface Signal extends Content {
  /** The sender's member number. */
  readonly from: number;
  readonly user: string;
  readonly key: string | null;
}

/** A member. */
export interface Member {
  readonly member: number;
  readonly user: string;
  /** Its presence value, decoded by its format; `undefined` when it has none. */
  readonly value: unknown;
  /** The same with its bytes; null when it has none. */
  readonly raw: Payload | null;
}

/** Who came, changed and went. */
export interface PresenceChanges {
  /** Grows; a page of members with this revision or a higher one knows these changes. */
  readonly revision: number;
  readonly occupancy: number;
  readonly changes: readonly (Member & { readonly kind: "present" | "gone" })[];
}

/** A page of members, by ascending number. */
export interface MembersPage {
  readonly revision: number;
  readonly occupancy: number;
  readonly members: readonly Member[];
  /** What to pass as `after` for the next page; null after the last. */
  readonly next: number | null;
}

/** A page of the log, in ascending order. */
export interface HistoryPage {
  readonly events: readonly RoomEvent[];
  /** Where the next page in the same direction starts; null when there is no more. */
  readonly next: Position | null;
}

/** Which page of the log to read. */
export interface HistoryOptions {
  /** Entries before this position, the newest of them. Default: the newest of all. */
  readonly before?: Position;
  /** Entries after this position, the oldest of them; 0 as offset for the first. */
  readonly after?: Position;
  /** At most so many, from 1. Default 100. */
  readonly limit?: number;
}

/** What a recovery brought. */
export interface CaughtUp {
  /** Where it began. */
  readonly from: Position;
  /** Where the stream stands now. */
  readonly position: Position;
  /** How many events came. */
  readonly events: number;
  /** How many offsets in between are not for this client. */
  readonly skipped: number;
}

export type RoomEvents = {
  /** Joined, for the first time or again. */
  joined: Joined;
  /** An entry of the log, in order, without a gap and without a repetition. */
  event: RoomEvent;
  /** The position moved without an event: over entries that are not for this client. */
  advance: Position;
  /** After a join with a position: everything that was missed has come, or nothing was. */
  caughtUp: CaughtUp;
  /** What is held from before is void; the stream goes on from `position`, and `history` has what comes before it. */
  reset: { readonly position: Position; readonly previous: Position };
  /** A timer was set, taken away, or fired; every member is told. */
  timer: TimerEvent;
  signal: Signal;
  presence: PresenceChanges;
  /** The server ended the membership, or refused to begin it. With `rejoining` the room comes back by itself. */
  left: { readonly error: RoomfulError; readonly rejoining: boolean };
  state: RoomState;
};
