// The list of messages: grouped by author and day, own ones apart, what is not stored yet at the end; loads what is older when scrolled up.

import { formatPosition, type Position } from "../src/index.js";
import { byId, element, fromTemplate, paint, paintAvatar, part } from "./dom.js";
import type { Message } from "./message.js";

/** A message with its place in the log. */
export interface StoredMessage extends Message {
  readonly position: Position;
  readonly own: boolean;
}

/** A message that this visitor has sent and that is not stored yet. */
export interface PendingMessage {
  stored(position: Position): void;
  /** It will not be stored. `again` tries once more. */
  failed(reason: string, again: () => void): void;
}

interface Row {
  readonly item: HTMLElement;
  readonly message: Message;
  readonly position: Position | undefined;
}

export class MessageList {
  readonly #scroller = byId("scroller");
  readonly #list = byId<HTMLOListElement>("messages");
  readonly #beginning = byId("beginning");
  readonly #loading = byId("loading");
  readonly #empty = byId("empty");
  readonly #jump = byId<HTMLButtonElement>("jump");
  /** By ascending position. */
  #rows: Row[] = [];
  readonly #pending = new Map<string, HTMLElement>();
  /** Whether rows were dropped at the top since older ones were loaded. */
  #trimmed = false;
  #unread = 0;
  #atEnd = true;
  readonly #loadOlder: () => void;

