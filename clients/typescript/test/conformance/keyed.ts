// The steps about state, locks, timers and cursors.

import assert from "node:assert/strict";

import { formatPosition, parsePosition, RoomfulError, type Change, type Position, type Room, type Value } from "../../src/index.js";
import type { CaseClient } from "./client.js";
import { payloadOf, plainPayload, type PlainPayload } from "./payload.js";
import type { Fields } from "./script.js";

type Action = (fields: Fields, client: CaseClient) => Promise<void>;

export const DO_KEYED: Record<string, Action> = {
  async write(fields, client) {
    const { values } = room(fields, client);
    const writes = fields.repeated<PlainChange[]>("changes", fields.optional<number>("count") ?? 1);
    try {
      const written = await Promise.all(writes.map((plain) => values.write(plain.map(change))));
      fields.save(formatPosition(written[written.length - 1]!.position));
    } catch (error) {
      if (error instanceof RoomfulError && error.name === "conflict") fields.check("current", error.current.map(plainValue));
      throw error;
    }
  },
  async on_disconnect(fields, client) {
    await room(fields, client).values.onDisconnect(fields.required<PlainChange[]>("changes").map(change));
  },
  async watch_state(fields, client) {
    await room(fields, client).values.watch(fields.required<string[] | null>("prefixes"));
  },
  async acquire(fields, client) {
    const options = { ttlMs: fields.optional<number>("ttl_ms") ?? 30_000, wait: fields.optional<boolean>("queue") ?? false };
    const wait = fields.optional<boolean>("wait") ?? true;
    const [{ locks }, lock] = [room(fields, client), fields.required<string>("lock")];
    if (!wait) return client.waitsFor(locks.acquire(lock, { ...options, wait: true }));
    fields.save(formatPosition(await locks.acquire(lock, options)));
  },
  async release(fields, client) {
    await room(fields, client).locks.release(fields.required("lock"));
  },
  async set_timer(fields, client) {
    // The server's clock too, since both run on one machine.
    const dueMs = Date.now() + (fields.optional<number>("in_ms") ?? 0);
    const set = await room(fields, client).setTimer(fields.required("name"), dueMs, payloadOf(fields.required("payload")));
    fields.save(formatPosition(set.position));
  },
  async cancel_timer(fields, client) {
    const cancelled = await room(fields, client).cancelTimer(fields.required("name"));
    fields.save(formatPosition(cancelled.position));
  },
  async cursors(fields, client) {
    const [read, delivered] = [fields.position("read"), fields.position("delivered")];
    const to = { ...(read && { read }), ...(delivered && { delivered }) };
    const cursors = await (read || delivered ? room(fields, client).setCursors(to) : room(fields, client).cursors());
    fields.check("unread", cursors.unread);
    fields.check("at", [cursors.read, cursors.delivered].map((at) => at && formatPosition(at)));
  },
};

export const EXPECT_KEYED: Record<string, Action> = {
  async state(fields, client) {
    const { values } = room(fields, client);
    const wanted = fields.required<PlainValue[]>("items");
    const matches = () => {
      const shown = values.all().map(plainValue);
      const same = ({ key, value, version }: PlainValue, index: number) =>
        isSame([key, value], [shown[index]?.key, shown[index]?.value]) && (version === undefined || version === shown[index]?.version);
      return values.complete && shown.length === wanted.length && wanted.every(same);
    };
    await until(matches);
  },
  async lock(fields, client) {
    const { locks } = room(fields, client);
    const lock = fields.required<string>("lock");
    const wanted = [fields.required("held"), fields.optional("queue") ?? []];
    await until(() => {
      const shown = locks.get(lock);
      return isSame([shown?.held?.user ?? null, (shown?.queue ?? []).map(({ user }) => user)], wanted);
    });
  },
  async granted(fields, client) {
    fields.optional("room");
    fields.save(formatPosition(await client.takeWaiting()));
  },
};

interface PlainValue {
  readonly key: string;
  readonly value: PlainPayload | null;
  readonly version?: string;
}

function plainValue({ key, version, raw }: Value): PlainValue {
  return { key, value: raw && plainPayload(raw), version: formatPosition(version) };
}

function room(fields: Fields, client: CaseClient): Room {
  return client.room(fields.required("room")).room;
}

interface PlainChange {
  readonly key: string;
  readonly put?: PlainPayload | null;
  readonly patch?: PlainPayload;
  readonly if_version?: string;
  readonly if_absent?: boolean;
  readonly if_fence?: { readonly lock: string; readonly fence: string };
}

function change({ key, put, patch, if_version, if_absent: ifAbsent = false, if_fence, ...others }: PlainChange): Change {
  assert.deepEqual(others, {}, "a change has no such fields");
  const conditions = {
    key,
    ifAbsent,
    ...(if_version !== undefined && { ifVersion: position(if_version) }),
    ...(if_fence && { ifFence: { lock: if_fence.lock, fence: position(if_fence.fence) } }),
  };
  if (patch) return { ...conditions, patch: payloadOf(patch) };
  assert.notEqual(put, undefined, "a change has put or patch");
  return put ? { ...conditions, put: payloadOf(put) } : { ...conditions, delete: true };
}

function position(text: string): Position {
  const position = parsePosition(text);
  assert.ok(position, `${text} is no position`);
  return position;
}

function isSame(a: unknown, b: unknown): boolean {
  try {
    assert.deepStrictEqual(a, b);
    return true;
  } catch {
    return false;
  }
}

/** Waits until it is so; the step's deadline ends it. */
async function until(condition: () => boolean): Promise<void> {
  const give = performance.now() + 60_000;
  while (!condition() && performance.now() < give) await new Promise((resolve) => setTimeout(resolve, 5));
}
