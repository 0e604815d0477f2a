// The state of the connection: the pill in the bar, the facts, and the story of what was lost and came back.

import type { CaughtUp, Client, ClientEvents, Joined, Position, RoomfulError } from "../src/index.js";
import { byId, element } from "./dom.js";

/** When the connection went, and where the room stood. */
interface Loss {
  readonly position: Position | undefined;
  readonly atMs: number;
}

export class ConnectionPanel {
  readonly #pill = byId("pill");
  readonly #pillText = byId("pill-text");
  readonly #timeline = byId<HTMLOListElement>("timeline");
  readonly #drop = byId<HTMLButtonElement>("drop");
  readonly #dropText = byId("drop-text");
  readonly #app = byId("app");
  #loss: Loss | undefined;
  #countdown: ReturnType<typeof setInterval> | undefined;
  #position: Position | undefined;

  /** `client` is asked to go away and to come back when the visitor drops the connection. */
  constructor(client: Client, pending: () => number) {
    client.on("state", (event) => this.#stateChanged(client, event));
    client.on("rtt", (rttMs) => this.#showRtt(rttMs));
    client.on("error", (error) => this.log("warning", error.message));
    this.#drop.addEventListener("click", () => this.#dropFor(client, AWAY_MS));
    setInterval(() => document.visibilityState === "visible" && this.#measure(client), PING_MS);
    setInterval(() => (byId("waiting").textContent = String(pending())), 250);
    this.#show("connecting", "Connecting");
  }

  moved(position: Position): void {
    this.#position = position;
    byId("epoch").textContent = String(position.epoch);
    byId("offset").textContent = String(position.offset);
  }

  joined({ durability, recovery, position, head }: Joined): void {
    byId("durability").textContent = DURABILITY[durability];
    if (recovery === "recovering") this.#show("recovering", "Catching up");
    else this.#show("live", "Live");
    if (!this.#loss) this.log("good", `Joined at ${shortPosition(position)}`);
    else if (recovery === "recovering") this.log("info", `Resumed at ${shortPosition(position)}; the room is at ${shortPosition(head)}`);
    this.moved(position);
  }

  caughtUp({ from, position, events, skipped }: CaughtUp): void {
    this.#show("live", "Live");
    if (!this.#loss) return;
    const lost = position.offset - from.offset - events - skipped;
    const seconds = ((performance.now() - this.#loss.atMs) / 1_000).toFixed(1);
    const text = `Resumed at ${shortPosition(position)}: ${count(events, "event")} recovered, ${lost} lost`;
    this.log(lost === 0 ? "good" : "bad", text, `after ${seconds} s away`);
    toast(lost === 0 ? "good" : "bad", text);
    this.#loss = undefined;
  }

  reset(position: Position, previous: Position): void {
    this.#show("live", "Live");
    this.#loss = undefined;
    const text = `The room's history was replaced: ${shortPosition(previous)} is void, it goes on from ${shortPosition(position)}`;
    this.log("bad", text);
    toast("bad", text);
    this.moved(position);
  }

  left(error: RoomfulError, rejoining: boolean): void {
    this.log(rejoining ? "warning" : "bad", rejoining ? `Left the room for a moment: ${error.message}` : `The room is closed to you: ${error.message}`);
    if (!rejoining) this.#show("closed", "Not in the room");
  }

  /** Adds a line to the story, unless it is the last one again. */
  log(kind: "good" | "info" | "warning" | "bad", text: string, note = ""): void {
    if (this.#timeline.querySelector(".moment-text")?.textContent === text) return;
    const item = element("li", "moment");
    item.dataset.kind = kind;
    item.dataset.testid = "timeline-entry";
    const time = CLOCK.format(new Date());
    const shown = element("span", "moment-text");
    shown.append(...withPlaces(text));
    item.append(shown, element("span", "moment-time", note === "" ? time : `${time}, ${note}`));
    this.#timeline.prepend(item);
    while (this.#timeline.childElementCount > MOMENTS_MAX) this.#timeline.lastElementChild!.remove();
  }

  #stateChanged(client: Client, { state, retryInMs, error }: ClientEvents["state"]): void {
    clearInterval(this.#countdown);
    if (state === "waiting" || state === "offline") this.#lost(state === "offline", error);
    switch (state) {
      case "connecting":
        return this.#show("connecting", this.#loss ? "Reconnecting" : "Connecting");
      case "connected":
        // Once the joining is over, whose work would be measured too.
        setTimeout(() => this.#measure(client), SETTLE_MS);
        if (this.#loss) this.log("info", client.session?.resumed ? "Connected again, same session" : "Connected again, with a new session");
        return;
      case "waiting":
        return this.#count((seconds) => this.#show("waiting", seconds > 0 ? `Back in ${seconds} s` : "Reconnecting"), retryInMs ?? 0);
      case "closed":
        this.log("bad", `Closed for good: ${error?.message ?? "the page said so"}`);
        toast("bad", `The connection is closed: ${error?.message ?? ""}. Reload the page to try again.`);
        return this.#show("closed", "Closed");
      case "idle":
      case "offline":
        return;
    }
  }

  #measure(client: Client): void {
    // A ping that fails ends with its connection, which is told elsewhere.
    if (client.state === "connected") client.ping().catch(() => {});
  }

  #lost(onPurpose: boolean, error: RoomfulError | undefined): void {
    if (this.#loss) return;
    this.#loss = { position: this.#position, atMs: performance.now() };
    const where = this.#position ? ` at ${shortPosition(this.#position)}` : "";
    if (onPurpose) this.log("warning", `Connection dropped${where}`);
    else this.log("warning", `Connection lost${where}`, error?.message ?? "");
  }

  #dropFor(client: Client, awayMs: number): void {
    if (client.state === "offline") return client.online();
    client.offline();
    this.#drop.dataset.away = "true";
    this.#count((seconds) => {
      this.#show("offline", `Away for ${seconds} s`);
      this.#dropText.textContent = `Away for ${seconds} s. Come back now`;
      if (seconds === 0) client.online();
    }, awayMs);
    const off = client.on("state", ({ state }) => {
      if (state === "offline") return;
      off();
      delete this.#drop.dataset.away;
      this.#dropText.textContent = "Drop my connection";
    });
  }

  /** Calls `tick` with the seconds that are left, now and every second, down to 0. */
  #count(tick: (seconds: number) => void, ms: number): void {
    clearInterval(this.#countdown);
    const endMs = performance.now() + ms;
    const step = () => {
      const seconds = Math.max(0, Math.ceil((endMs - performance.now()) / 1_000));
      if (seconds === 0) clearInterval(this.#countdown);
      tick(seconds);
    };
    this.#countdown = setInterval(step, 250);
    step();
  }

  #show(state: string, text: string): void {
    this.#pill.dataset.state = state;
    this.#app.dataset.connection = state;
    if (this.#pillText.textContent !== text) this.#pillText.textContent = text;
  }

  #showRtt(rttMs: number): void {
    byId("rtt").textContent = rttMs < 10 ? `${rttMs.toFixed(1)} ms` : `${Math.round(rttMs)} ms`;
  }
}

/** Shows a line for a while, over everything. One that is there already is shown for longer. */
export function toast(kind: "good" | "info" | "bad", text: string): void {
  const shown = element("p", "toast");
  shown.append(...withPlaces(text));
  shown.dataset.kind = kind;
  shown.dataset.testid = "toast";
  const toasts = byId("toasts");
  const same = [...toasts.children].find(({ textContent }) => textContent === text);
  if (same) same.replaceWith(shown);
  else toasts.append(shown);
  while (toasts.childElementCount > TOASTS_MAX) toasts.firstElementChild!.remove();
  setTimeout(() => shown.remove(), TOAST_MS);
}

/** A position as people can compare it: epochs may have 16 digits, of which the last ones differ. */
function shortPosition({ epoch, offset }: Position): string {
  const digits = String(epoch);
  return digits.length > 6 ? `…${digits.slice(-4)}-${offset}` : `${digits}-${offset}`;
}

/** The text with its positions kept from breaking over two lines. */
function withPlaces(text: string): (string | HTMLElement)[] {
  return text.split(/(…?\d+-\d+)/).map((part, index) => (index % 2 === 1 ? element("span", "place", part) : part));
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

const DURABILITY = { memory: "memory", local: "this node's disk", replicated: "several nodes" } as const;
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
/** How long a dropped connection stays away: long enough for others to say something meanwhile. */
const AWAY_MS = 6_000;
const PING_MS = 3_000;
const SETTLE_MS = 500;
const TOAST_MS = 7_000;
const TOASTS_MAX = 3;
const MOMENTS_MAX = 40;
