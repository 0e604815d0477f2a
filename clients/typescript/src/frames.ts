// The frames, each with its number, its name and its fields in wire order; reading, writing and the types follow from that.

import { boolean, integer, list, nullable, oneOf, payload, record, text, withDefault } from "./wire.js";
import { array, DecodeError, readFields, writeFields, type Encoding, type Fields, type Infer, type Type, type Values } from "./wire.js";

/** A frame's place on the wire. */
export interface FrameType<N extends string = string, F extends Fields = Fields> {
  readonly code: number;
  readonly name: N;
  readonly fields: F;
}

/** A frame of a type: its name as `type`, and its fields. */
export type FrameOf<X> = X extends FrameType<infer N, infer F> ? { type: N } & Values<F> : never;

function frame<const N extends string, F extends Fields>(code: number, name: N, fields: F): FrameType<N, F> {
  return { code, name, fields };
}

export const position = record({ epoch: integer, offset: integer });
export const opId = record({ producer: integer, sequence: integer });
export const watch = oneOf("none", "occupancy", "members");
export const direction = oneOf("forward", "backward");
export const retry = oneOf("never", "now", "after_ms", "refresh");

const limits = record({ messageBytesMax: integer, payloadBytesMax: integer, roomsMax: integer, requestsMax: integer });

const entry = record({
  offset: integer,
  timeMs: integer,
  kind: oneOf("publish", "state", "lock", "timer", "system"),
  user: text,
  op: nullable(opId),
  payload,
});

const memberInfo = record({ member: integer, user: text, value: nullable(payload) });

const presenceChange = record({ member: integer, kind: oneOf("present", "gone"), user: text, value: nullable(payload) });

const change = record({
  key: text,
  action: oneOf("put", "patch", "delete"),
  value: withDefault(nullable(payload), null),
  ifVersion: withDefault(nullable(position), null),
  ifAbsent: withDefault(boolean, false),
  ifFence: withDefault(nullable(record({ lock: text, fence: position })), null),
});

const stateItem = record({ key: text, version: position, value: nullable(payload) });

const statePage = record({ position, items: list(stateItem), next: nullable(text) });

const holder = record({ fence: integer, member: integer, user: text, untilMs: integer });

const waiter = record({ member: integer, user: text });

const locksPage = record({
  position,
  locks: list(record({ lock: text, held: nullable(holder), queue: list(waiter) })),
  next: nullable(text),
});

const timersPage = record({
  position,
  timers: list(record({ name: text, dueMs: integer, user: text, payload })),
  next: nullable(text),
});

const cursors = record({ read: nullable(position), delivered: nullable(position), unread: integer });

/** A type whose first element says which fields follow. */
function tagged<const V extends Record<string, Fields>>(variants: V): Type<{ [K in keyof V & string]: { kind: K } & Values<V[K]> }[keyof V & string]> {
  const kinds = oneOf(...Object.keys(variants));
  return {
    write: (value, encoding) => [kinds.write(value.kind, encoding), ...writeFields(variants[value.kind]!, value as Values<Fields>, encoding)],
    read: (wire, encoding) => {
      const elements = array(wire);
      const kind = kinds.read(elements[0], encoding);
      return { kind, ...readFields(variants[kind]!, elements, 1, encoding) } as never;
    },
  };
}

const presenceRequest = tagged({
  get: { after: withDefault(nullable(integer), null), limit: withDefault(integer, 100) },
  set: { value: withDefault(nullable(payload), null) },
  watch: { level: watch },
});

const page = { after: withDefault(nullable(text), null), limit: withDefault(integer, 100) };

const stateRequest = tagged({
  write: { op: nullable(opId), changes: list(change) },
  on_disconnect: { changes: list(change) },
  get: { prefix: text, ...page },
  watch: { prefixes: withDefault(nullable(list(text)), null) },
});

const lockRequest = tagged({
  acquire: { lock: text, ttlMs: integer, queue: withDefault(boolean, false) },
  renew: { lock: text, fence: position, ttlMs: integer },
  release: { lock: text },
  get: page,
  watch: { locks: boolean },
});

const timerRequest = tagged({
  set: { name: text, dueMs: integer, payload },
  cancel: { name: text },
  get: page,
});

