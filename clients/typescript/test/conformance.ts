// Runs the cases that all clients share (clients/conformance) over this client, against the server at ROOMFUL_URL.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { describe, test } from "node:test";

import { CaseClient, type Lane, type LaneItem, type LaneRoom } from "./conformance/client.js";
import { DO_KEYED, EXPECT_KEYED } from "./conformance/keyed.js";
import { payloadOf, plainPayload, type PlainPayload } from "./conformance/payload.js";
import { DEADLINE_MS, within } from "./conformance/wait.js";
import { Fields, Variables, type Step } from "./conformance/script.js";
import { formatPosition, RoomfulError, type Position } from "../src/index.js";

interface Case {
  readonly name: string;
  readonly about: string;
  readonly steps: readonly Step[];
}

const url = process.env["ROOMFUL_URL"];
if (url === undefined) {
  console.error("ROOMFUL_URL is not set. Start a server without keys, and pass its address: ROOMFUL_URL=ws://127.0.0.1:7400/v1/ws npm run conformance");
  process.exit(2);
}

const cases = new URL("../../../conformance/cases/", import.meta.url);
const files = readdirSync(cases).filter((file) => file.endsWith(".json")).sort();
assert.ok(files.length > 0, `no cases in ${cases.pathname}`);

describe("conformance", { concurrency: 8 }, () => {
  for (const file of files) {
    const script = JSON.parse(readFileSync(new URL(file, cases), "utf8")) as Case;
    test(`${script.name}: ${script.about}`, () => new Run(script).run(file));
  }
});

/** One case on its way. */
class Run {
  readonly #script: Case;
  readonly #clients = new Map<string, CaseClient>();
  readonly #variables: Variables;

  constructor(script: Case) {
    this.#script = script;
    this.#variables = new Variables((client) => this.#client(client));
  }

