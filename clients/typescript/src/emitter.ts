// Typed events. A listener that throws is reported as an uncaught error and disturbs neither the other listeners nor the connection.

/** Names of events and what comes with them. */
type EventMap = { [name: string]: unknown };

/** Something to listen to. */
export class Emitter<E extends EventMap> {
  readonly #listeners = new Map<keyof E, Set<(event: never) => void>>();

  /** Calls `listener` for every event of that name; the function that comes back ends it. */
  on<N extends keyof E>(name: N, listener: (event: E[N]) => void): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => this.off(name, listener);
  }

  /** Ends what {@link on} began. */
  off<N extends keyof E>(name: N, listener: (event: E[N]) => void): void {
    this.#listeners.get(name)?.delete(listener);
  }

  protected emit<N extends keyof E>(name: N, event: E[N]): void {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        (listener as (event: E[N]) => void)(event);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
