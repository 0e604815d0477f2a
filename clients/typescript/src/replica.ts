// A copy of what a room keeps by key, made of pages and of changes that arrive beside them in any order: what is newer counts.

import { comparePositions, type Position } from "./position.js";

interface Cell<T> {
  readonly version: Position;
  /** Undefined for a key that is deleted: a page that is on its way may still show it. */
  readonly value: T | undefined;
}

export class Replica<T> {
  readonly #cells = new Map<string, Cell<T>>();
  #complete = false;

  /** Whether the last page has come. */
  get complete(): boolean {
    return this.#complete;
  }

  /** Forgets everything. */
  clear(): void {
    this.#cells.clear();
    this.#complete = false;
  }

  /** Takes a value, or its end, unless something newer is known. Gives whether it was taken. */
  take(key: string, version: Position, value: T | undefined): boolean {
    const known = this.#cells.get(key);
    if (known && comparePositions(known.version, version) >= 0) return false;
    if (value === undefined && this.#complete) this.#cells.delete(key);
    else this.#cells.set(key, { version, value });
    return true;
  }

  /** The last page has come. */
  finish(): void {
    this.#complete = true;
    for (const [key, { value }] of this.#cells) {
      if (value === undefined) this.#cells.delete(key);
    }
  }

  get(key: string): T | undefined {
    return this.#cells.get(key)?.value;
  }

  /** By ascending key, as the server sorts them: by bytes of UTF-8, which is by code points. */
  values(): T[] {
    const known = [...this.#cells].filter((entry): entry is [string, Cell<T> & { value: T }] => entry[1].value !== undefined);
    return known.sort(([a], [b]) => compareText(a, b)).map(([, { value }]) => value);
  }
}

function compareText(a: string, b: string): number {
  const [left, right] = [[...a], [...b]];
  const index = left.findIndex((character, at) => character !== right[at]);
  if (index < 0) return left.length - right.length;
  return left[index]!.codePointAt(0)! - (right[index]?.codePointAt(0) ?? -1);
}