  async run(file: string): Promise<void> {
    assert.equal(`${this.#script.name}.json`, file, "the case is not named as its file");
    try {
      for (const [index, step] of this.#script.steps.entries()) await this.#step(index, step);
    } finally {
      await Promise.all([...this.#clients.values()].map((client) => client.client.close()));
    }
  }

  async #step(index: number, step: Step): Promise<void> {
    const fields = new Fields(step, this.#variables);
    try {
      await this.#act(fields);
      fields.finish();
    } catch (error) {
      const reason = error instanceof Error ? error : new Error(String(error));
      throw new Error(`step ${index + 1} ${JSON.stringify(step)}: ${reason.message}`, { cause: reason });
    }
  }

  async #act(fields: Fields): Promise<void> {
    const action = fields.optional<string>("do");
    const expectation = fields.optional<string>("expect");
    const withinMs = fields.optional<number>("within_ms") ?? DEADLINE_MS;
    const run = action === undefined ? EXPECT[expectation ?? ""] : DO[action];
    if (!run) throw new Error("no such step");
    if (action === "same" || action === "pause") return run(fields, undefined as never, withinMs);
    const name = fields.required<string>("client");
    if (action === "connect") this.#clients.set(name, new CaseClient(url!, fields.optional("encoding") ?? "msgpack"));
    const client = this.#client(name);
    const wanted = fields.optional<number>("error");
    if (expectation === "left") fields.give("error", wanted);
    else if (wanted !== undefined) return refused(within(run(fields, client, withinMs), withinMs, "the step"), wanted);
    await within(run(fields, client, withinMs), withinMs, "the step");
  }

  #client(name: string): CaseClient {
    const client = this.#clients.get(name);
    if (!client) throw new Error(`there is no client ${name}`);
    return client;
  }
}

type Action = (fields: Fields, client: CaseClient, withinMs: number) => Promise<void>;

const DO: Record<string, Action> = {
  ...DO_KEYED,
  async connect(_, client) {
    await client.client.connect();
  },
  async join(fields, client) {
    const presence = fields.optional<PlainPayload>("presence");
    const since = fields.position("since");
    const state = fields.optional<string[]>("state");
    const joined = await client.join(fields.required("room"), {
      ...(state && { values: state }),
      locks: fields.optional("locks") ?? false,
      echo: fields.optional("echo") ?? true,
      watch: fields.optional("watch") ?? "none",
      ...(since && { since }),
      ...(presence && { presence: payloadOf(presence) }),
    });
    fields.check("recovery", joined.recovery);
    fields.check("occupancy", joined.occupancy);
    fields.save(formatPosition(joined.position));
  },
  async leave(fields, client) {
    await client.room(fields.required("room")).room.leave();
  },
  async publish(fields, client) {
    const { room } = client.room(fields.required("room"));
    const count = fields.optional<number>("count") ?? 1;
    const wait = fields.optional<boolean>("wait") ?? true;
    const outcomes = fields.repeated<PlainPayload>("payload", count).map((payload) => room.publish(payloadOf(payload)));
    if (!wait) return client.published(room.name, outcomes);
    const published = await Promise.all(outcomes);
    fields.save(formatPosition(published[count - 1]!.position));
  },
  async raw_publish(fields, client) {
    const name = fields.optional<string>("room");
    const alias = name === undefined ? fields.required<number>("alias") : client.room(name).room.alias!;
    const sequence = fields.optional<number>("sequence");
    const op = sequence === undefined ? null : { producer: client.client.producer, sequence };
    const payload = payloadOf(fields.required("payload"));
    const [duplicate, position] = [fields.optional<boolean>("duplicate"), fields.position("position")];
    const reply = await client.client.connection!.ask({ type: "publish", room: alias, op, payload });
    assert.ok(reply.type === "ok" && reply.reply.kind === "published");
    const { published } = reply.reply;
    if (duplicate !== undefined) assert.equal(published.duplicate, duplicate, "duplicate");
    if (position) assert.deepEqual(published.position, position, "position");
    fields.save(formatPosition(published.position));
  },
  async signal(fields, client) {
    const { room } = client.room(fields.required("room"));
    const [to, key] = [fields.optional<number>("to"), fields.optional<string>("key")];
    await room.signalAcknowledged(payloadOf(fields.required("payload")), { ...(to !== undefined && { to }), ...(key !== undefined && { key }) });
  },
  async set_presence(fields, client) {
    const payload = fields.required<PlainPayload | null>("payload");
    await client.room(fields.required("room")).room.setPresence(payload && payloadOf(payload));
  },
  async watch(fields, client) {
    await client.room(fields.required("room")).room.watch(fields.required("level"));
  },
  async members(fields, client) {
    const { room } = client.room(fields.required("room"));
    const after = fields.optional<number>("after");
    const page = await room.membersPage({ limit: fields.optional("limit") ?? 100, ...(after !== undefined && { after }) });
    fields.check("occupancy", page.occupancy);
    fields.check("members", page.members.map(({ user, raw }) => ({ user, value: raw && plainPayload(raw) })));
    fields.check("more", page.next !== null);
    fields.save(page.next);
  },
  async history(fields, client) {
    const { room } = client.room(fields.required("room"));
    const from = fields.position("from");
    const forward = fields.optional<string>("direction") === "forward";
    const start = forward ? { after: from ?? { epoch: room.position!.epoch, offset: 0 } } : from && { before: from };
    const page = await room.history({ limit: fields.optional("limit") ?? 100, ...start });
    fields.check("entries", page.events.map(({ raw }) => plainPayload(raw)));
    fields.check("more", page.next !== null);
    fields.save(page.next && formatPosition(page.next));
  },
  async collect(fields, client, withinMs) {
    const lane = client.room(fields.required("room")).log;
    const collected: unknown[] = [];
    for (let taken = 0; taken < fields.required<number>("count"); taken += 1) {
      const { event } = await next(lane, "event", withinMs);
      collected.push([formatPosition(event.position), event.user, plainPayload(event.raw)]);
    }
    fields.save(collected);
  },
  async cut(_, client) {
    client.cut();
  },
  async offline(_, client) {
    client.offline();
  },
  async online(_, client) {
    client.client.online();
  },
  async close(_, client) {
    await client.client.close();
  },
  async same(fields) {
    const [first, ...others] = fields.values("of");
    for (const other of others) assert.deepEqual(other, first);
  },
  async pause(fields) {
    await new Promise((resolve) => setTimeout(resolve, fields.required<number>("ms")));
  },
};

const EXPECT: Record<string, Action> = {
  ...EXPECT_KEYED,
  async event(fields, client, withinMs) {
    const lane = client.room(fields.required("room")).log;
    const count = fields.optional<number>("count") ?? 1;
    const payloads = fields.repeated<PlainPayload | undefined>("payload", count);
    const [user, position] = [fields.optional<string>("user"), fields.position("position")];
    let last: Position | undefined;
    for (const payload of payloads) {
      const { event } = await next(lane, "event", withinMs);
      if (payload) assert.deepEqual(plainPayload(event.raw), payload, "payload");
      if (user !== undefined) assert.equal(event.user, user, "user");
      if (position) assert.deepEqual(event.position, position, "position");
      last = event.position;
    }
    fields.save(formatPosition(last!));
  },
  async joined(fields, client, withinMs) {
    const { joined } = await next(client.room(fields.required("room")).log, "joined", withinMs);
    fields.check("recovery", joined.recovery);
  },
  async caught_up(fields, client, withinMs) {
    const { position } = await next(client.room(fields.required("room")).log, "caught_up", withinMs);
    checkPosition(fields, position);
  },
  async reset(fields, client, withinMs) {
    const { position } = await next(client.room(fields.required("room")).log, "reset", withinMs);
    checkPosition(fields, position);
    fields.save(formatPosition(position));
  },
  async left(fields, client, withinMs) {
    const { error } = await next(client.room(fields.required("room")).log, "left", withinMs);
    fields.check("error", error.code);
  },
  async timer(fields, client, withinMs) {
    const { timer } = await next(client.room(fields.required("room")).log, "timer", withinMs);
    fields.check("name", timer.name);
    fields.check("what", timer.what);
    fields.check("user", timer.user);
    fields.check("payload", timer.raw && plainPayload(timer.raw));
    fields.save(formatPosition(timer.position));
  },
  async lost(fields, client, withinMs) {
    const { lock } = await next(client.room(fields.required("room")).lost, "lost", withinMs);
    fields.check("lock", lock);
  },
  async signal(fields, client, withinMs) {
    const { signal } = await next(client.room(fields.required("room")).signals, "signal", withinMs);
    fields.check("payload", plainPayload(signal.raw));
    fields.check("from", signal.from);
    fields.check("user", signal.user);
    fields.check("key", signal.key);
  },
  async presence(fields, client, withinMs) {
    const { change } = await next(client.room(fields.required("room")).presence, "presence", withinMs);
    fields.check("kind", change.kind);
    fields.check("user", change.user);
    fields.check("value", change.raw && plainPayload(change.raw));
  },
  async occupancy(fields, client) {
    const room = client.room(fields.required("room"));
    const wanted = fields.required<number>("occupancy");
    await room.until(() => room.occupancy === wanted);
  },
  async position(fields, client) {
    const room = client.room(fields.required("room"));
    const wanted = formatPosition(fields.position("position")!);
    await room.until(() => formatPosition(room.room.position!) === wanted);
  },
  async published(fields, client) {
    const outcomes = client.takePublished(fields.required("room"), fields.optional<number>("count") ?? 1);
    const published = await Promise.all(outcomes);
    fields.save(formatPosition(published[published.length - 1]!.position));
  },
  async connected(fields, client) {
    fields.check("resumed", await client.reconnected());
  },
  async none(fields, client) {
    const room: LaneRoom = client.room(fields.required("room"));
    const kind = fields.required<LaneItem["kind"]>("of");
    const lane = kind === "signal" ? room.signals : kind === "presence" ? room.presence : room.log;
    await new Promise((resolve) => setTimeout(resolve, fields.optional<number>("for_ms") ?? 300));
    const found = lane.items.find((item) => item.kind === kind);
    assert.equal(found, undefined, `${kind} came: ${JSON.stringify(found)}`);
  },
};

/** The next item of a lane, which must be of this kind. Two kinds are stepped over: whether they come depends on timing. */
async function next<K extends LaneItem["kind"]>(lane: Lane, kind: K, withinMs: number): Promise<Extract<LaneItem, { kind: K }>> {
  for (;;) {
    const item = await lane.take(withinMs);
    if (item.kind === kind) return item as Extract<LaneItem, { kind: K }>;
    if (item.kind !== "joined" && item.kind !== "caught_up") assert.fail(`${kind} was expected, ${JSON.stringify(item)} came`);
  }
}

function checkPosition(fields: Fields, position: Position): void {
  const wanted = fields.position("position");
  if (wanted) assert.deepEqual(position, wanted, "position");
}

async function refused(step: Promise<void>, code: number): Promise<void> {
  await assert.rejects(step, (error: unknown) => {
    assert.ok(error instanceof RoomfulError, String(error));
    assert.equal(error.code, code, String(error));
    return true;
  });
}
