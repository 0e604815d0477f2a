// A room over several memberships: the stream without a gap, the publishes without an answer, presence.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Payload, RoomfulError, Roster, type Client, type Member, type Room } from "../src/index.js";
import { collect, event, JOINED, withServer, type FakeServer, type Peer } from "./fake-server.js";

/** A room that is joined at 7-0. */
async function joined(server: FakeServer, options: Parameters<Client["join"]>[1] = {}, client = server.client()): Promise<{ client: Client; room: Room; peer: Peer }> {
  const room = client.join("chat:lobby", options);
  const peer = await server.peer();
  await peer.welcome();
  await peer.joined();
  await room.whenJoined();
  return { client, room, peer };
}

test("recovered events are marked, and caughtUp says how many there were", withServer(async (server) => {
  const client = server.client();
  const room = client.join("chat:lobby", { since: { epoch: 7, offset: 3 } });
  const events = collect(room, "event");
  const caughtUp = collect(room, "caughtUp");
  const peer = await server.peer();
  await peer.welcome();
  await peer.joined({ recovery: "recovering", head: { epoch: 7, offset: 6 } });
  peer.send(event(4), { type: "advance", room: 1, offset: 5 }, event(6), { type: "caught_up", room: 1, offset: 6 }, event(7));
  const seen = [await events.take("event"), await events.take("event"), await events.take("event")];
  assert.deepEqual(seen.map(({ position, recovered }) => [position.offset, recovered]), [[4, true], [6, true], [7, false]]);
  assert.deepEqual(await caughtUp.take("caughtUp"), { from: { epoch: 7, offset: 3 }, position: { epoch: 7, offset: 6 }, events: 2, skipped: 1 });
  assert.equal(room.state, "live");
}));

test("joined, what was missed and caught_up may come in one message", withServer(async (server) => {
  const client = server.client();
  const room = client.join("chat:lobby", { since: { epoch: 7, offset: 0 } });
  const events = collect(room, "event");
  const peer = await server.peer();
  await peer.welcome();
  const { request } = await peer.expect("join");
  peer.send({ type: "batch", frames: [{ ...JOINED, request, recovery: "recovering" }, event(1), { type: "caught_up", room: 1, offset: 1 }] });
  assert.equal((await events.take("event")).recovered, true);
  assert.equal(room.state, "live");
}));

for (const [what, broken] of [
  ["a gap", [event(1), event(3)]],
  ["a repetition", [event(1), event(1)]],
  ["an advance backwards", [event(1), { type: "advance", room: 1, offset: 1 }]],
  ["a caught_up in mid-air", [event(1), { type: "caught_up", room: 1, offset: 1 }]],
] as const) {
  test(`${what} is never shown: the client drops the connection and joins at the last good position`, withServer(async (server) => {
    const { client, room, peer } = await joined(server);
    const events = collect(room, "event");
    const errors = collect(client, "error");
    peer.send(...broken);
    assert.equal((await errors.take("error")).name, "protocol_violation");
    const second = await server.peer();
    await second.welcome();
    assert.deepEqual((await second.joined({ recovery: "recovering" })).since, { epoch: 7, offset: 1 });
    second.send(event(2), event(3));
    assert.deepEqual([await events.take("event"), await events.take("event"), await events.take("event")].map((one) => one.position.offset), [1, 2, 3]);
    assert.equal(events.size, 0);
  }));
}

test("a join that goes on elsewhere than asked is a gap too", withServer(async (server) => {
  const client = server.client();
  const errors = collect(client, "error");
  client.join("chat:lobby", { since: { epoch: 7, offset: 3 } });
  const peer = await server.peer();
  await peer.welcome();
  await peer.joined({ position: { epoch: 7, offset: 5 } });
  assert.match((await errors.take("error")).message, /joined at 7-5 instead of 7-3/);
}));

test("a reset is shown with both positions, and the stream goes on from the head", withServer(async (server) => {
  const { room, peer } = await joined(server);
  const resets = collect(room, "reset");
  const events = collect(room, "event");
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  await second.joined({ recovery: "reset", position: { epoch: 8, offset: 40 } });
  second.send(event(41));
  assert.deepEqual(await resets.take("reset"), { position: { epoch: 8, offset: 40 }, previous: { epoch: 7, offset: 0 } });
  assert.deepEqual((await events.take("event")).position, { epoch: 8, offset: 41 });
}));

