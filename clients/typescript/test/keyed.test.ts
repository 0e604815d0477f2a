// What a room keeps: the copy of its state and locks over pages, changes and reconnects; writes; locks held and waited for.

import assert from "node:assert/strict";
import { test } from "node:test";

import type { ClientFrameOf, Reply, ServerFrameOf } from "../src/frames.js";
import { Payload, RoomfulError, type Client, type JoinOptions, type Room, type Value } from "../src/index.js";
import { Replica } from "../src/replica.js";
import { collect, withServer, type FakeServer, type Peer } from "./fake-server.js";

/** A room that is joined at 7-0 with these first pages. */
async function joined(server: FakeServer, options: JoinOptions, pages: Partial<ServerFrameOf<"joined">> = {}): Promise<{ client: Client; room: Room; peer: Peer }> {
  const client = server.client();
  const room = client.join("board:plan", options);
  const peer = await server.peer();
  await peer.welcome();
  await peer.joined(pages);
  await room.whenJoined();
  return { client, room, peer };
}

function position(offset: number) {
  return { epoch: 7, offset };
}

function page(of: number, items: [string, number, string][], next: string | null = null) {
  return { position: position(of), items: items.map(([key, version, text]) => ({ key, version: position(version), value: Payload.text(text) })), next };
}

function change(offset: number, key: string, text: string | null): ServerFrameOf<"state"> {
  return { type: "state", room: 1, offset, timeMs: 1_000, user: "bob", op: null, changes: [{ key, value: text === null ? null : Payload.text(text) }] };
}

function lock(offset: number, why: ServerFrameOf<"lock">["why"], holder?: { member: number; fence: number }): ServerFrameOf<"lock"> {
  const held = holder ? { ...holder, user: "ada", untilMs: 0 } : null;
  return { type: "lock", room: 1, offset, timeMs: 1_000, lock: "card", why, held, queue: [] };
}

function ok(peer: Peer, { request }: { request: number | null }, reply: Reply): void {
  peer.send({ type: "ok", request: request!, reply });
}

function refused(peer: Peer, { request }: { request: number | null }, code: number, current: ServerFrameOf<"error">["current"] = [], afterMs: number | null = null): void {
  peer.send({ type: "error", request, code, text: "no", retry: afterMs === null ? "never" : "after_ms", afterMs, current });
}

function granted(peer: Peer, frame: { request: number }, offset: number): void {
  ok(peer, frame, { kind: "lock", lock: { kind: "granted", fence: position(offset), untilMs: 0 } });
}

/** The next `lock` request of this kind; others are stepped over. */
async function asked(peer: Peer, kind: ClientFrameOf<"lock">["what"]["kind"]): Promise<ClientFrameOf<"lock">> {
  for (;;) {
    const frame = await peer.expect("lock");
    if (frame.what.kind === kind) return frame;
  }
}

function shown(values: readonly Value[]) {
  return values.map(({ key, version, value }) => [key, version.offset, value]);
}

/** Goal: pages and changes give the same copy in whatever order they come. Method: every order of three changes and a page. */
test("what is newer counts, in any order", () => {
  const parts: [string, number, string | undefined][] = [["a", 1, "old"], ["a", 6, "new"], ["b", 2, "gone"], ["b", 7, undefined]];
  const orders = (rest: typeof parts): (typeof parts)[] =>
    rest.length === 0 ? [[]] : rest.flatMap((first, index) => orders(rest.toSpliced(index, 1)).map((order) => [first, ...order]));
  for (const order of orders(parts)) {
    const replica = new Replica<string>();
    for (const [key, offset, value] of order) replica.take(key, position(offset), value);
    replica.finish();
    assert.deepEqual(replica.values(), ["new"]);
  }
});

test("keys are sorted as the server sorts them", () => {
  const replica = new Replica<string>();
  for (const key of ["b", "\u{1f642}", "a", "ab", "\u{fffd}", "é"]) replica.take(key, position(1), key);
  const byBytes = ["b", "\u{1f642}", "a", "ab", "\u{fffd}", "é"].sort((a, b) => Buffer.compare(new TextEncoder().encode(a), new TextEncoder().encode(b)));
  assert.deepEqual(replica.values(), byBytes);
});