const cursorRequest = tagged({
  set: { read: withDefault(nullable(position), null), delivered: withDefault(nullable(position), null) },
  get: {},
});

const reply = tagged({
  done: {},
  published: { published: record({ position, timeMs: integer, duplicate: boolean }) },
  members: {
    page: record({ revision: integer, occupancy: integer, members: list(memberInfo), next: nullable(integer) }),
  },
  history: { page: record({ entries: list(entry), next: nullable(position) }) },
  refreshed: { expiresMs: integer },
  state: { page: statePage },
  lock: {
    lock: tagged({
      granted: { fence: position, untilMs: integer },
      queued: { place: integer },
    }),
  },
  locks: { page: locksPage },
  timers: { page: timersPage },
  cursors: { cursors },
});

const request = integer;
const room = integer;

const plainClientFrames = [
  frame(1, "hello", {
    request,
    token: withDefault(nullable(text), null),
    resume: withDefault(nullable(text), null),
    agent: withDefault(nullable(text), null),
  }),
  frame(2, "join", {
    request,
    room: text,
    since: withDefault(nullable(position), null),
    producer: withDefault(nullable(record({ producer: integer, next: integer })), null),
    echo: withDefault(boolean, true),
    watch: withDefault(watch, "none"),
    presence: withDefault(nullable(payload), null),
    state: withDefault(nullable(list(text)), null),
    locks: withDefault(boolean, false),
  }),
  frame(3, "leave", { request, room }),
  frame(4, "publish", { request, room, op: nullable(opId), payload }),
  frame(5, "signal", { request: nullable(request), room, to: nullable(integer), key: nullable(text), payload }),
  frame(6, "presence", { request, room, what: presenceRequest }),
  frame(7, "history", {
    request,
    room,
    from: withDefault(nullable(position), null),
    direction: withDefault(direction, "backward"),
    limit: withDefault(integer, 100),
  }),
  frame(8, "refresh", { request, token: text }),
  frame(9, "ping", { request }),
  frame(11, "state", { request, room, what: stateRequest }),
  frame(12, "lock", { request, room, what: lockRequest }),
  frame(13, "timer", { request, room, what: timerRequest }),
  frame(14, "cursor", { request, room, what: cursorRequest }),
] as const;

const plainServerFrames = [
  frame(32, "welcome", {
    request,
    session: text,
    resumed: boolean,
    user: text,
    resume: text,
    heartbeatMs: integer,
    timeMs: integer,
    expiresMs: nullable(integer),
    limits,
  }),
  frame(33, "joined", {
    request,
    room,
    member: integer,
    position,
    head: position,
    recovery: oneOf("live", "recovering", "reset"),
    durability: oneOf("memory", "local", "replicated"),
    revision: integer,
    occupancy: integer,
    state: withDefault(nullable(statePage), null),
    locks: withDefault(nullable(locksPage), null),
  }),
  frame(34, "event", { room, entry }),
  frame(35, "advance", { room, offset: integer }),
  frame(36, "signal", { room, from: integer, user: text, key: nullable(text), payload }),
  frame(37, "presence", { room, revision: integer, occupancy: integer, changes: list(presenceChange) }),
  frame(38, "ok", { request, reply }),
  frame(39, "error", {
    request: nullable(request),
    code: integer,
    text,
    retry,
    afterMs: withDefault(nullable(integer), null),
    current: withDefault(list(stateItem), []),
  }),
  frame(40, "caught_up", { room, offset: integer }),
  frame(41, "left", { room, code: integer, text, retry, afterMs: withDefault(nullable(integer), null) }),
  frame(42, "token_expiring", { expiresMs: integer }),
  frame(43, "goaway", { reconnectAfterMs: integer, resume: text }),
  frame(44, "pong", { request, timeMs: integer }),
  frame(46, "state", {
    room,
    offset: integer,
    timeMs: integer,
    user: text,
    op: nullable(opId),
    changes: list(record({ key: text, value: nullable(payload) })),
  }),
  frame(47, "lock", {
    room,
    offset: integer,
    timeMs: integer,
    lock: text,
    why: oneOf("granted", "queued", "released", "expired", "left"),
    held: nullable(holder),
    queue: list(waiter),
  }),
  frame(48, "timer", {
    room,
    offset: integer,
    timeMs: integer,
    user: text,
    name: text,
    what: oneOf("set", "cancelled", "fired"),
    dueMs: integer,
    payload: nullable(payload),
  }),
] as const;