test("publishes without an answer are sent again with their op ids, in order, before new ones", withServer(async (server) => {
  const { client, room, peer } = await joined(server);
  const published = ["a", "b", "c"].map((text) => room.publish(text));
  await peer.acknowledged(1);
  await published[0];
  const [b, c] = [await peer.expect("publish"), await peer.expect("publish")];
  client.offline();
  published.push(room.publish("d"));
  client.online();
  const second = await server.peer();
  await second.welcome();
  assert.deepEqual((await second.joined()).producer, { producer: client.producer, next: 4 });
  const resent = [await second.acknowledged(2), await second.acknowledged(3), await second.acknowledged(4)];
  assert.deepEqual(resent.map((frame) => [frame.op, frame.payload.value]), [[b.op, "b"], [c.op, "c"], [{ producer: client.producer, sequence: 4 }, "d"]]);
  assert.deepEqual((await Promise.all(published)).map(({ position }) => position.offset), [1, 2, 3, 4]);
}));

test("in a new epoch, what has no answer is sent again in the same way", withServer(async (server) => {
  const { room, peer } = await joined(server);
  const published = room.publish("a");
  const { op } = await peer.expect("publish");
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  assert.equal((await second.joined({ recovery: "reset", position: { epoch: 8, offset: 0 } })).producer?.next, 2);
  assert.deepEqual((await second.acknowledged(1)).op, op);
  await published;
}));

test("an outcome that the server can't know is told as such", withServer(async (server) => {
  const { room, peer } = await joined(server);
  const rejected = assert.rejects(room.publish("a"), { code: 400, name: "op_id_expired", retry: "never" });
  await peer.expect("publish");
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  await second.joined();
  const { request } = await second.expect("publish");
  second.send({ type: "error", request, code: 400, text: "below the window", retry: "never", afterMs: null, current: [] });
  await rejected;
}));

test("an unknown outcome is asked for again with the same op ids", withServer(async (server) => {
  const { room, peer } = await joined(server);
  const published = Promise.all([room.publish("a"), room.publish("b")]);
  const first = [await peer.expect("publish"), await peer.expect("publish")];
  for (const { request } of first) peer.send({ type: "error", request, code: 402, text: "the storage failed", retry: "now", afterMs: null, current: [] });
  const again = [await peer.acknowledged(1), await peer.acknowledged(2)];
  assert.deepEqual(again.map(({ op }) => op), first.map(({ op }) => op));
  await published;
}));

test("what the server is too busy for is sent again after the time that it names, one by one and in order", withServer(async (server) => {
  const { room, peer } = await joined(server);
  const published = Promise.all(["a", "b", "c"].map((text) => room.publish(text)));
  for (const _ of "abc") {
    const { request } = await peer.expect("publish");
    peer.send({ type: "error", request, code: 500, text: "too many publishes", retry: "after_ms", afterMs: 30, current: [] });
  }
  const startMs = performance.now();
  const a = await peer.expect("publish");
  assert.ok(performance.now() - startMs >= 28);
  assert.equal(a.payload.value, "a");
  const pong = room.signal("still alone", {});
  assert.equal((await peer.frames.take("a frame")).type, "signal", String(pong));
  peer.send({ type: "ok", request: a.request, reply: { kind: "published", published: { position: { epoch: 7, offset: 1 }, timeMs: 0, duplicate: false } } });
  assert.deepEqual([(await peer.acknowledged(2)).payload.value, (await peer.acknowledged(3)).payload.value], ["b", "c"]);
  await published;
}));

test("no more publishes are on their way than the server keeps results of", withServer(async (server) => {
  const { room, peer } = await joined(server);
  const published = Promise.all(Array.from({ length: 100 }, (_, index) => room.publish(index)));
  room.signal("after the first ones");
  for (let index = 0; index < 64; index += 1) assert.equal((await peer.acknowledged(index + 1)).payload.value, index);
  await peer.expect("signal");
  for (let index = 64; index < 100; index += 1) assert.equal((await peer.acknowledged(index + 1)).payload.value, index);
  await published;
}));

