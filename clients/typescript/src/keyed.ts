// What the parts of a room need of it: a way to ask, and nothing of its connections.

import type { RequestFrame } from "./connection.js";
import { RoomfulError } from "./errors.js";
import type { Change, Published, Reply } from "./frames.js";

/** A room, for its parts. */
export interface RoomAccess {
  /** Sends a request when the room is joined. */
  ask(frame: (alias: number) => RequestFrame): Promise<Reply>;
  /** Sends a request in the present membership; undefined where there is none. */
  askNow(frame: (alias: number) => RequestFrame): Promise<Reply> | undefined;
  /** Writes under an op id, in the order of the publishes. */
  write(changes: Change[]): Promise<Published>;
}

export function unexpected(what: string): RoomfulError {
  return RoomfulError.local(904, `the server answered with ${what}, which is no answer to this request`);
}

/** When to ask again what the server had no time for, where it doesn't say. */
export const RETRY_MS = 1_000;
