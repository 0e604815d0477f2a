// How long to wait before trying again: full jitter, so that clients that were cut together don't come back together.

/** Bounds of the wait. */
export interface BackoffOptions {
  /** The first wait is between 0 and this, in milliseconds; it doubles with every further one. Default 500. */
  readonly baseMs?: number;
  /** No wait is longer, in milliseconds, unless the server asked for it. Default 30,000. */
  readonly capMs?: number;
}

/** Counts attempts and draws the waits between them. */
export class Backoff {
  readonly #baseMs: number;
  readonly #capMs: number;
  readonly #random: () => number;
  #attempts = 0;

  /** `random` gives numbers from 0 to below 1. */
  constructor(options: BackoffOptions = {}, random: () => number = Math.random) {
    this.#baseMs = options.baseMs ?? 500;
    this.#capMs = options.capMs ?? 30_000;
    this.#random = random;
  }

  /** The next wait, in milliseconds. With `hintMs`, what the server asked for: that long at least, and a jitter of the first step on top. */
  next(hintMs?: number): number {
    if (hintMs !== undefined) return bounded(hintMs + this.#random() * this.#baseMs);
    // Beyond 2^30 the doubling has met any cap long ago.
    const ceiling = Math.min(this.#capMs, this.#baseMs * 2 ** Math.min(this.#attempts, 30));
    this.#attempts += 1;
    return this.#random() * ceiling;
  }

  /**
   * The next wait before connecting, in milliseconds: what the server asked for, and {@link next} on top. Others were asked the same, and a server that
   * asks again and again has too many of them.
   */
  nextMore(askedMs = 0): number {
    return bounded(askedMs + this.next());
  }

  /** No wait for the first attempt, and {@link next} for those after it: the retry class `now`. */
  nextAfterFirst(): number {
    if (this.#attempts > 0) return this.next();
    this.#attempts = 1;
    return 0;
  }

  /** It worked for so long; when that was no mere moment, the waits start over. So what fails again and again right after it began is not hammered. */
  worked(durationMs: number): void {
    if (durationMs >= STABLE_MS) this.reset();
  }

  /** Start over. */
  reset(): void {
    this.#attempts = 0;
  }
}

/** A timer of JavaScript that is set to more fires at once. */
function bounded(waitMs: number): number {
  return Math.min(waitMs, 2 ** 31 - 1);
}

const STABLE_MS = 5_000;