test("a copy is made of the join's page, the pages after it, and the changes beside them", withServer(async (server) => {
  const { room, peer } = await joined(server, { values: ["a", "b"] }, { state: page(0, [["a1", 0, "one"]], "a1") });
  const ready = collect(room.values, "ready");
  const first = await peer.expect("state");
  assert.deepEqual(first.what, { kind: "get", prefix: "a", after: "a1", limit: 1_000 });
  peer.send(change(1, "a2", "late"), change(2, "b1", null));
  ok(peer, first, { kind: "state", page: page(0, [["a2", 0, "early"]]) });
  const second = await peer.expect("state");
  assert.deepEqual(second.what, { kind: "get", prefix: "b", after: "a1", limit: 1_000 });
  assert.equal(room.values.complete, false);
  ok(peer, second, { kind: "state", page: page(0, [["b1", 0, "deleted since"], ["b2", 0, "two"]]) });
  assert.deepEqual(shown(await ready.take("ready")), [["a1", 0, "one"], ["a2", 1, "late"], ["b2", 0, "two"]]);
}));

test("a change of watched keys is told with its position, and is in the copy by then", withServer(async (server) => {
  const { room, peer } = await joined(server, { values: [""] }, { state: page(0, []) });
  const changes = collect(room.values, "change");
  peer.send(change(1, "a", "one"));
  const { position: at, own, user, changes: keys } = await changes.take("change");
  assert.deepEqual([at, own, user, shown(keys)], [position(1), false, "bob", [["a", 1, "one"]]]);
  assert.equal(room.values.get("a")?.value, "one");
  peer.send(change(2, "a", null));
  assert.equal((await changes.take("change")).changes[0]?.raw, null);
  assert.equal(room.values.get("a"), undefined);
  assert.deepEqual(room.position, position(2));
}));

test("after a loss the same keys are watched, and pages go on where they stopped", withServer(async (server) => {
  const { room, peer } = await joined(server, { values: ["a"] }, { state: page(0, [["a1", 0, "one"]], "a1") });
  await peer.expect("state");
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  const ready = collect(room.values, "ready");
  assert.deepEqual((await second.joined({ recovery: "recovering" })).state, ["a"]);
  second.send(change(1, "a1", "changed"), { type: "caught_up", room: 1, offset: 1 });
  const again = await second.expect("state");
  assert.deepEqual(again.what, { kind: "get", prefix: "a", after: "a1", limit: 1_000 });
  ok(second, again, { kind: "state", page: page(1, [["a2", 0, "two"]]) });
  assert.deepEqual(shown(await ready.take("ready")), [["a1", 1, "changed"], ["a2", 0, "two"]]);
}));

test("a reset replaces the copy, and says so", withServer(async (server) => {
  const { room, peer } = await joined(server, { values: [""] }, { state: page(0, [["old", 0, "one"]]) });
  const resets = collect(room.values, "reset");
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  await second.joined({ recovery: "reset", position: { epoch: 8, offset: 3 }, state: { ...page(3, []), position: { epoch: 8, offset: 3 } } });
  await resets.take("reset");
  assert.deepEqual(room.values.all(), []);
  assert.ok(room.values.complete);
}));

test("other keys are watched at once, and by every later join", withServer(async (server) => {
  const { room, peer } = await joined(server, { values: ["a"] }, { state: page(0, [["a1", 0, "one"]]) });
  const watched = room.values.watch(["b"]);
  const watch = await peer.expect("state");
  assert.deepEqual(watch.what, { kind: "watch", prefixes: ["b"] });
  ok(peer, watch, { kind: "done" });
  await watched;
  assert.deepEqual((await peer.expect("state")).what, { kind: "get", prefix: "b", after: null, limit: 1_000 });
  peer.send(change(1, "a1", "not for this copy"));
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  assert.deepEqual((await second.joined({ recovery: "recovering" })).state, ["b"]);
  assert.deepEqual(room.values.all(), []);
}));

test("a conflict brings what is there", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const written = room.values.put("card", { done: true }, { ifVersion: position(3) });
  const frame = await peer.expect("state");
  assert.equal(frame.what.kind, "write");
  refused(peer, frame, 404, [{ key: "card", version: position(5), value: Payload.text("theirs") }]);
  await assert.rejects(written, (error: RoomfulError) => {
    assert.equal(error.name, "conflict");
    assert.deepEqual(shown(error.current), [["card", 5, "theirs"]]);
    return true;
  });
}));