test("when the server ends a membership resumably, the room joins again on the same connection", withServer(async (server) => {
  const { room, peer } = await joined(server);
  const left = collect(room, "left");
  const published = room.publish("a");
  const { request, op } = await peer.expect("publish");
  peer.send(
    event(1),
    { type: "left", room: 1, code: 307, text: "reopened", retry: "now", afterMs: null },
    { type: "error", request, code: 402, text: "unknown", retry: "now", afterMs: null, current: [] },
  );
  assert.deepEqual(await left.take("left"), { error: new RoomfulError(307, "reopened", "now"), rejoining: true });
  assert.deepEqual((await peer.joined({ room: 2 })).since, { epoch: 7, offset: 1 });
  assert.deepEqual((await peer.acknowledged(2)).op, op);
  await published;
}));

test("a membership that is over for good rejects what waits, and the room may be joined anew", withServer(async (server) => {
  const { client, room, peer } = await joined(server);
  const published = assert.rejects(room.publish("a"), { code: 203, name: "forbidden" });
  await peer.expect("publish");
  peer.send({ type: "left", room: 1, code: 203, text: "the grant is gone", retry: "never", afterMs: null });
  await published;
  await assert.rejects(room.whenJoined(), { name: "forbidden" });
  await assert.rejects(room.publish("b"), { name: "forbidden" });
  client.join("chat:lobby");
  assert.equal((await peer.expect("join")).producer?.next, 2);
}));

test("a join that is refused ends the room alone", withServer(async (server) => {
  const client = server.client();
  const room = client.join("nowhere");
  const peer = await server.peer();
  await peer.welcome();
  const { request } = await peer.expect("join");
  peer.send({ type: "error", request, code: 300, text: "no namespace", retry: "never", afterMs: null, current: [] });
  await assert.rejects(room.whenJoined(), { code: 300, name: "bad_room_name" });
  assert.equal((await client.connect()).user, "ada");
  assert.throws(() => client.join("chat:lobby") && client.join("chat:lobby"), { name: "already_joined" });
}));

/** Goal: a page may mount, unmount and mount within one round trip. Method: the first join is answered after the second one was asked for; the server would refuse it before. */
for (const outcome of ["succeeds", "is refused"]) {
  test(`a room that is left on its way in is joined anew when that join ${outcome}`, withServer(async (server) => {
    const { client, peer } = await joined(server);
    await client.join("chat:other").leave();
    const room = client.join("chat:other");
    const { request } = await peer.expect("join");
    void client.ping().catch(() => {});
    assert.equal((await peer.frames.take("a ping")).type, "ping");
    if (outcome === "succeeds") {
      peer.send({ ...JOINED, request, room: 2 });
      assert.equal((await peer.expect("leave")).room, 2);
    } else {
      peer.send({ type: "error", request, code: 500, text: "busy", retry: "after_ms", afterMs: 60_000, current: [] });
    }
    await peer.joined({ room: 3 });
    await room.whenJoined();
    assert.equal(room.alias, 3);
  }));
}

test("a room that is left on its way in is joined anew on the next connection", withServer(async (server) => {
  const { client, peer } = await joined(server);
  await client.join("chat:other").leave();
  const room = client.join("chat:other");
  await peer.expect("join");
  peer.socket.terminate();
  const second = await server.peer();
  await second.welcome();
  assert.deepEqual([(await second.joined()).room, (await second.joined({ room: 2 })).room], ["chat:lobby", "chat:other"]);
  await room.whenJoined();
}));

test("the queue is bounded by count and by bytes over all rooms, and answers make room again", withServer(async (server) => {
  const client = server.client({ queueMax: { count: 2, bytes: 10 } });
  const { room, peer } = await joined(server, {}, client);
  const other = client.join("chat:other");
  const first = room.publish("1234");
  void other.publish("12345").catch(() => {});
  await assert.rejects(room.publish("1"), { code: 900, name: "queue_full" });
  await peer.expect("join");
  await peer.acknowledged(1);
  await first;
  await assert.rejects(room.publish("123456"), { name: "queue_full" });
  assert.equal(room.pending, 0);
  const second = room.publish("1234");
  await peer.acknowledged(2);
  await second;
}));

