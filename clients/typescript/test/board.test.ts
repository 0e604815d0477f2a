// What the page's board makes of cards that anybody may write, and what becomes of changes that come too late.

import assert from "node:assert/strict";
import { test } from "node:test";

import { cardOf, LISTS, merged, rankBetween, valueOf, type Card } from "../page/card.js";
import { Edits } from "../page/edits.js";
import type { ClientFrameOf, ServerFrameOf } from "../src/frames.js";
import { Payload, type Position } from "../src/index.js";
import { Inbox, withServer, type FakeServer, type Peer } from "./fake-server.js";

const BY = { name: "Ada", hue: 25 };
const TEA: Card = { text: "tea", list: 0, rank: 1, by: BY };

function position(offset: number): Position {
  return { epoch: 7, offset };
}

function raw(card: Card | null): Payload | null {
  return card && Payload.json(valueOf(card));
}

test("a card survives the way, and anything else is shown as what it is", () => {
  assert.deepEqual(cardOf(valueOf(TEA)), TEA);
  for (const [value, text] of [["plain", "plain"], [null, "null"], [{ text: 5 }, '{"text":5}'], [new Uint8Array(3), "3 bytes"], [undefined, ""]] as const) {
    const card = cardOf(value);
    assert.deepEqual([card.text, card.list, card.rank], [text, 0, 0]);
  }
  for (const odd of [{ list: LISTS.length }, { list: -1 }, { list: 0.5 }, { list: "1" }, { rank: NaN }, { rank: "x" }]) {
    const { list, rank } = cardOf({ text: "tea", ...odd });
    assert.deepEqual([list, rank], [0, 0]);
  }
  assert.equal(cardOf({ text: "x".repeat(100_000) }).text.length, 1_000);
});

test("two changes are merged where nobody loses by it", () => {
  const [written, rewritten] = [{ ...TEA, text: "green tea" }, { ...TEA, text: "black tea" }];
  const [moved, elsewhere] = [{ ...TEA, list: 1 }, { ...TEA, list: 2 }];
  for (const [mine, theirs, both] of [
    [written, moved, { ...written, list: 1 }],
    [moved, written, { ...written, list: 1 }],
    [moved, elsewhere, moved],
    [written, written, written],
    [null, moved, null],
    [moved, null, null],
    [null, null, null],
    [written, rewritten, undefined],
    [null, written, undefined],
    [written, null, undefined],
  ] as const) {
    assert.deepEqual(merged(TEA, mine, theirs), both);
  }
});

test("there is a rank between two others, before the first, and behind the last", () => {
  assert.deepEqual([rankBetween(1, 2), rankBetween(undefined, 1), rankBetween(1, undefined), rankBetween(undefined, undefined)], [1.5, 0, 2, 0]);
});

/** Edits of a room that is joined at 7-0, where a card of the given text stands at 7-0. */
async function editing(server: FakeServer) {
  const room = server.client().join("chat:board", { values: ["card/"], locks: true });
  const peer = await server.peer();
  await peer.welcome();
  const item = { key: "card/1", version: position(0), value: raw(TEA)! };
  await peer.joined({ state: { position: position(0), items: [item], next: null }, locks: { position: position(0), locks: [], next: null } });
  await room.whenJoined();
  const refused = new Inbox<string>();
  const claims = new Inbox<(fence: Position) => void>();
  const edits: Edits = new Edits(room, {
    changed: () => {},
    refused: (id) => refused.put(id),
    claim: () => new Promise((resolve) => claims.put(resolve)),
  });
  return { room, peer, edits, refused, claims };
}

const KNOWN = { card: TEA, version: position(0) };

type Write = ClientFrameOf<"state"> & { readonly what: { readonly kind: "write" } };

async function written(peer: Peer): Promise<Write> {
  const frame = await peer.expect("state");
  assert.equal(frame.what.kind, "write");
  return frame as Write;
}

/** The one change of a write: its card's text, and its conditions. */
function told({ what }: Write): [string | null, Position | null, Position | undefined] {
  const [{ value, ifVersion, ifFence }] = what.changes as [(typeof what.changes)[number]];
  return [value && cardOf(value.value).text, ifVersion, ifFence?.fence];
}

function stored(peer: Peer, { request }: Write, offset: number): void {
  peer.send({ type: "ok", request, reply: { kind: "published", published: { position: position(offset), timeMs: 1_000, duplicate: false } } });
}