test("a write without an answer is sent again under its op id, in its place among the publishes", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const outcomes = Promise.all([room.publish("one"), room.values.delete("card"), room.publish("two")]);
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  await second.joined();
  const first = await second.acknowledged(1);
  const write = await second.expect("state");
  assert.ok(write.what.kind === "write" && write.what.op?.sequence === first.op!.sequence + 1);
  ok(second, write, { kind: "published", published: { position: position(2), timeMs: 1_000, duplicate: true } });
  await second.acknowledged(3);
  assert.deepEqual((await outcomes).map((published) => published.position.offset), [1, 2, 3]);
}));

test("what is left for the end is left again in every membership", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const left = room.values.onDisconnect([{ key: "online", delete: true }]);
  const frame = await peer.expect("state");
  ok(peer, frame, { kind: "done" });
  await left;
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  await second.joined();
  assert.deepEqual((await second.expect("state")).what, frame.what);
}));

test("a lock is renewed while it is held, and its loss is told", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const lost = collect(room.locks, "lost");
  const acquired = room.locks.acquire("card", { ttlMs: 300, wait: false });
  const acquire = await asked(peer, "acquire");
  assert.deepEqual(acquire.what, { kind: "acquire", lock: "card", ttlMs: 300, queue: false });
  granted(peer, acquire, 3);
  assert.deepEqual(await acquired, position(3));
  const renewal = await asked(peer, "renew");
  assert.deepEqual(renewal.what, { kind: "renew", lock: "card", fence: position(3), ttlMs: 300 });
  granted(peer, renewal, 3);
  refused(peer, await asked(peer, "renew"), 405);
  assert.deepEqual(await lost.take("lost"), { lock: "card", fence: position(3) });
  assert.equal(room.locks.fence("card"), undefined);
}));

test("a lease that nobody renews ends on this side too", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const lost = collect(room.locks, "lost");
  const acquired = room.locks.acquire("card", { ttlMs: 60, wait: false });
  granted(peer, await asked(peer, "acquire"), 3);
  await acquired;
  await lost.take("lost");
  await asked(peer, "release");
}));

test("who waits watches locks, and is told by the room", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const acquired = room.locks.acquire("card");
  ok(peer, await asked(peer, "watch"), { kind: "done" });
  const acquire = await asked(peer, "acquire");
  ok(peer, acquire, { kind: "lock", lock: { kind: "queued", place: 0 } });
  peer.send({ ...lock(1, "queued", { member: 9, fence: 0 }), queue: [{ member: 11, user: "ada" }] });
  peer.send(lock(2, "granted", { member: 11, fence: 2 }));
  granted(peer, await asked(peer, "acquire"), 2);
  assert.deepEqual(await acquired, position(2));
  const lost = collect(room.locks, "lost");
  peer.send(lock(3, "expired"));
  assert.deepEqual(await lost.take("lost"), { lock: "card", fence: position(2) });
}));

for (const isLate of [false, true]) {
  test(`a place in the queue that is gone is asked for again, ${isLate ? "after" : "before"} the answer`, withServer(async (server) => {
    const { room, peer } = await joined(server, { locks: true }, { locks: { position: position(0), locks: [], next: null } });
    const changes = collect(room.locks, "change");
    const acquired = room.locks.acquire("card");
    const acquire = await asked(peer, "acquire");
    if (!isLate) {
      peer.send(lock(1, "expired"));
      await changes.take("change");
    }
    ok(peer, acquire, { kind: "lock", lock: { kind: "queued", place: 0 } });
    if (isLate) peer.send(lock(1, "expired"));
    granted(peer, await asked(peer, "acquire"), 3);
    assert.deepEqual(await acquired, position(3));
  }));
}

/** Goal: an answer counts for the claim that asked. Method: a lock is taken, given back and taken within one round trip; the room shows the first grant as well. */
test("an earlier grant is not taken for a later one", withServer(async (server) => {
  const { room, peer } = await joined(server, { locks: true }, { locks: { position: position(0), locks: [], next: null } });
  const changes = collect(room.locks, "change");
  const first = room.locks.acquire("card");
  const released = room.locks.release("card");
  const second = room.locks.acquire("card");
  await assert.rejects(first, { name: "closed" });
  const requests = [await asked(peer, "acquire"), await asked(peer, "release"), await asked(peer, "acquire")] as const;
  granted(peer, requests[0], 5);
  ok(peer, requests[1], { kind: "done" });
  peer.send({ type: "advance", room: 1, offset: 4 }, lock(5, "granted", { member: 11, fence: 5 }));
  await changes.take("change");
  await released;
  assert.equal(room.locks.fence("card"), undefined);
  granted(peer, requests[2], 7);
  assert.deepEqual(await second, position(7));
  peer.send(lock(6, "released"));
  await changes.take("change");
  assert.deepEqual(room.locks.fence("card"), position(7));
}));