type PlainClientFrame = FrameOf<(typeof plainClientFrames)[number]>;
type PlainServerFrame = FrameOf<(typeof plainServerFrames)[number]>;

/** A frame from a client. */
export type ClientFrame = PlainClientFrame | { type: "batch"; frames: PlainClientFrame[] };
/** A frame from the server. */
export type ServerFrame = PlainServerFrame | { type: "batch"; frames: PlainServerFrame[] };

/** The frame of a direction by its name. */
export type ClientFrameOf<N extends ClientFrame["type"]> = Extract<ClientFrame, { type: N }>;
export type ServerFrameOf<N extends ServerFrame["type"]> = Extract<ServerFrame, { type: N }>;

export type Entry = Infer<typeof entry>;
export type OpId = Infer<typeof opId>;
export type Watch = Infer<typeof watch>;
export type Retry = Infer<typeof retry>;
export type Limits = Infer<typeof limits>;
export type Reply = Infer<typeof reply>;
export type Change = Infer<typeof change>;
export type StateItem = Infer<typeof stateItem>;
export type StatePageFrame = Infer<typeof statePage>;
export type LocksPageFrame = Infer<typeof locksPage>;
export type Cursors = Infer<typeof cursors>;
export type Published = Extract<Reply, { kind: "published" }>["published"];
export type Recovery = ServerFrameOf<"joined">["recovery"];
export type Durability = ServerFrameOf<"joined">["durability"];

/** A direction's closed list of frames. */
export interface Direction<F> {
  write(frame: F, encoding: Encoding): unknown[];
  /**
   * Reads a frame; `undefined` for a type that this version doesn't know.
   * @throws DecodeError
   */
  read(wire: unknown, encoding: Encoding): F | undefined;
}

/** What clients send. */
export const clientFrames: Direction<ClientFrame> = frames(plainClientFrames, 10);
/** What the server sends. */
export const serverFrames: Direction<ServerFrame> = frames(plainServerFrames, 45);

function frames<F extends { type: string }>(types: readonly FrameType[], batchCode: number): Direction<F> {
  const byName = new Map(types.map((type) => [type.name, type]));
  const byCode = new Map(types.map((type) => [type.code, type]));

  function write(frame: F, encoding: Encoding): unknown[] {
    const head = (code: number) => (encoding === "json" ? frame.type : code);
    if (frame.type === "batch") {
      return [head(batchCode), (frame as unknown as { frames: F[] }).frames.map((inner) => write(inner, encoding))];
    }
    const type = byName.get(frame.type);
    if (!type) throw new TypeError(`${frame.type} is no frame of this direction`);
    return [head(type.code), ...writeFields(type.fields, frame as Values<Fields>, encoding)];
  }

  function read(wire: unknown, encoding: Encoding): F | undefined {
    const elements = array(wire);
    if (isBatch(elements[0], encoding)) return readBatch(elements[1], encoding);
    return readPlain(elements, encoding);
  }

  function isBatch(head: unknown, encoding: Encoding): boolean {
    return head === (encoding === "json" ? "batch" : batchCode);
  }

  function readPlain(elements: readonly unknown[], encoding: Encoding): F | undefined {
    const head = elements[0];
    if (typeof head !== (encoding === "json" ? "string" : "number")) throw new DecodeError("a frame's type was expected");
    const type = encoding === "json" ? byName.get(head as string) : byCode.get(head as number);
    if (!type) return undefined;
    return { type: type.name, ...readFields(type.fields, elements, 1, encoding) } as unknown as F;
  }

  function readBatch(wire: unknown, encoding: Encoding): F {
    const inner = array(wire).map(array);
    if (inner.length > BATCH_FRAMES_MAX) throw new DecodeError(`a batch holds at most ${BATCH_FRAMES_MAX} frames`);
    if (inner.some(([head]) => isBatch(head, encoding))) throw new DecodeError("a batch inside a batch");
    const read = inner.map((elements) => readPlain(elements, encoding));
    return { type: "batch", frames: read.filter((frame) => frame !== undefined) } as unknown as F;
  }

  return { write, read };
}

/** Most frames in one `batch`. */
export const BATCH_FRAMES_MAX = 256;
