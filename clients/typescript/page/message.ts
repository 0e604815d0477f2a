// A chat message: what this page publishes, and what it makes of anything that somebody published.

import type { Json, RoomEvent } from "../src/index.js";
import { personOf, type Person } from "./person.js";

export interface Message {
  /** What the sender calls it; by it the sender finds the message that it shows already. */
  readonly id: string | undefined;
  readonly by: Person;
  readonly user: string;
  readonly text: string;
  readonly timeMs: number;
}

/** What is published for a message. */
export function publication(id: string, by: Person, text: string): Json {
  return { id, name: by.name, hue: by.hue, text };
}

/** Any client may publish anything into a room: what is no message of this page is shown as what it is. */
export function messageOf(event: RoomEvent): Message {
  const { payload, user, timeMs } = event;
  const { id, text } = (typeof payload === "object" && payload !== null ? payload : {}) as { id?: unknown; text?: unknown };
  return {
    id: typeof id === "string" ? id : undefined,
    by: personOf(payload, user),
    user,
    text: typeof text === "string" ? text.slice(0, TEXT_LENGTH_MAX) : foreign(event),
    timeMs,
  };
}

function foreign({ payload, format, raw }: RoomEvent): string {
  if (typeof payload === "string") return payload.slice(0, TEXT_LENGTH_MAX);
  if (format === "json") return JSON.stringify(payload).slice(0, TEXT_LENGTH_MAX);
  return `${raw.bytes.length} bytes of ${format}`;
}

const TEXT_LENGTH_MAX = 8_000;
