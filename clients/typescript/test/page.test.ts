// What the page makes of anything that others may publish or set: names, colours and messages.

import assert from "node:assert/strict";
import { test } from "node:test";

import { messageOf, publication } from "../page/message.js";
import { cleanName, HUES, NAME_LENGTH_MAX, personOf, randomPerson } from "../page/person.js";
import { Payload, type PayloadLike, type RoomEvent } from "../src/index.js";

function eventOf(value: PayloadLike): RoomEvent {
  const raw = Payload.from(value);
  return { payload: raw.value, format: raw.format, raw, position: { epoch: 7, offset: 1 }, timeMs: 1_000, kind: "publish", user: "bob", op: null, own: false, recovered: false };
}

test("a name is short and without what could disguise it", () => {
  assert.equal(cleanName("  Ada \n Lovelace\u0000 "), "Ada Lovelace");
  assert.equal(cleanName("\u202eevil\u2066"), "evil");
  assert.equal(cleanName("\u200b \t"), undefined);
  assert.equal(Array.from(cleanName("🦊".repeat(100))!).length, NAME_LENGTH_MAX);
});

test("whatever somebody set as presence becomes a name and a colour", () => {
  assert.deepEqual(personOf({ name: "Ada", hue: 25 }, "u1"), { name: "Ada", hue: 25 });
  for (const value of [undefined, null, 5, "Ada", [], { name: 5, hue: "red" }, { name: "", hue: -1 }, { hue: Infinity }, { hue: NaN }]) {
    const { name, hue } = personOf(value, "u1");
    assert.equal(name, "u1");
    assert.ok(Number.isInteger(hue) && hue >= 0 && hue < 360, String(hue));
  }
  const { name, hue } = randomPerson();
  assert.ok(cleanName(name) === name && (HUES as readonly number[]).includes(hue));
});

test("a message survives the way, and anything else is shown as what it is", () => {
  const { id, by, user, text } = messageOf(eventOf(publication("m-1", { name: "Ada", hue: 25 }, "hello")));
  assert.deepEqual([id, by, user, text], ["m-1", { name: "Ada", hue: 25 }, "bob", "hello"]);
  for (const [value, shown] of [
    ["plain", "plain"],
    [{ text: 5 }, '{"text":5}'],
    [null, "null"],
    [[1, 2], "[1,2]"],
    [new Uint8Array(3), "3 bytes of binary"],
    [new Payload("msgpack", new Uint8Array([0xc1])), "1 bytes of msgpack"],
  ] as const) {
    assert.equal(messageOf(eventOf(value)).text, shown);
  }
  assert.equal(messageOf(eventOf("x".repeat(100_000))).text.length, 8_000);
});