test("a grant that nobody wants any more is given back", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const acquired = room.locks.acquire("card", { wait: false });
  const released = room.locks.release("card");
  await assert.rejects(acquired, { name: "closed" });
  const acquire = await asked(peer, "acquire");
  ok(peer, await asked(peer, "release"), { kind: "done" });
  await released;
  granted(peer, acquire, 5);
  await asked(peer, "release");
}));

test("a lock without an answer is given up, and one refused for a while is asked for again", withServer(async (server) => {
  const client = server.client({ requestTimeoutMs: 200 });
  const room = client.join("board:plan");
  const peer = await server.peer();
  await peer.welcome();
  await peer.joined();
  await room.whenJoined();
  const acquired = room.locks.acquire("card", { wait: false });
  refused(peer, await asked(peer, "acquire"), 500, [], 10);
  await asked(peer, "acquire");
  await assert.rejects(acquired, { name: "request_timeout" });
  await asked(peer, "release");
}));

test("who comes to wait asks after the one that would not", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const tried = room.locks.acquire("card", { wait: false });
  const waited = room.locks.acquire("card");
  refused(peer, await asked(peer, "acquire"), 406, [], 1_000);
  await asked(peer, "watch");
  const acquire = await asked(peer, "acquire");
  assert.deepEqual(acquire.what, { kind: "acquire", lock: "card", ttlMs: 30_000, queue: true });
  granted(peer, acquire, 5);
  assert.deepEqual(await Promise.all([tried, waited]), [position(5), position(5)]);
}));

/**
 * Goal: who waits is told, though the watch it needs was not taken at once. Method: it waits between `join` and `joined`, which said nothing of locks; the
 * watch that follows is refused for a while.
 */
test("who waits before the join is answered watches after it", withServer(async (server) => {
  const { client, peer } = await joined(server, {});
  const room = client.join("board:later");
  const acquired = room.locks.acquire("card");
  assert.equal((await peer.joined({ room: 2 })).locks, false);
  const watch = await asked(peer, "watch");
  assert.deepEqual(watch.what, { kind: "watch", locks: true });
  ok(peer, await asked(peer, "acquire"), { kind: "lock", lock: { kind: "queued", place: 0 } });
  refused(peer, watch, 500, [], 10);
  assert.deepEqual((await asked(peer, "watch")).what, watch.what);
  granted(peer, await asked(peer, "acquire"), 5);
  assert.deepEqual(await acquired, position(5));
}));

/** As above, for keys: the page that the join brings is of what it said. */
test("keys watched before the join is answered are watched after it", withServer(async (server) => {
  const { client, peer } = await joined(server, {});
  const room = client.join("board:later", { values: ["a"] });
  await room.values.watch(["b"]);
  const ready = collect(room.values, "ready");
  assert.deepEqual((await peer.joined({ room: 2, state: page(0, [["a1", 0, "one"]]) })).state, ["a"]);
  const watch = await peer.expect("state");
  assert.deepEqual(watch.what, { kind: "watch", prefixes: ["b"] });
  await peer.expect("state");
  refused(peer, watch, 500, [], 10);
  ok(peer, await peer.expect("state"), { kind: "done" });
  const get = await peer.expect("state");
  assert.deepEqual(get.what, { kind: "get", prefix: "b", after: null, limit: 1_000 });
  ok(peer, get, { kind: "state", page: page(0, [["b1", 0, "two"]]) });
  assert.deepEqual(shown(await ready.take("ready")), [["b1", 0, "two"]]);
}));

test("who would never be told of a grant waits no longer", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const acquired = room.locks.acquire("card");
  refused(peer, await asked(peer, "watch"), 203);
  await assert.rejects(acquired, { name: "forbidden" });
  await asked(peer, "release");
}));

