// npm `ws` talks to Roomful by protocol/SPEC.md alone, in both subprotocols: `node third_party.mjs http://127.0.0.1:7400`.

import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import WebSocket from "ws";
import { run, within } from "./run.mjs";
import { json, msgpack, placementKey } from "./wire.mjs";

const url = process.argv[2].replace(/^http/, "ws") + "/v1/ws";

/** One connection, and what has arrived on it. */
class Peer {
  static async connect(wire, room, resume = null) {
    const peer = new Peer();
    peer.wire = wire;
    peer.frames = [];
    peer.waiting = () => {};
    peer.requests = 0;
    peer.socket = new WebSocket(`${url}?k=${placementKey(room)}`, [wire.subprotocol]);
    peer.socket.on("message", (message, isBinary) => peer.take(wire.decode(message, isBinary)));
    peer.closed = new Promise((resolve) => peer.socket.on("close", (code) => resolve(code)));
    await within("the handshake", new Promise((resolve, reject) => peer.socket.on("open", resolve).on("error", reject)));
    peer.welcome = await peer.ask("hello", null, resume, "npm ws");
    return peer;
  }

  take([code, ...fields]) {
    const type = this.wire.type(code);
    if (type === "batch") {
      fields[0].forEach((frame) => this.take(frame));
      return;
    }
    this.frames.push({ type, fields });
    this.waiting();
  }

  send(type, ...fields) {
    this.socket.send(this.wire.encode(type, ...fields));
  }

  /** The first frame of a type, whatever else waits. */
  async next(type, test = () => true) {
    const find = () => this.frames.findIndex((frame) => frame.type === type && test(frame.fields));
    const arrived = (async () => {
      while (find() < 0) await new Promise((resolve) => (this.waiting = resolve));
    })();
    await within(`${type} on ${this.wire.name}; there are ${JSON.stringify(this.frames)}`, arrived);
    return this.frames.splice(find(), 1)[0].fields;
  }

  /** Sends a request and gives the fields of its one reply. */
  async ask(type, ...fields) {
    const request = ++this.requests;
    this.send(type, request, ...fields);
    const answers = { hello: "welcome", join: "joined", ping: "pong" };
    const reply = answers[type] ?? "ok";
    const isMine = (frame) => [reply, "error"].includes(frame.type) && frame.fields[0] === request;
    const arrived = (async () => {
      while (!this.frames.some(isMine)) await new Promise((resolve) => (this.waiting = resolve));
    })();
    await within(`the reply to ${type} on ${this.wire.name}; there are ${JSON.stringify(this.frames)}`, arrived);
    const [frame] = this.frames.splice(this.frames.findIndex(isMine), 1);
    if (frame.type === "error") throw Object.assign(new Error(`${type}: ${JSON.stringify(frame.fields)}`), { code: frame.fields[1] });
    return frame.fields;
  }

  /** Enters a room; gives the reply's fields by name. */
  async join(room, { since = null, producer = null, watch = "none", presence = null } = {}) {
    const fields = await this.ask("join", room, since, producer, true, this.wire.word("watch", watch), presence);
    const [, alias, member, position, head, recovery, , revision, occupancy] = fields;
    return { alias, member, position, head, recovery, revision, occupancy };
  }

  /** Publishes; gives the position. */
  async publish(alias, format, value, op = null) {
    const [, [kind, [position, , duplicate]]] = await this.ask("publish", alias, op, this.wire.payload(format, value));
    assert.equal(kind, this.wire.word("reply", "published"));
    return { position, duplicate };
  }

  /** The next entry of the log. */
  async event() {
    const [alias, [offset, , , user, op, payload]] = await this.next("event");
    return { alias, offset, user, op, content: this.wire.content(payload) };
  }

  close() {
    this.socket.close(1000);
    return within("the close", this.closed);
  }
}

const newRoom = () => `chat:${randomInt(2 ** 40)}`;

