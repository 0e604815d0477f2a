// The others' pointers over the conversation. Places are shares of its width and height, so that they mean the same on every screen.

import type { Room, Signal } from "../src/index.js";
import { byId, fromTemplate, paint, part, throttled } from "./dom.js";
import type { People } from "./people.js";

export const CURSOR_KEY = "cursor";

interface Cursor {
  readonly shown: HTMLElement;
  timer: ReturnType<typeof setTimeout>;
}

type Place = { x: number; y: number } | null;

export class Cursors {
  readonly #stage = byId("stage");
  readonly #layer = byId("cursors");
  readonly #people: People;
  readonly #cursors = new Map<number, Cursor>();

  /** `room` gives the room to tell, if there is one now. */
  constructor(people: People, room: () => Room | undefined) {
    this.#people = people;
    const tell = throttled<Place>(TELL_MS, (place) => room()?.signal(place, { key: CURSOR_KEY }));
    this.#stage.addEventListener("pointermove", (event) => event.pointerType !== "touch" && tell(this.#place(event)), { passive: true });
    this.#stage.addEventListener("pointerleave", () => tell(null));
  }

  received({ from, user, payload }: Signal): void {
    const place = placeOf(payload);
    if (!place) return this.forget(from);
    const cursor = this.#cursors.get(from) ?? this.#add(from);
    if (!cursor) return;
    const person = this.#people.person(from, user);
    part(cursor.shown, ".cursor-name").textContent = person.name;
    paint(cursor.shown, person.hue);
    cursor.shown.style.setProperty("--x", String(place.x));
    cursor.shown.style.setProperty("--y", String(place.y));
    clearTimeout(cursor.timer);
    cursor.timer = setTimeout(() => this.forget(from), IDLE_MS);
  }

  forget(member: number): void {
    const cursor = this.#cursors.get(member);
    if (!cursor) return;
    clearTimeout(cursor.timer);
    cursor.shown.remove();
    this.#cursors.delete(member);
  }

  clear(): void {
    for (const member of [...this.#cursors.keys()]) this.forget(member);
  }

  #add(from: number): Cursor | undefined {
    if (this.#cursors.size >= CURSORS_MAX) return undefined;
    const shown = fromTemplate("cursor-template");
    this.#layer.append(shown);
    const cursor = { shown, timer: setTimeout(() => {}) };
    this.#cursors.set(from, cursor);
    return cursor;
  }

  #place(event: PointerEvent): Place {
    const { left, top, width, height } = this.#stage.getBoundingClientRect();
    const share = (value: number) => Math.round(Math.min(1, Math.max(0, value)) * 10_000) / 10_000;
    return { x: share((event.clientX - left) / width), y: share((event.clientY - top) / height) };
  }
}

function placeOf(payload: unknown): Place {
  const { x, y } = (payload ?? {}) as { x?: unknown; y?: unknown };
  const valid = [x, y].every((share) => typeof share === "number" && share >= 0 && share <= 1);
  return valid ? { x: x as number, y: y as number } : null;
}

const TELL_MS = 60;
const IDLE_MS = 8_000;
const CURSORS_MAX = 40;
