// The language of the cases: variables, positions, and fields of which none may be left unread.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";

import { parsePosition, type Position } from "../../src/index.js";

export type Step = { readonly [field: string]: unknown };

/** What a client's name stands for in a variable. */
export interface NamedClient {
  readonly user: string;
  readonly member: number;
}

export class Variables {
  readonly #saved = new Map<string, unknown>([["run", randomBytes(6).toString("hex")]]);
  readonly #client: (name: string) => NamedClient;

  constructor(client: (name: string) => NamedClient) {
    this.#client = client;
  }

  save(name: string, value: unknown): void {
    this.#saved.set(name, value);
  }

  /** The value with its variables filled in. `i` counts repetitions. */
  fill(value: unknown, i?: number): unknown {
    if (typeof value === "string") return this.#fillText(value, i);
    if (Array.isArray(value)) return value.map((item) => this.fill(item, i));
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, this.fill(inner, i)]));
  }

  #fillText(text: string, i: number | undefined): unknown {
    if (ALONE.test(text)) return this.#look(text.slice(1), i);
    return text.replace(VARIABLE, (variable) => String(this.#look(variable.slice(1), i)));
  }

  #look(name: string, i: number | undefined): unknown {
    if (name === "i" && i !== undefined) return i;
    const [client, of] = name.split(".") as [string, "user" | "member" | undefined];
    if (of !== undefined) return this.#client(client)[of];
    assert.ok(this.#saved.has(name), `$${name} is no variable`);
    return this.#saved.get(name);
  }
}

const VARIABLE = /\$[a-z][a-z0-9_]*(\.(user|member))?/g;
const ALONE = new RegExp(`^${VARIABLE.source}$`);

/** The fields of a step. */
export class Fields {
  readonly #step: Step;
  readonly #variables: Variables;
  readonly #unread: Set<string>;
  readonly #given = new Map<string, unknown>();

  constructor(step: Step, variables: Variables) {
    this.#step = step;
    this.#variables = variables;
    this.#unread = new Set(Object.keys(step));
  }

  optional<T>(name: string): T | undefined {
    return this.#raw(name, (value) => this.#variables.fill(value)) as T | undefined;
  }

  required<T>(name: string): T {
    const value = this.optional<T>(name);
    assert.notEqual(value, undefined, `the field ${name} is missing`);
    return value as T;
  }

  /** The field once for each of so many repetitions. */
  repeated<T>(name: string, count: number): T[] {
    const raw = this.#raw(name, (value) => value);
    return Array.from({ length: count }, (_, index) => this.#variables.fill(raw, index + 1) as T);
  }

  /** A position, as text or relative to another one. */
  position(name: string): Position | undefined {
    const value = this.optional(name);
    return value === undefined ? undefined : positionOf(value);
  }

  /** The values of a list; relative positions among them as text. */
  values(name: string): unknown[] {
    const values = this.required<unknown[]>(name);
    return values.map((value) => {
      if (typeof value !== "object" || value === null || !("of" in value)) return value;
      const { epoch, offset } = positionOf(value);
      return `${epoch}-${offset}`;
    });
  }

  /** Compares, where the step has the field. */
  check(name: string, actual: unknown): void {
    const wanted = this.#given.get(name) ?? this.optional(name);
    if (wanted !== undefined) assert.deepEqual(actual, wanted, `${name} is ${JSON.stringify(actual)}, not ${JSON.stringify(wanted)}`);
  }

  /** Puts a field back that was read too early. */
  give(name: string, value: unknown): void {
    this.#given.set(name, value);
  }

  /** Keeps a value under the name that the step gives, if it does. */
  save(value: unknown): void {
    const name = this.#raw("save", (name) => name) as string | undefined;
    if (name !== undefined) this.#variables.save(name, value);
  }

  /** A field that nobody has read is one that this runner doesn't know. */
  finish(): void {
    assert.deepEqual([...this.#unread], [], "fields that are not known here");
  }

  #raw(name: string, fill: (value: unknown) => unknown): unknown {
    this.#unread.delete(name);
    return name in this.#step ? fill(this.#step[name]) : undefined;
  }
}

function positionOf(value: unknown): Position {
  if (typeof value === "string") {
    const position = parsePosition(value);
    assert.ok(position, `${value} is no position`);
    return position;
  }
  const { of, epoch = 0, offset = 0, ...others } = value as { of: string; epoch?: number; offset?: number };
  assert.deepEqual(others, {}, "a position has `of`, `epoch` and `offset`");
  const base = positionOf(of);
  return { epoch: base.epoch + epoch, offset: base.offset + offset };
}
