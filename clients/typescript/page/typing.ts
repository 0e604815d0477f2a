// Who is writing: told by a signal while one writes, and forgotten when none has come for a while.

import type { Room, Signal } from "../src/index.js";
import { byId, throttled } from "./dom.js";
import type { People } from "./people.js";

export const TYPING_KEY = "typing";

export class Typing {
  readonly #line = byId("typing");
  readonly #people: People;
  readonly #writing = new Map<number, { name: string; timer: ReturnType<typeof setTimeout> }>();
  readonly #tell = throttled<Room>(TELL_MS, (room) => room.signal({ typing: true }, { key: TYPING_KEY }));
  #told = false;

  constructor(people: People) {
    this.#people = people;
  }

  /** The own text changed. */
  wrote(room: Room | undefined, text: string): void {
    if (!room) return;
    if (text.trim() === "") return this.stopped(room);
    this.#told = true;
    this.#tell(room);
  }

  /** The own text was sent or taken back. */
  stopped(room: Room): void {
    if (!this.#told) return;
    this.#told = false;
    room.signal({ typing: false }, { key: TYPING_KEY });
  }

  received({ from, user, payload }: Signal): void {
    const typing = (payload as { typing?: unknown } | null)?.typing === true;
    this.forget(from);
    if (!typing || this.#writing.size >= WRITING_MAX) return;
    const timer = setTimeout(() => this.forget(from), FORGET_MS);
    this.#writing.set(from, { name: this.#people.person(from, user).name, timer });
    this.#show();
  }

  /** A member has sent its message, or is gone. */
  forget(member: number): void {
    clearTimeout(this.#writing.get(member)?.timer);
    if (this.#writing.delete(member)) this.#show();
  }

  clear(): void {
    for (const member of [...this.#writing.keys()]) this.forget(member);
  }

  #show(): void {
    const names = [...this.#writing.values()].map(({ name }) => name);
    this.#line.textContent = sentence(names);
  }
}

function sentence([first, second, ...rest]: string[]): string {
  if (first === undefined) return "";
  if (second === undefined) return `${first} is writing`;
  return rest.length === 0 ? `${first} and ${second} are writing` : "Several people are writing";
}

const TELL_MS = 1_500;
const FORGET_MS = 4_000;
const WRITING_MAX = 50;