/** Goal: who waits hears of its grant. Method: the application watches locks no longer while it waits for two; they are unwatched behind the second. */
test("locks are watched until nobody waits", withServer(async (server) => {
  const { room, peer } = await joined(server, { locks: true }, { locks: { position: position(0), locks: [], next: null } });
  const acquired = room.locks.acquire("card");
  const acquire = await asked(peer, "acquire");
  ok(peer, acquire, { kind: "lock", lock: { kind: "queued", place: 0 } });
  const other = assert.rejects(room.locks.acquire("other"), { name: "closed" });
  await room.locks.watch(false);
  assert.equal((await peer.expect("lock")).what.kind, "acquire");
  peer.send(lock(1, "granted", { member: 11, fence: 1 }));
  const again = await peer.expect("lock");
  assert.equal(again.what.kind, "acquire");
  granted(peer, again, 1);
  assert.deepEqual([await acquired, room.locks.watching], [position(1), true]);
  void room.locks.release("other");
  await other;
  assert.deepEqual((await peer.expect("lock")).what, { kind: "watch", locks: false });
  assert.equal(room.locks.watching, false);
}));

test("locks that may not be left unwatched are copied on", withServer(async (server) => {
  const held = { lock: "card", held: { fence: 0, member: 9, user: "bob", untilMs: 0 }, queue: [] };
  const first = { position: position(0), locks: [held], next: null };
  const { room, peer } = await joined(server, { locks: true }, { locks: first });
  const ready = collect(room.locks, "ready");
  const watched = room.locks.watch(false);
  refused(peer, await asked(peer, "watch"), 500, [], 10);
  await assert.rejects(watched, { name: "rate_limited" });
  ok(peer, await asked(peer, "get"), { kind: "locks", page: first });
  assert.deepEqual(await ready.take("ready"), [held]);
  assert.ok(room.locks.watching);
}));

test("a write taken back while away is taken back by the next membership", withServer(async (server) => {
  const { client, room, peer } = await joined(server, {});
  const left = room.values.onDisconnect([{ key: "a", delete: true }]);
  ok(peer, await peer.expect("state"), { kind: "done" });
  await left;
  client.offline();
  assert.equal(room.member, 11);
  await room.values.onDisconnect([]);
  client.online();
  const second = await server.peer();
  await second.welcome();
  await second.joined();
  assert.deepEqual((await second.expect("state")).what, { kind: "on_disconnect", changes: [] });
}));

test("claims are made again by the next membership", withServer(async (server) => {
  const { room, peer } = await joined(server, { locks: true }, { locks: { position: position(0), locks: [], next: null } });
  const held = room.locks.acquire("card");
  granted(peer, await asked(peer, "acquire"), 1);
  await held;
  const waited = room.locks.acquire("other");
  await asked(peer, "acquire");
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  assert.equal((await second.joined({ recovery: "recovering" })).locks, true);
  const lost = collect(room.locks, "lost");
  refused(second, await asked(second, "renew"), 407);
  const again = await asked(second, "acquire");
  granted(second, again, 5);
  assert.deepEqual(await waited, position(5));
  assert.equal((await lost.take("lost")).lock, "card");
}));

test("a copy of the locks follows them", withServer(async (server) => {
  const held = { lock: "card", held: { fence: 0, member: 9, user: "bob", untilMs: 0 }, queue: [] };
  const { room, peer } = await joined(server, { locks: true }, { locks: { position: position(0), locks: [held], next: null } });
  assert.equal(room.locks.get("card")?.held?.user, "bob");
  const changes = collect(room.locks, "change");
  peer.send(lock(1, "expired"));
  assert.equal((await changes.take("change")).why, "expired");
  assert.deepEqual(room.locks.all(), []);
}));

test("a release while waiting ends the waiting", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const acquired = room.locks.acquire("card");
  const released = room.locks.release("card");
  await assert.rejects(acquired, { name: "closed" });
  ok(peer, await asked(peer, "release"), { kind: "done" });
  await released;
}));

