// What is watched of a room, as the application wants it and as the server knows it. A join says it; where it has changed since the join left, a
// request of its own does, as soon as the room is joined.

import { RoomfulError } from "./errors.js";
import { RETRY_MS } from "./keyed.js";

export interface WatchedBy<T> {
  /** Asks the server to send this from now on; undefined without a membership. */
  ask(value: T): Promise<unknown> | undefined;
  /** The copy is to be made anew: at once, or when the room is joined. */
  renew(isJoined: boolean): void;
  /** To be said again: the server had no time, and somebody relies on it. */
  again(): void;
}

export class Watched<T> {
  readonly #owner: WatchedBy<T>;
  #wanted: T;
  /** What the join said, or the server agreed to since. */
  #agreed: T;
  /** The newest request, of this membership. */
  #newest: object | undefined;

  constructor(value: T, owner: WatchedBy<T>) {
    this.#wanted = this.#agreed = value;
    this.#owner = owner;
  }

  get value(): T {
    return this.#wanted;
  }

  /** Whether the join was answered that said something else. */
  get isLate(): boolean {
    return this.#wanted !== this.#agreed;
  }

  /** What a join says. */
  joining(): T {
    return (this.#agreed = this.#wanted);
  }

  /** The membership is over: the next join says it. */
  interrupted(): void {
    this.#newest = undefined;
  }

  /**
   * Watches this from now on; without a membership, the next join says it. A server that refuses goes on as before, and so does the copy, unless
   * somebody relies on the change and it may help to ask again.
   * @throws RoomfulError
   */
  async say(value: T, isReliedOn: () => boolean): Promise<void> {
    this.#wanted = value;
    const asked = this.#owner.ask(value);
    const request = (this.#newest = asked && {});
    this.#owner.renew(asked !== undefined);
    if (!asked) return;
    try {
      await asked;
      if (request === this.#newest) this.#agreed = value;
    } catch (error) {
      if (!(error instanceof RoomfulError) || error.code === 902) return;
      // A later request says more, and so does the next join.
      if (request === this.#newest) this.#refused(error, isReliedOn());
      throw error;
    }
  }

  #refused(error: RoomfulError, isReliedOn: boolean): void {
    const request = this.#newest;
    if (isReliedOn && error.retry !== "never") {
      setTimeout(() => request === this.#newest && this.#owner.again(), error.afterMs ?? RETRY_MS);
    } else {
      this.#wanted = this.#agreed;
      this.#owner.renew(true);
    }
  }
}