test("a payload beyond the server's limit never leaves, and is refused here", withServer(async (server) => {
  const { room, peer } = await joined(server);
  await assert.rejects(room.publish("x".repeat(1_025)), { code: 104, name: "payload_too_large" });
  assert.throws(() => room.signal(new Uint8Array(1_025)), { name: "payload_too_large" });
  await assert.rejects(room.setPresence({ x: "x".repeat(1_025) }), { name: "payload_too_large" });
  await assert.rejects(room.publish(new Payload("json", new Uint8Array([0x7b]))), SyntaxError);
  const published = room.publish("x".repeat(1_024));
  await peer.acknowledged(1);
  await published;
}));

test("a request that gets no answer in time is rejected; one on a lost connection too", withServer(async (server) => {
  const { room, peer } = await joined(server, {}, server.client({ requestTimeoutMs: 300 }));
  await assert.rejects(room.history(), { code: 901, name: "request_timeout" });
  const lost = assert.rejects(room.membersPage(), { code: 902, name: "connection_lost" });
  await peer.expect("history");
  await peer.expect("presence");
  peer.socket.terminate();
  await lost;
}));

test("a publish that gets no answer in time is sent again on a fresh connection", withServer(async (server) => {
  const { room, peer } = await joined(server, {}, server.client({ requestTimeoutMs: 300 }));
  const published = room.publish("a");
  const { op } = await peer.expect("publish");
  const second = await server.peer();
  await second.welcome();
  await second.joined();
  assert.deepEqual((await second.acknowledged(1)).op, op);
  await published;
}));

test("the presence value comes back with every join, also one that was set while away", withServer(async (server) => {
  const { client, room, peer } = await joined(server, { presence: { name: "Ada" } });
  client.offline();
  const set = room.setPresence({ name: "Grace" });
  await peer.closed;
  client.online();
  const second = await server.peer();
  await second.welcome();
  assert.deepEqual((await second.joined()).presence?.value, { name: "Grace" });
  await set;
  const taken = room.setPresence(null);
  const { request, what } = await second.expect("presence");
  assert.deepEqual(what, { kind: "set", value: null });
  second.send({ type: "ok", request, reply: { kind: "done" } });
  await taken;
}));

/** Goal: the value that was set last stays. Method: each one is set before the one before it has an answer, and the answer to the first null comes in between. */
test("a value is set though another one is on its way", withServer(async (server) => {
  const { room, peer } = await joined(server, { presence: "here" });
  const set = async (value: string | null) => {
    const done = room.setPresence(value);
    const { request, what } = await peer.expect("presence");
    assert.deepEqual(what, { kind: "set", value: value === null ? null : Payload.text(value) });
    return { done, answer: () => peer.send({ type: "ok", request, reply: { kind: "done" } }) };
  };
  const [gone, typing] = [await set(null), await set("typing")];
  gone.answer();
  await gone.done;
  const last = await set(null);
  typing.answer();
  last.answer();
  await Promise.all([typing.done, last.done]);
  await room.setPresence(null);
  assert.equal(peer.frames.size, 0);
}));

test("a value that was taken away while away is taken away with a request, since a join can't", withServer(async (server) => {
  const { client, room } = await joined(server, { presence: "here" });
  client.offline();
  const taken = room.setPresence(null);
  client.online();
  const second = await server.peer();
  await second.welcome();
  assert.equal((await second.joined()).presence, null);
  const { request, what } = await second.expect("presence");
  assert.deepEqual(what, { kind: "set", value: null });
  second.send({ type: "ok", request, reply: { kind: "done" } });
  await taken;
}));

