// Runs named cases one after the other and ends with `N passed, N failed` and the exit code that goes with it.

/** @param {[string, () => Promise<void>][]} cases */
export async function run(cases) {
  let failed = 0;
  for (const [name, body] of cases) {
    try {
      await within(name, body(), CASE_MS);
      console.log(`ok   ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL ${name}\n${error.stack}`);
    }
  }
  console.log(`${cases.length - failed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

/** A case waits for conditions that have deadlines of their own; on a busy machine many of them take their time. */
const CASE_MS = 240_000;

/** The promise's value, or an error that names what was awaited. */
export async function within(what, promise, ms = 10_000) {
  let timer;
  const deadline = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`after ${ms} ms still not: ${what}`)), ms);
  });
  try {
    return await Promise.race([promise, deadline]);
  } finally {
    clearTimeout(timer);
  }
}