  /** `loadOlder` is called when the reader comes near the top. */
  constructor(loadOlder: () => void) {
    this.#loadOlder = loadOlder;
    this.#scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#jump.addEventListener("click", () => this.toEnd("smooth"));
    new ResizeObserver(() => this.#atEnd && this.toEnd()).observe(this.#scroller);
  }

  /** The position of the oldest message that is shown. */
  get oldest(): Position | undefined {
    return this.#rows[0]?.position;
  }

  /** Whether there is something older that was shown before. */
  get trimmed(): boolean {
    return this.#trimmed;
  }

  /** Takes everything away, but for what is not stored yet. */
  clear(): void {
    for (const { item } of this.#rows) item.remove();
    for (const divider of this.#list.querySelectorAll(".divider")) divider.remove();
    this.#rows = [];
    this.#trimmed = false;
    this.#beginning.hidden = true;
    this.#setUnread(0);
    this.#showEmpty();
  }

  /** Also what is not stored yet: the room is another one. */
  clearAll(): void {
    for (const item of this.#pending.values()) item.remove();
    this.#pending.clear();
    this.clear();
    this.#empty.hidden = true;
  }

  /** A new message at the end. */
  append(message: StoredMessage): void {
    const wasAtEnd = this.#atEnd;
    const previous = this.#rows[this.#rows.length - 1];
    const item = this.#takePending(message) ?? this.#render(message);
    markStored(item, message.position);
    group(item, previous?.message, message);
    this.#list.insertBefore(item, this.#firstPending());
    this.#rows.push({ item, message, position: message.position });
    this.#trim();
    if (wasAtEnd) this.toEnd();
    else if (!message.own) this.#setUnread(this.#unread + 1);
    this.#showEmpty();
  }

  /** A page of older messages, in ascending order, above all others. */
  prepend(messages: readonly StoredMessage[]): void {
    const heightBefore = this.#scroller.scrollHeight;
    const fragment = document.createDocumentFragment();
    const rows = messages.map((message, index) => {
      const item = this.#render(message);
      markStored(item, message.position);
      group(item, messages[index - 1], message);
      fragment.append(item);
      return { item, message, position: message.position };
    });
    const first = this.#rows[0];
    const last = messages[messages.length - 1];
    if (first) group(first.item, last, first.message);
    // What is old is no news to be read out.
    this.#list.setAttribute("aria-live", "off");
    this.#list.prepend(fragment);
    setTimeout(() => this.#list.setAttribute("aria-live", "polite"));
    this.#rows = [...rows, ...this.#rows];
    this.#trimmed = false;
    if (this.#atEnd) this.toEnd();
    else this.#scroller.scrollTop += this.#scroller.scrollHeight - heightBefore;
    this.#showEmpty();
  }

  /** Shows a message that is on its way, or waits for the connection to come back. */
  addPending(message: Message & { id: string }, connected: boolean): PendingMessage {
    const item = this.#render({ ...message, own: true });
    group(item, this.#lastShown(), message);
    this.#pending.set(message.id, item);
    this.#list.append(item);
    setState(item, "pending", connected ? "Sending" : "Waits until you are back");
    this.toEnd();
    this.#showEmpty();
    return {
      stored: (position) => markStored(item, position),
      failed: (reason, again) => this.#failed(message.id, item, reason, again),
    };
  }

  /** How many messages are not stored yet. */
  get pending(): number {
    return this.#pending.size;
  }

  /** A line between the messages: something that the reader must know of. */
  notice(text: string): void {
    const divider = element("li", "divider notice", text);
    divider.dataset.testid = "notice";
    this.#list.insertBefore(divider, this.#firstPending());
    if (this.#atEnd) this.toEnd();
  }

  setLoading(loading: boolean): void {
    this.#loading.hidden = !loading;
    if (loading) this.#empty.hidden = true;
  }

  /** There is nothing older. */
  setBeginning(text: string): void {
    this.#beginning.textContent = text;
    this.#beginning.hidden = this.#rows.length === 0;
    this.#showEmpty(true);
  }

  toEnd(behavior: ScrollBehavior = "auto"): void {
    this.#atEnd = true;
    this.#scroller.scrollTo({ top: this.#scroller.scrollHeight, behavior });
    this.#setUnread(0);
  }

  #scrolled(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    this.#atEnd = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    if (this.#atEnd) this.#setUnread(0);
    if (scrollTop < LOAD_PX && scrollHeight > clientHeight) this.#loadOlder();
  }

  #render(message: Message & { own: boolean }): HTMLElement {
    const item = fromTemplate("message-template");
    item.dataset.own = String(message.own);
    paint(item, message.by.hue);
    paintAvatar(part(item, ".avatar"), message.by);
    const author = part(item, ".author");
    author.textContent = message.own ? "You" : message.by.name;
    author.title = message.user;
    part(item, ".text").textContent = message.text;
    const time = part<HTMLTimeElement>(item, "time");
    const date = new Date(message.timeMs);
    time.dateTime = date.toISOString();
    time.textContent = CLOCK.format(date);
    time.title = FULL.format(date);
    return item;
  }

  #takePending({ own, id }: StoredMessage): HTMLElement | undefined {
    if (!own || id === undefined) return undefined;
    const item = this.#pending.get(id);
    this.#pending.delete(id);
    return item;
  }

  #failed(id: string, item: HTMLElement, reason: string, again: () => void): void {
    setState(item, "failed", `Not sent: ${reason}`);
    const button = element("button", "link", "Try again") as HTMLButtonElement;
    button.type = "button";
    button.dataset.testid = "try-again";
    button.addEventListener("click", () => {
      this.#pending.delete(id);
      item.remove();
      again();
    });
    part(item, ".state").append(button);
  }

  #firstPending(): HTMLElement | null {
    return this.#pending.values().next().value ?? null;
  }

  #lastShown(): Message | undefined {
    return this.#rows[this.#rows.length - 1]?.message;
  }

  /** The page stays light however long it stays open: what is dropped at the top can be loaded again. */
  #trim(): void {
    if (this.#rows.length <= ROWS_MAX || !this.#atEnd) return;
    for (const { item } of this.#rows.splice(0, ROWS_TRIMMED)) item.remove();
    const first = this.#rows[0]!;
    group(first.item, undefined, first.message);
    this.#trimmed = true;
    this.#beginning.hidden = true;
  }

  #setUnread(unread: number): void {
    this.#unread = unread;
    this.#jump.hidden = unread === 0;
    byId("jump-text").textContent = unread === 1 ? "1 new message" : `${unread} new messages`;
  }

  #showEmpty(known = !this.#empty.hidden): void {
    this.#empty.hidden = !known || this.#rows.length + this.#pending.size > 0 || !this.#loading.hidden;
  }
}

/** Follows on the one before it, or begins a group, a day, or both. */
function group(item: HTMLElement, previous: Message | undefined, message: Message): void {
  const day = DAY.format(message.timeMs);
  if (previous && DAY.format(previous.timeMs) === day) delete item.dataset.day;
  else item.dataset.day = dayName(message.timeMs, day);
  const follows =
    previous?.user === message.user && previous.by.name === message.by.name && item.dataset.day === undefined && message.timeMs - previous.timeMs < GROUP_MS;
  item.toggleAttribute("data-grouped", follows);
}

function dayName(timeMs: number, day: string): string {
  if (day === DAY.format(Date.now())) return "Today";
  return day === DAY.format(Date.now() - 86_400_000) ? "Yesterday" : DAY.format(timeMs);
}

function markStored(item: HTMLElement, position: Position): void {
  setState(item, "stored", "Sent");
  item.dataset.position = formatPosition(position);
  part(item, ".state").title = `Stored at ${formatPosition(position)}`;
}

function setState(item: HTMLElement, state: "pending" | "stored" | "failed", text: string): void {
  item.dataset.state = state;
  const line = part(item, ".state");
  line.replaceChildren(element("span", "state-text", text));
}

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const GROUP_MS = 5 * 60_000;
/** So close to the end counts as at the end. */
const NEAR_PX = 60;
/** So close to the top, older messages are loaded. */
const LOAD_PX = 240;
const ROWS_MAX = 1_500;
const ROWS_TRIMMED = 500;