test("history reads both ways and gives where the next page starts", withServer(async (server) => {
  const { room, peer } = await joined(server);
  const before = room.history({ before: { epoch: 7, offset: 9 }, limit: 2 });
  const asked = await peer.expect("history");
  assert.deepEqual([asked.from, asked.direction, asked.limit], [{ epoch: 7, offset: 9 }, "backward", 2]);
  const entries = [event(7).entry, event(8).entry];
  peer.send({ type: "ok", request: asked.request, reply: { kind: "history", page: { entries, next: { epoch: 7, offset: 7 } } } });
  const page = await before;
  assert.deepEqual(page.events.map(({ position, payload, recovered }) => [position.offset, payload, recovered]), [[7, "n-7", true], [8, "n-8", true]]);
  assert.deepEqual(page.next, { epoch: 7, offset: 7 });
  void room.history({ after: { epoch: 7, offset: 0 } }).catch(() => {});
  assert.equal((await peer.expect("history")).direction, "forward");
}));

test("a signal goes out without a request; an acknowledged one waits and may be refused", withServer(async (server) => {
  const { room, peer } = await joined(server);
  const signals = collect(room, "signal");
  assert.equal(room.signal({ x: 1 }, { key: "cursor" }), true);
  const sent = await peer.expect("signal");
  assert.deepEqual([sent.request, sent.to, sent.key, sent.payload.value], [null, null, "cursor", { x: 1 }]);
  const refused = assert.rejects(room.signalAcknowledged("psst", { to: 99 }), { code: 306, name: "no_such_member" });
  const { request } = await peer.expect("signal");
  peer.send({ type: "error", request, code: 306, text: "nobody", retry: "never", afterMs: null, current: [] });
  await refused;
  peer.send({ type: "signal", room: 1, from: 4, user: "bob", key: null, payload: new Payload("msgpack", new Uint8Array([0xc1])) });
  const { from, user, key, payload, format } = await signals.take("signal");
  assert.deepEqual([from, user, key, payload, format], [4, "bob", null, new Uint8Array([0xc1]), "msgpack"]);
}));

test("a room that is left takes no more, and its late frames are nobody's", withServer(async (server) => {
  const { client, room, peer } = await joined(server);
  const events = collect(room, "event");
  const unanswered = assert.rejects(room.publish("a"), { name: "closed" });
  const left = room.leave();
  await unanswered;
  await peer.expect("publish");
  const { request } = await peer.expect("leave");
  peer.send(event(1), { type: "ok", request, reply: { kind: "done" } });
  await left;
  assert.deepEqual([events.size, room.state, client.state], [0, "left", "connected"]);
}));

test("a roster is whole although pages and changes cross", withServer(async (server) => {
  const { room, peer } = await joined(server, { watch: "members" });
  const roster = new Roster(room);
  const changes = collect(roster, "change");
  const info = (member: number, value: string) => ({ member, user: `u${member}`, value: Payload.text(value) });
  const first = await peer.expect("presence");
  peer.send({ type: "ok", request: first.request, reply: { kind: "members", page: { revision: 5, occupancy: 4, members: [info(1, "old"), info(2, "old")], next: 2 } } });
  const second = await peer.expect("presence");
  assert.deepEqual(second.what, { kind: "get", after: 2, limit: 100 });
  peer.send(
    { type: "presence", room: 1, revision: 4, occupancy: 4, changes: [{ ...info(2, "older"), kind: "present" }] },
    { type: "presence", room: 1, revision: 6, occupancy: 3, changes: [{ ...info(1, "new"), kind: "present" }, { ...info(3, ""), kind: "gone", value: null }] },
    { type: "ok", request: second.request, reply: { kind: "members", page: { revision: 5, occupancy: 4, members: [info(3, "ghost"), info(4, "x")], next: null } } },
  );
  const values = (members: ReadonlyMap<number, Member>) => [...members].map(([number, { value }]) => [number, value]);
  assert.deepEqual(values(await changes.take("change")), [[1, "new"], [2, "old"], [4, "x"]]);
  peer.send({ type: "presence", room: 1, revision: 7, occupancy: 2, changes: [{ ...info(4, ""), kind: "gone", value: null }] });
  assert.deepEqual(values(await changes.take("change")), [[1, "new"], [2, "old"]]);
}));