const cases = {
  async "hello is answered by welcome"(wire) {
    const peer = await Peer.connect(wire, newRoom());
    const [, session, resumed, user, resume, heartbeat, time, expires, limits] = peer.welcome;
    assert.match(session, /^[0-9a-f]{32}$/);
    assert.equal(resumed, false);
    assert.ok(user.startsWith("anon-") && resume.length > 0 && heartbeat > 0);
    assert.ok(Math.abs(time - Date.now()) < 60_000);
    assert.equal(expires, null);
    assert.ok(limits.every((limit) => limit > 0));
    const [, pongTime] = await peer.ask("ping");
    assert.ok(pongTime >= time);
    assert.equal(await peer.close(), 1000);
  },

  async "a publish is acknowledged with the position of its event"(wire) {
    const room = newRoom();
    const [writer, reader] = [await Peer.connect(wire, room), await Peer.connect(wire, room)];
    const { alias, position, recovery, occupancy } = await writer.join(room);
    assert.deepEqual([position[1], recovery, occupancy], [0, wire.word("recovery", "live"), 1]);
    assert.equal((await reader.join(room)).occupancy, 2);
    for (const [format, value, content] of [["text", "grüezi", "grüezi"], ["json", { a: [1, null] }, { a: [1, null] }], ["binary", Buffer.from([0, 255]), "00ff"]]) {
      const published = await writer.publish(alias, format, value);
      for (const peer of [writer, reader]) {
        const event = await peer.event();
        assert.deepEqual([event.offset, event.content], [published.position[1], content]);
        assert.equal(event.user, writer.welcome[3]);
      }
    }
    await Promise.all([writer.close(), reader.close()]);
  },

  async "a join since a position recovers all after it"(wire) {
    const room = newRoom();
    const writer = await Peer.connect(wire, room);
    const { alias, position } = await writer.join(room);
    for (let number = 1; number <= 20; number += 1) await writer.publish(alias, "text", `${number}`);
    const reader = await Peer.connect(wire, room);
    const joined = await reader.join(room, { since: [position[0], 5] });
    assert.deepEqual([joined.recovery, joined.position[1], joined.head[1]], [wire.word("recovery", "recovering"), 5, 20]);
    for (let number = 6; number <= 20; number += 1) {
      const event = await reader.event();
      assert.deepEqual([event.offset, event.content], [number, `${number}`]);
    }
    assert.deepEqual(await reader.next("caught_up"), [joined.alias, 20]);
    const stranger = await Peer.connect(wire, room);
    const reset = await stranger.join(room, { since: [position[0] + 1, 5] });
    assert.deepEqual([reset.recovery, reset.position[1]], [wire.word("recovery", "reset"), 20]);
    await Promise.all([writer.close(), reader.close(), stranger.close()]);
  },

  async "an op id takes effect once"(wire) {
    const room = newRoom();
    const peer = await Peer.connect(wire, room);
    const op = [randomInt(2 ** 47), 1];
    const { alias } = await peer.join(room, { producer: op });
    const first = await peer.publish(alias, "text", "once", op);
    const second = await peer.publish(alias, "text", "once", op);
    assert.deepEqual([first.duplicate, second.duplicate, second.position], [false, true, first.position]);
    await assert.rejects(peer.publish(alias, "text", "other", op), { code: 401 });
    assert.deepEqual((await peer.event()).op, op);
    await peer.close();
  },

  async "presence shows who comes, changes and goes"(wire) {
    const room = newRoom();
    const [watcher, comer] = [await Peer.connect(wire, room), await Peer.connect(wire, room)];
    const { alias } = await watcher.join(room, { watch: "members" });
    const { member } = await comer.join(room, { presence: wire.payload("json", { name: "Ada" }) });
    const change = async (kind, content) => {
      const [, , , changes] = await watcher.next("presence", ([, , , changes]) => changes.some(([id]) => id === member));
      const [, found, user, value] = changes.find(([id]) => id === member);
      assert.deepEqual([found, user, value && wire.content(value)], [wire.word("change", kind), comer.welcome[3], content]);
    };
    await change("present", { name: "Ada" });
    const [, [kind, page]] = await watcher.ask("presence", alias, [wire.word("action", "get"), null, 10]);
    assert.equal(kind, wire.word("reply", "members"));
    const [, occupancy, members, after] = page;
    assert.deepEqual([occupancy, members.length, after], [2, 2, null]);
    await comer.ask("presence", alias, [wire.word("action", "set"), wire.payload("text", "away")]);
    await change("present", "away");
    await comer.ask("leave", alias);
    await change("gone", null);
    await Promise.all([watcher.close(), comer.close()]);
  },

  async "a signal reaches the others and not its sender"(wire) {
    const room = newRoom();
    const [sender, first, second] = [await Peer.connect(wire, room), await Peer.connect(wire, room), await Peer.connect(wire, room)];
    const { alias, member } = await sender.join(room);
    await first.join(room);
    const { member: addressed } = await second.join(room);
    sender.send("signal", null, alias, null, "typing", wire.payload("json", true));
    await sender.ask("signal", alias, addressed, null, wire.payload("text", "psst"));
    for (const [peer, expected] of [[first, [true]], [second, [true, "psst"]]]) {
      for (const content of expected) {
        const [, from, user, key, payload] = await peer.next("signal");
        assert.deepEqual([from, user, wire.content(payload)], [member, sender.welcome[3], content]);
        assert.equal(key, content === true ? "typing" : null);
      }
      await peer.ask("ping");
      assert.deepEqual(peer.frames, []);
    }
    await sender.ask("ping");
    assert.deepEqual(sender.frames, []);
    await Promise.all([sender.close(), first.close(), second.close()]);
  },

  async "history is paged both ways"(wire) {
    const room = newRoom();
    const peer = await Peer.connect(wire, room);
    const { alias, position } = await peer.join(room);
    for (let number = 1; number <= 7; number += 1) await peer.publish(alias, "text", `${number}`);
    for (const [direction, start, offsets, next] of [
      ["backward", null, [5, 6, 7], true], ["backward", 5, [2, 3, 4], true], ["backward", 2, [1], false],
      ["forward", null, [1, 2, 3], true], ["forward", 6, [7], false],
    ]) {
      const from = start === null ? null : [position[0], start];
      const [, [kind, [entries, after]]] = await peer.ask("history", alias, from, wire.word("direction", direction), 3);
      assert.equal(kind, wire.word("reply", "history"));
      assert.deepEqual([entries.map(([offset]) => offset), after !== null], [offsets, next], `${direction} from ${start}`);
    }
    await peer.close();
  },

  async "a slip gets a typed error and the connection lives"(wire) {
    const peer = await Peer.connect(wire, newRoom());
    await assert.rejects(peer.join("No Such Name"), { code: 300 });
    await assert.rejects(peer.publish(4_711, "text", "x"), { code: 302 });
    for (const [message, code] of [[wire.trailing, 100], [wire.unknown, 101]]) {
      peer.socket.send(message);
      const [request, found, text, retry] = await peer.next("error");
      assert.deepEqual([request, found, retry], [5, code, wire.word("retry", "never")]);
      assert.ok(text.length > 0);
    }
    await peer.ask("ping");
    await peer.close();
  },

  async "a session is resumed by its token"(wire) {
    const room = newRoom();
    const [peer, watcher] = [await Peer.connect(wire, room), await Peer.connect(wire, room)];
    const { member, position, alias } = await peer.join(room);
    const seen = await watcher.join(room);
    peer.socket.terminate();
    await watcher.publish(seen.alias, "text", "meanwhile");
    const back = await Peer.connect(wire, room, peer.welcome[4]);
    const [, session, resumed, user] = back.welcome;
    assert.deepEqual([session, resumed, user], [peer.welcome[1], true, peer.welcome[3]]);
    const again = await back.join(room, { since: position });
    assert.deepEqual([again.member, again.alias, again.occupancy], [member, alias, 2]);
    assert.equal((await back.event()).content, "meanwhile");
    await Promise.all([back.close(), watcher.close()]);
  },

  async "several frames travel in a batch"(wire) {
    const room = newRoom();
    const peer = await Peer.connect(wire, room);
    const frame = (type, ...fields) => wire.decode(Buffer.from(wire.encode(type, ...fields)), wire === msgpack);
    peer.requests = 2;
    peer.send("batch", [frame("join", 1, room), frame("ping", 2)]);
    assert.equal((await peer.next("joined"))[0], 1);
    assert.equal((await peer.next("pong"))[0], 2);
    await peer.close();
  },
};

async function bothInOneRoom() {
  const room = newRoom();
  const [binary, text] = [await Peer.connect(msgpack, room), await Peer.connect(json, room)];
  const [{ alias }, { alias: same }] = [await binary.join(room), await text.join(room)];
  assert.equal(alias, same);
  await binary.publish(alias, "binary", Buffer.from([1, 2, 3]));
  await text.publish(alias, "json", { from: "json" });
  for (const peer of [binary, text]) {
    assert.deepEqual([(await peer.event()).content, (await peer.event()).content], ["010203", { from: "json" }]);
  }
  await Promise.all([binary.close(), text.close()]);
}

const inEachEncoding = [msgpack, json].flatMap((wire) => Object.entries(cases).map(([name, body]) => [`${wire.name}: ${name}`, () => body(wire)]));
await run([
  ["the placement key matches the vectors", async () => assert.equal(placementKey("chat:lobby"), "1bc5c3481e8d9d9c")],
  ...inEachEncoding,
  ["both encodings share a room", bothInOneRoom],
]);
