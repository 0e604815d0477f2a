// The life of a connection: opening, losing, coming back, and what ends it.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";

import { WebSocket } from "ws";

import { Client, placementKey, type ClientEvents, type TokenReason } from "../src/index.js";
import { VERSION } from "../src/version.js";
import { collect, event, FakeServer, WELCOME, withServer } from "./fake-server.js";

type StateEvent = ClientEvents["state"];

/** Waits for a state and gives its event. */
async function become(client: Client, state: string): Promise<StateEvent> {
  if (client.state === state) return { state: client.state };
  return new Promise((resolve) => {
    const off = client.on("state", (event) => {
      if (event.state !== state) return;
      off();
      resolve(event);
    });
  });
}

test("hello and all joins leave before the welcome, with the first room's key in the address", withServer(async (server) => {
  const client = server.client();
  client.join("chat:lobby");
  client.join("doc:spec");
  const peer = await server.peer();
  assert.equal(peer.path, `/v1/ws?k=${placementKey("chat:lobby")}`);
  const hello = await peer.expect("hello");
  assert.deepEqual([hello.token, hello.resume, hello.agent], [null, null, `roomful-typescript/${VERSION}`]);
  assert.equal((await peer.expect("join")).room, "chat:lobby");
  assert.equal((await peer.expect("join")).room, "doc:spec");
}));

test("the default agent names the package's version", () => {
  const manifest = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as { version: string };
  assert.equal(VERSION, manifest.version);
});

test("a client that waits for nothing but the connection gets its session", withServer(async (server) => {
  const client = server.client({ encoding: "json" });
  const connected = client.connect();
  const peer = await server.peer();
  assert.equal(peer.encoding, "json");
  await peer.welcome();
  assert.equal((await connected).user, "ada");
}));

test("after a cut the client comes back with its resume token and its position", withServer(async (server) => {
  const client = server.client();
  const room = client.join("chat:lobby");
  const events = collect(room, "event");
  const first = await server.peer();
  await first.welcome();
  await first.joined();
  first.send(event(1), event(2));
  assert.equal((await events.take("event")).payload, "n-1");
  assert.equal((await events.take("event")).payload, "n-2");
  first.socket.terminate();

  const second = await server.peer();
  assert.equal((await second.welcome({ resumed: true })).resume, "resume-1");
  assert.deepEqual((await second.joined()).since, { epoch: 7, offset: 2 });
  second.send(event(3));
  assert.equal((await events.take("event")).payload, "n-3");
  assert.equal(client.session?.resumed, true);
}));

