// Waiting for what a step needs, and no longer than it may take.

/** How long a step may take, unless it says otherwise. */
export const DEADLINE_MS = 5_000;

/** The outcome of a promise that comes in time. */
export async function within<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took longer than ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