test("timers are set, told and read; cursors move and are read", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const timers = collect(room, "timer");
  const set = room.setTimer("closing", 5_000, { lot: 42 });
  const frame = await peer.expect("timer");
  ok(peer, frame, { kind: "published", published: { position: position(1), timeMs: 1_000, duplicate: false } });
  peer.send({ type: "timer", room: 1, offset: 1, timeMs: 1_000, user: "ada", name: "closing", what: "fired", dueMs: 5_000, payload: Payload.json({ lot: 42 }) });
  assert.deepEqual((await set).position, position(1));
  const { what, payload, position: at } = await timers.take("timer");
  assert.deepEqual([what, payload, at, room.position], ["fired", { lot: 42 }, position(1), position(1)]);
  const page = room.timersPage();
  ok(peer, await peer.expect("timer"), { kind: "timers", page: { position: position(1), timers: [], next: null } });
  assert.deepEqual(await page, { timers: [], next: null });
  const moved = room.setCursors({ read: position(1) });
  const cursor = await peer.expect("cursor");
  assert.deepEqual(cursor.what, { kind: "set", read: position(1), delivered: null });
  ok(peer, cursor, { kind: "cursors", cursors: { read: position(1), delivered: null, unread: 0 } });
  assert.equal((await moved).unread, 0);
}));

test("what may not be watched is not asked for by the next join", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const watched = [room.values.watch(["a"]), room.locks.watch(true)];
  for (let count = 0; count < 2; ) {
    const frame = await peer.frames.take("a watch");
    if ((frame.type !== "state" && frame.type !== "lock") || frame.what.kind !== "watch") continue;
    refused(peer, frame, 203);
    count += 1;
  }
  for (const outcome of await Promise.allSettled(watched)) assert.equal(outcome.status, "rejected");
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  const join = await second.joined();
  assert.deepEqual([join.state, join.locks], [null, false]);
}));

test("a release whose answer is lost is said again", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const acquired = room.locks.acquire("card", { wait: false });
  granted(peer, await asked(peer, "acquire"), 3);
  await acquired;
  const released = room.locks.release("card");
  await asked(peer, "release");
  peer.socket.terminate();
  await released;
  const second = await server.peer();
  await second.welcome();
  await second.joined();
  assert.deepEqual((await asked(second, "release")).what, { kind: "release", lock: "card" });
}));

/** Goal: a claim is ended by its own release alone. Method: the answer to a release is lost after the lock was asked for anew. */
test("a lost release does not end a later claim", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const acquired = room.locks.acquire("card", { wait: false });
  granted(peer, await asked(peer, "acquire"), 3);
  await acquired;
  const released = room.locks.release("card");
  const again = room.locks.acquire("card", { wait: false });
  await asked(peer, "acquire");
  peer.socket.terminate();
  await released;
  const second = await server.peer();
  await second.welcome();
  await second.joined();
  const first = await second.expect("lock");
  assert.equal(first.what.kind, "acquire");
  granted(second, first, 3);
  assert.deepEqual(await again, position(3));
}));

/** Goal: a membership that the server ends and renews ends no claim, and forgets no release. Method: both are on their way when it does, and meet a room that is not joined. */
test("requests that cross the end of their membership are made again by the next one", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const acquired = room.locks.acquire("card", { wait: false });
  granted(peer, await asked(peer, "acquire"), 3);
  await acquired;
  const released = room.locks.release("card");
  const other = room.locks.acquire("other", { wait: false });
  const typing = room.setPresence("typing");
  const crossed = [await asked(peer, "release"), await asked(peer, "acquire"), await peer.expect("presence")];
  peer.send({ type: "left", room: 1, code: 307, text: "reopened", retry: "now", afterMs: null });
  for (const frame of crossed) refused(peer, frame, 302);
  await released;
  assert.equal((await peer.joined({ room: 2 })).presence?.value, "typing");
  await typing;
  const again = [await peer.expect("lock"), await peer.expect("lock")] as const;
  assert.deepEqual(again.map(({ what }) => what), [{ kind: "release", lock: "card" }, crossed[1]!.what]);
  granted(peer, again[1], 7);
  assert.deepEqual(await other, position(7));
}));

test("a release whose refusal comes after the next join is said again", withServer(async (server) => {
  const { room, peer } = await joined(server, {});
  const acquired = room.locks.acquire("card", { wait: false });
  granted(peer, await asked(peer, "acquire"), 3);
  await acquired;
  const released = room.locks.release("card");
  const release = await asked(peer, "release");
  peer.send({ type: "left", room: 1, code: 307, text: "reopened", retry: "now", afterMs: null });
  await peer.joined({ room: 2 });
  refused(peer, release, 302);
  await released;
  assert.deepEqual((await asked(peer, "release")).what, release.what);
}));