test("what a full server asks for is waited for, where the platform shows it", async () => {
  const server = createServer().on("upgrade", (_request, socket) => {
    socket.end("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nConnection: close\r\n\r\n");
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  const client = new Client(`ws://127.0.0.1:${port}`, { webSocket: WebSocket, backoff: { baseMs: 2 } });
  client.join("chat:lobby");
  const { retryInMs, error } = await become(client, "waiting");
  assert.deepEqual([error?.code, error?.retry, error?.afterMs], [902, "after_ms", 7_000]);
  assert.ok(retryInMs! >= 7_000 && retryInMs! <= 7_002, `waits ${retryInMs} ms`);
  await client.close();
  server.close();
});

test("goaway's time is waited for, and its token is brought", withServer(async (server) => {
  const client = server.client();
  await Promise.all([client.connect(), server.peer().then(async (peer) => {
    await peer.welcome();
    peer.send({ type: "goaway", reconnectAfterMs: 60, resume: "resume-2" });
    peer.socket.close(1012, "restart");
  })]);
  const { retryInMs, error } = await become(client, "waiting");
  const startMs = performance.now();
  assert.equal(error?.name, "restart");
  assert.ok(retryInMs! >= 60 && retryInMs! <= 62, `waits ${retryInMs} ms`);
  const hello = await (await server.peer()).expect("hello");
  assert.ok(performance.now() - startMs >= 58);
  assert.equal(hello.resume, "resume-2");
}));

test("a close with the retry class never ends the client, with the reason as a typed error", withServer(async (server) => {
  for (const [code, name] of [[4409, "replaced"], [1008, "error_budget_spent"], [1000, "normal"]] as const) {
    const client = server.client();
    const room = client.join("chat:lobby");
    const publish = assert.rejects(room.publish("unheard"), { code, name, retry: "never" });
    const peer = await server.peer();
    await peer.welcome();
    peer.socket.close(code);
    assert.equal((await become(client, "closed")).error?.name, name);
    await publish;
    await assert.rejects(client.connect(), { name });
    assert.throws(() => client.join("chat:other"), { name });
    assert.equal(room.state, "left");
  }
}));

test("a close that says now is followed at once, and by waits if it says so again", withServer(async (server) => {
  const client = server.client({ backoff: { baseMs: 1_000_000, capMs: 1_000_000 } });
  const states = collect(client, "state");
  void client.connect().catch(() => {});
  for (const wanted of [(ms: number) => ms === 0, (ms: number) => ms > 0]) {
    const peer = await server.peer();
    await peer.welcome();
    peer.socket.close(4431);
    let state = await states.take("state");
    while (state.state !== "waiting") state = await states.take("state");
    assert.ok(wanted(state.retryInMs!), `waits ${state.retryInMs} ms`);
  }
}));

test("a refused token is replaced by a fresh one before the next attempt", withServer(async (server) => {
  const reasons: TokenReason[] = [];
  const client = server.client({
    getToken: ({ reason }) => {
      reasons.push(reason);
      return `token-${reasons.length}`;
    },
  });
  const connected = client.connect();
  const first = await server.peer();
  const hello = await first.expect("hello");
  assert.equal(hello.token, "token-1");
  first.send({ type: "error", request: hello.request, code: 201, text: "the token has expired", retry: "refresh", afterMs: null, current: [] });
  first.socket.close(4401);
  assert.equal((await (await server.peer()).welcome()).token, "token-2");
  await connected;
  assert.deepEqual(reasons, ["connect", "refused"]);
}));

test("a refused token without a way to get another one ends the client", withServer(async (server) => {
  const client = server.client();
  const connected = assert.rejects(client.connect(), { code: 200, name: "invalid_token", message: "a token is needed" });
  const peer = await server.peer();
  const { request } = await peer.expect("hello");
  peer.send({ type: "error", request, code: 200, text: "a token is needed", retry: "refresh", afterMs: null, current: [] });
  peer.socket.close(4401);
  await connected;
}));

test("a hello that is refused for a while is repeated after the time that the server names", withServer(async (server) => {
  const client = server.client();
  void client.connect();
  const peer = await server.peer();
  const { request } = await peer.expect("hello");
  peer.send({ type: "error", request, code: 501, text: "too many connections", retry: "after_ms", afterMs: 40, current: [] });
  peer.socket.close(1013);
  const { retryInMs, error } = await become(client, "waiting");
  assert.equal(error?.name, "overloaded");
  assert.ok(retryInMs! >= 40 && retryInMs! <= 42);
  await (await server.peer()).welcome();
  await client.connect();
}));

test("a token that expires is refreshed on the living connection, also when it takes two attempts to get one", withServer(async (server) => {
  const reasons: TokenReason[] = [];
  const client = server.client({
    getToken: ({ reason }) => {
      reasons.push(reason);
      if (reasons.length === 2) throw new Error("the network failed");
      return `token-${reasons.length}`;
    },
  });
  const errors = collect(client, "error");
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ expiresMs: 10 });
  peer.send({ type: "token_expiring", expiresMs: Date.now() + 60_000 });
  assert.equal((await errors.take("error")).name, "token_unavailable");
  const refresh = await peer.expect("refresh");
  assert.equal(refresh.token, "token-3");
  peer.send({ type: "ok", request: refresh.request, reply: { kind: "refreshed", expiresMs: 99 } });
  assert.deepEqual(reasons, ["connect", "expiring", "expiring"]);
  const pong = client.ping();
  const ping = await peer.frames.take("ping");
  peer.send({ type: "pong", request: (ping as { request: number }).request, timeMs: 0 });
  await pong;
  assert.equal(client.session?.expiresMs, 99);
}));

test("a server that answers nothing is given up, and tried again", withServer(async (server) => {
  const client = server.client({ connectTimeoutMs: 300 });
  void client.connect();
  const silent = await server.peer();
  assert.equal((await become(client, "waiting")).error?.name, "request_timeout");
  await silent.closed;
  await (await server.peer()).welcome();
  await client.connect();
}));

test("an idle client pings, and measures the round trip", withServer(async (server) => {
  const client = server.client();
  const rtt = collect(client, "rtt");
  void client.connect();
  const peer = await server.peer();
  await peer.welcome({ heartbeatMs: 100 });
  const ping = await peer.frames.take("ping");
  assert.equal(ping.type, "ping");
  peer.send({ type: "pong", request: (ping as { request: number }).request, timeMs: 0 });
  assert.ok((await rtt.take("rtt")) > 0);
  assert.ok(client.rttMs! > 0);
}));

