// Liveness of one connection: pings while nothing else goes out, and gives up when nothing came back.

/** What a heartbeat does to its connection. */
export interface HeartbeatActions {
  ping(): void;
  giveUp(): void;
}

/**
 * Pings when nothing was sent, or nothing received, for one heartbeat. Gives up when nothing was received for two and a ping has been waiting for one of
 * them: a timer that slept with its machine or its tab proves nothing alone.
 */
export class Heartbeat {
  readonly #heartbeatMs: number;
  readonly #actions: HeartbeatActions;
  #sentMs = now();
  #receivedMs = now();
  /** When the oldest ping without a sign of life after it went out. */
  #pingedMs: number | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(heartbeatMs: number, actions: HeartbeatActions) {
    this.#heartbeatMs = heartbeatMs;
    this.#actions = actions;
    this.#schedule();
  }

  sent(): void {
    this.#sentMs = now();
  }

  received(): void {
    this.#receivedMs = now();
    this.#pingedMs = undefined;
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  #tick(): void {
    const at = now();
    if (this.#pingedMs !== undefined && at >= this.#giveUpMs(this.#pingedMs)) return this.#actions.giveUp();
    if (at >= this.#pingDueMs()) {
      this.#pingedMs ??= at;
      this.#sentMs = at;
      this.#actions.ping();
    }
    this.#schedule();
  }

  #schedule(): void {
    const due = this.#pingedMs === undefined ? this.#pingDueMs() : Math.min(this.#pingDueMs(), this.#giveUpMs(this.#pingedMs));
    this.#timer = setTimeout(() => this.#tick(), Math.max(1, due - now()));
  }

  #pingDueMs(): number {
    const idleSince = this.#pingedMs === undefined ? Math.min(this.#sentMs, this.#receivedMs) : this.#sentMs;
    return idleSince + this.#heartbeatMs;
  }

  #giveUpMs(pingedMs: number): number {
    return Math.max(pingedMs + this.#heartbeatMs, this.#receivedMs + 2 * this.#heartbeatMs);
  }
}

function now(): number {
  return performance.now();
}