function refuse(peer: Peer, { request }: Write, code: number, current: ServerFrameOf<"error">["current"] = []): void {
  peer.send({ type: "error", request, code, text: "no", retry: "never", afterMs: null, current });
}

function change(offset: number, card: Card | null): ServerFrameOf<"state"> {
  return { type: "state", room: 1, offset, timeMs: 1_000, user: "bob", op: null, changes: [{ key: "card/1", value: raw(card) }] };
}

/** Waits for a condition that the fake server brings about. */
async function until(what: string, test: () => boolean): Promise<void> {
  const end = performance.now() + 5_000;
  while (!test()) {
    assert.ok(performance.now() < end, what);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test("a change carries the version and the grant that it was made under, and is kept until the room tells of it", withServer(async (server) => {
  const { room, peer, edits } = await editing(server);
  edits.write("1", KNOWN, { ...TEA, text: "green tea" }, position(0));
  const write = await written(peer);
  assert.deepEqual(told(write), ["green tea", position(0), position(0)]);
  stored(peer, write, 1);
  await until("it is stored", () => edits.get("1")?.stage.kind === "stored");
  peer.send(change(1, { ...TEA, text: "green tea" }));
  await until("the room has told of it", () => room.position?.offset === 1);
  edits.followed();
  assert.equal(edits.get("1"), undefined);
}));

test("of one card one change is on its way; the next is made from what becomes of it", withServer(async (server) => {
  const { peer, edits } = await editing(server);
  edits.write("1", KNOWN, { ...TEA, text: "green tea" });
  edits.write("1", KNOWN, { ...TEA, text: "black tea" });
  edits.write("1", KNOWN, null);
  const first = await written(peer);
  assert.equal(told(first)[0], "green tea");
  stored(peer, first, 1);
  assert.deepEqual(told(await written(peer)), [null, position(1), undefined]);
}));

test("a change that meets another one of something else is written over it", withServer(async (server) => {
  const { peer, edits, refused } = await editing(server);
  edits.write("1", KNOWN, { ...TEA, text: "green tea" });
  refuse(peer, await written(peer), 404, [{ key: "card/1", version: position(4), value: raw({ ...TEA, list: 2 }) }]);
  const again = await written(peer);
  assert.deepEqual(told(again), ["green tea", position(4), undefined]);
  assert.equal(cardOf(again.what.changes[0]!.value!.value).list, 2);
  assert.equal(refused.size, 0);
}));

test("a change that would take something from somebody waits for a decision, and for the lock", withServer(async (server) => {
  const { peer, edits, refused, claims } = await editing(server);
  edits.write("1", KNOWN, { ...TEA, text: "green tea" });
  refuse(peer, await written(peer), 404, [{ key: "card/1", version: position(4), value: raw({ ...TEA, text: "black tea" }) }]);
  assert.equal(await refused.take("the refusal"), "1");
  assert.equal(edits.needsLock("1"), false);
  const kept = edits.keepMine("1");
  assert.equal(edits.needsLock("1"), true);
  (await claims.take("a claim"))(position(6));
  await kept;
  assert.deepEqual(told(await written(peer)), ["green tea", position(4), position(6)]);
}));

test("a refused change follows what is there, and can be given up while it waits for the lock", withServer(async (server) => {
  const { room, peer, edits, refused, claims } = await editing(server);
  edits.write("1", KNOWN, { ...TEA, text: "green tea" }, position(0));
  refuse(peer, await written(peer), 405);
  await refused.take("the refusal");
  peer.send(change(1, { ...TEA, text: "black tea" }));
  await until("the room has told of it", () => room.position?.offset === 1);
  edits.followed();
  const stage = edits.get("1")?.stage;
  assert.ok(stage?.kind === "refused");
  assert.deepEqual([stage.theirs.card?.text, stage.theirs.version], ["black tea", position(1)]);
  const kept = edits.keepMine("1");
  edits.keepTheirs("1");
  (await claims.take("a claim"))(position(6));
  await kept;
  assert.equal(edits.get("1"), undefined);
  assert.equal(edits.waiting, 0);
}));

test("whoever wanted what is there by now has nothing left to do", withServer(async (server) => {
  const { peer, edits, refused } = await editing(server);
  edits.write("1", KNOWN, null);
  refuse(peer, await written(peer), 404, [{ key: "card/1", version: position(4), value: null }]);
  await until("it is done", () => edits.get("1") === undefined);
  assert.equal(refused.size, 0);
}));