test("a connection on which nothing comes back for two heartbeats is given up", withServer(async (server) => {
  const client = server.client();
  void client.connect();
  const silent = await server.peer();
  await silent.welcome({ heartbeatMs: 100 });
  const { error } = await become(client, "waiting");
  assert.equal(error?.name, "connection_lost");
  await (await server.peer()).welcome();
  await client.connect();
}));

test("a message that is no frame costs the connection and nothing else", withServer(async (server) => {
  const client = server.client();
  const errors = collect(client, "error");
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  await client.connect();
  peer.socket.send(new Uint8Array([0x92, 0x22]));
  assert.equal((await errors.take("error")).name, "protocol_violation");
  await (await server.peer()).welcome();
  await client.connect();
}));

test("a frame type of a later version is stepped over, alone and in a batch", withServer(async (server) => {
  const client = server.client({ encoding: "json" });
  const room = client.join("chat:lobby");
  const events = collect(room, "event");
  const peer = await server.peer();
  await peer.welcome();
  await peer.joined();
  peer.socket.send('["surprise",1,2,3]');
  peer.socket.send('["batch",[["surprise"],["event",1,[1,1000,"publish","bob",null,["text","n-1"],"more"],"more"]]]');
  assert.equal((await events.take("event")).payload, "n-1");
}));

test("an error without a request is told to the application", withServer(async (server) => {
  const client = server.client();
  const errors = collect(client, "error");
  void client.connect();
  const peer = await server.peer();
  await peer.welcome();
  peer.send({ type: "error", request: null, code: 999, text: "news", retry: "never", afterMs: null, current: [] });
  const { code, name, message } = await errors.take("error");
  assert.deepEqual([code, name, message], [999, "error_999", "news"]);
}));

test("a client that is offline stays away until it is told to come back", withServer(async (server) => {
  const client = server.client();
  const room = client.join("chat:lobby");
  const first = await server.peer();
  await first.welcome();
  await first.joined();
  await room.whenJoined();
  client.offline();
  await first.closed;
  assert.deepEqual([client.state, room.state, room.signal("lost")], ["offline", "waiting", false]);
  const published = room.publish("queued");
  client.online();
  const second = await server.peer();
  await second.welcome();
  await second.joined();
  await second.acknowledged(1);
  assert.equal((await published).position.offset, 1);
}));

test("joins beyond what the server takes before its welcome wait for that", withServer(async (server) => {
  const client = server.client();
  for (let index = 0; index < 10; index += 1) client.join(`chat:${index}`, { presence: "x".repeat(4_000) });
  const peer = await server.peer();
  const { request } = await peer.expect("hello");
  for (let index = 0; index < 9; index += 1) assert.equal((await peer.expect("join")).room, `chat:${index}`);
  assert.equal(peer.frames.size, 0);
  peer.send({ ...WELCOME, request });
  assert.equal((await peer.expect("join")).room, "chat:9");
}));

test("close leaves the rooms, says goodbye with 1000, and rejects what has no answer", withServer(async (server) => {
  const client = server.client();
  const room = client.join("chat:lobby");
  const peer = await server.peer();
  await peer.welcome();
  await peer.joined();
  await room.whenJoined();
  const unanswered = assert.rejects(room.publish("unheard"), { code: 903, name: "closed" });
  await client.close();
  await unanswered;
  await peer.expect("publish");
  await peer.expect("leave");
  assert.equal(await peer.closed, 1000);
  assert.equal(client.state, "closed");
}));

test("without a WebSocket constructor the client says what to do", (t) => {
  // Node 22 and later have one of their own.
  const platform = globalThis as { WebSocket?: unknown };
  const original = platform.WebSocket;
  delete platform.WebSocket;
  t.after(() => {
    if (original) platform.WebSocket = original;
  });
  assert.throws(() => new Client("ws://127.0.0.1:1"), /pass one/);
});

test("an address that is none ends the client with a typed error", async () => {
  const server = await FakeServer.start();
  const client = new Client("not an address", { webSocket: (await import("ws")).WebSocket });
  await assert.rejects(client.connect(), { name: "bad_value" });
  await server[Symbol.asyncDispose]();
});
