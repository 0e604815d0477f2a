// The board: cards in three lists, which are keys of the room's state. Whoever edits a card holds its lock; everybody sees who does, and at which version
// of the room each card stands.

import { errorCode, type Position, type Room, type RoomfulError } from "../src/index.js";
import { CARD_PREFIX, keyOf, knownOf, LISTS, rankBetween, TEXT_LENGTH_MAX, type Card, type Known, type Place } from "./card.js";
import { CardView, type Direction, type Shown } from "./card-view.js";
import { toast, type ConnectionPanel } from "./connection-panel.js";
import { byId, fromTemplate, part } from "./dom.js";
import { Edits } from "./edits.js";
import type { People } from "./people.js";
import type { Person } from "./person.js";

export interface BoardContext {
  readonly people: People;
  readonly panel: ConnectionPanel;
  /** Who this visitor is now. */
  person(): Person;
  /** There are so many cards. */
  counted(cards: number): void;
}

/** The card that this visitor edits. */
interface Editing {
  readonly id: string;
  readonly view: CardView;
  /** What the text was made from. */
  base: Known;
  /** The newest grant of its lock. */
  fence: Position | undefined;
  hold: "asking" | "held" | "gone";
}

interface List {
  readonly cards: HTMLElement;
  readonly count: HTMLElement;
}

export class Board {
  readonly #root = byId("lists");
  readonly #note = byId("board-note");
  readonly #room: Room;
  readonly #context: BoardContext;
  readonly #edits: Edits;
  readonly #lists: readonly List[];
  readonly #views = new Map<string, CardView>();
  /** Cards whose locks were asked for and not given back. */
  readonly #claimed = new Set<string>();
  readonly #listeners = new AbortController();
  #editing: Editing | undefined;
  #dragged: string | undefined;
  /** Elements are on the move: a focus that is lost by that says nothing. */
  #arranging = false;
  #closed = false;

  constructor(room: Room, context: BoardContext) {
    this.#room = room;
    this.#context = context;
    this.#edits = new Edits(room, {
      changed: () => this.refresh(),
      refused: (id) => this.#refused(id),
      claim: (id) => this.#claim(id, true),
    });
    this.#lists = LISTS.map((name, index) => this.#makeList(name, index));
    this.#listen();
    this.#listenToDragging();
    this.refresh();
  }

  /** Takes everything away: the room is left. */
  close(): void {
    this.#closed = true;
    this.#listeners.abort();
    this.#editing = undefined;
    this.#root.replaceChildren();
  }

  /** Shows everything as it is now. */
  refresh(): void {
    // A recovery may bring thousands of changes: what becomes of them is shown at its end.
    if (this.#closed || this.#room.state === "recovering") return;
    this.#edits.followed();
    this.#followEditing();
    this.#giveBack();
    const cards = this.#cards();
    for (const [id, view] of this.#views) if (!cards.has(id)) this.#remove(id, view);
    for (const [id, card] of cards) this.#view(id).show(this.#shown(id, card));
    this.#arrange(cards);
    this.#context.counted(cards.size);
    this.#showNote();
  }

  #listen(): void {
    const { values, locks } = this.#room;
    const refresh = () => this.refresh();
    this.#room.on("state", refresh);
    this.#room.on("advance", refresh);
    this.#room.on("event", refresh);
    values.on("ready", refresh);
    values.on("change", ({ own, changes }) => {
      this.refresh();
      if (!own) for (const { key } of changes) this.#views.get(key.slice(CARD_PREFIX.length))?.flash();
    });
    locks.on("ready", refresh);
    locks.on("change", refresh);
    locks.on("lost", ({ lock }) => this.#lost(lock.slice(CARD_PREFIX.length)));
  }

  /** All cards as this visitor is to see them: with the own changes that are not stored yet. */
  #cards(): Map<string, Card> {
    const cards = new Map<string, Card>();
    const add = (id: string, { card }: Known) => card && cards.set(id, card);
    for (const value of this.#room.values.all()) add(value.key.slice(CARD_PREFIX.length), knownOf(value));
    for (const id of this.#edits.ids()) {
      const { mine, base, stage } = this.#edits.get(id)!;
      if (stage.kind === "refused") add(id, { ...stage.theirs, card: stage.theirs.card ?? mine ?? base.card });
      else if (mine) cards.set(id, mine);
      else cards.delete(id);
    }
    // What is being edited stays in sight, also when somebody has deleted it meanwhile.
    const editing = this.#editing;
    if (editing && !cards.has(editing.id)) add(editing.id, editing.base);
    return cards;
  }

  /** A card as a change of it would begin from. */
  #known(id: string): Known {
    const [stored, edit] = [knownOf(this.#room.values.get(keyOf(id))), this.#edits.get(id)];
    return edit && edit.stage.kind !== "refused" ? { ...stored, card: edit.mine } : stored;
  }

  #shown(id: string, card: Card): Shown {
    const edit = this.#edits.get(id);
    const stage = edit?.stage;
    const away = this.#room.state !== "live";
    return {
      card,
      version: this.#room.values.get(keyOf(id))?.version,
      holder: this.#holder(id),
      sending: stage?.kind !== "sending" ? "no" : away ? "away" : "yes",
      refused: edit && stage?.kind === "refused" ? { mine: edit.mine, stage } : undefined,
      editing: this.#editing?.id === id ? this.#shownEditing(this.#editing) : undefined,
    };
  }

  #shownEditing({ id, hold, base, view }: Editing): Shown["editing"] {
    const [holder, away] = [this.#holder(id), this.#room.state !== "live"];
    const there = this.#known(id).card;
    const note =
      view.typed !== undefined && there?.text !== base.card?.text
        ? `${there ? `${there.by.name} has changed` : "Somebody has deleted"} this card. You decide when you save.`
        : hold === "held"
          ? "Held for you while you edit"
          : away
            ? "You are away: others can edit this card too"
            : hold === "asking"
              ? "Asking for this card"
              : holder
                ? `Your hold has ended: ${holder.name} has this card now`
                : "Your hold on this card has ended";
    return { held: hold === "held", note, mayClaim: hold === "gone" && !away && !holder };
  }

  /** Who else holds a card. Without a connection nobody is known to: what comes too late by that is noticed when it is sent. */
  #holder(id: string): Person | undefined {
    if (this.#room.state !== "live") return undefined;
    const held = this.#room.locks.get(keyOf(id))?.held;
    return held && held.member !== this.#room.member ? this.#context.people.person(held.member, held.user) : undefined;
  }

  #begin(id: string): void {
    const [holder, base] = [this.#holder(id), this.#known(id)];
    if (this.#editing?.id === id || !base.card || this.#edits.get(id)?.stage.kind === "refused") return;
    if (holder) return toast("info", `${holder.name} is editing this card`);
    this.#editing = { id, view: this.#view(id), base, fence: undefined, hold: "asking" };
    this.#editing.view.open(base.card.text);
    void this.#ask(this.#editing);
    this.refresh();
  }

  async #ask(editing: Editing): Promise<void> {
    editing.hold = "asking";
    try {
      editing.fence = await this.#claim(editing.id, false);
      editing.hold = "held";
    } catch (error) {
      editing.hold = "gone";
      const { code, message } = error as RoomfulError;
      // Somebody was faster. What was typed meanwhile is not thrown away.
      if (code === errorCode.lock_taken && this.#editing === editing && editing.view.typed === undefined) this.#end();
      if (code !== errorCode.closed) toast("info", code === errorCode.lock_taken ? "Somebody else is editing this card" : message);
    }
    this.refresh();
  }

  #claim(id: string, wait: boolean): Promise<Position> {
    this.#claimed.add(id);
    return this.#room.locks.acquire(keyOf(id), { ttlMs: LEASE_MS, wait });
  }

  /** Gives locks back that nothing needs any more. */
  #giveBack(): void {
    for (const id of this.#claimed) {
      if (this.#editing?.id === id || this.#edits.needsLock(id)) continue;
      this.#claimed.delete(id);
      // The server may have ended it before.
      this.#room.locks.release(keyOf(id)).catch(() => {});
    }
  }

  #lost(id: string): void {
    const editing = this.#editing;
    if (editing?.id === id) {
      editing.hold = "gone";
      this.#context.panel.log("warning", `Your hold on “${short(editing.base.card)}” has ended`);
    }
    this.refresh();
  }

  #save(text: string): void {
    const { id, base, fence } = this.#editing!;
    const [card, clean] = [base.card!, text.trim()];
    this.#end();
    if (clean !== "" && clean !== card.text) this.#edits.write(id, base, { ...card, text: clean, by: this.#context.person() }, fence);
    this.refresh();
  }

  #delete(): void {
    const { id, base, fence } = this.#editing!;
    this.#end();
    this.#edits.write(id, base, null, fence);
  }

  /** Closes the editor. */
  #end(): void {
    const view = this.#editing?.view;
    this.#editing = undefined;
    view?.close();
  }

  /** An editor in which nobody has typed shows what is there. */
  #followEditing(): void {
    const editing = this.#editing;
    if (!editing || editing.view.typed !== undefined) return;
    const there = this.#known(editing.id);
    if (!there.card) return this.#end();
    editing.base = there;
    editing.view.open(there.card.text);
  }

  #refused(id: string): void {
    const { mine, base } = this.#edits.get(id)!;
    const text = `Your change of “${short(base.card ?? mine)}” came too late`;
    this.#context.panel.log("bad", text);
    toast("bad", text);
  }

  #move(id: string, direction: Direction): void {
    const { card } = this.#known(id);
    if (!card) return;
    const [same, at] = [this.#inList(card.list), this.#inList(card.list).indexOf(id)];
    const [list, before] = {
      up: [card.list, same[at - 1]],
      down: [card.list, same[at + 2]],
      left: [card.list - 1, undefined],
      right: [card.list + 1, undefined],
    }[direction] as [number, string | undefined];
    if ((direction === "up" && at === 0) || (direction === "down" && at === same.length - 1)) return;
    if (LISTS[list] !== undefined) this.#put(id, list, before);
  }

  /** Puts a card into a list, before another one or at its end. */
  #put(id: string, list: number, before: string | undefined): void {
    const [known, holder] = [this.#known(id), this.#holder(id)];
    if (holder) return toast("info", `${holder.name} is editing this card`);
    if (!known.card || this.#editing?.id === id || this.#edits.get(id)?.stage.kind === "refused") return;
    this.#edits.write(id, known, { ...known.card, ...this.#place(list, before, id) });
  }

  #add(list: number, text: string): void {
    const clean = text.trim();
    if (clean !== "") this.#edits.write(newId(), knownOf(undefined), { ...this.#place(list, undefined), text: clean, by: this.#context.person() });
  }

  #place(list: number, before: string | undefined, own?: string): Place {
    const cards = this.#cards();
    const others = this.#inList(list).filter((id) => id !== own);
    const at = before === undefined ? others.length : others.indexOf(before);
    const rank = (index: number) => cards.get(others[index] ?? "")?.rank;
    return { list, rank: rankBetween(rank(at - 1), rank(at)) };
  }

  /** The cards of a list in their order. */
  #inList(list: number): string[] {
    return [...this.#lists[list]!.cards.children].map((item) => (item as HTMLElement).dataset.id!);
  }

  #view(id: string): CardView {
    const known = this.#views.get(id);
    if (known) return known;
    const view = new CardView(id, {
      edit: () => this.#begin(id),
      move: (direction) => this.#move(id, direction),
      save: (text) => this.#save(text),
      cancel: () => {
        this.#end();
        this.refresh();
      },
      remove: () => this.#delete(),
      claim: () => this.#editing && void this.#ask(this.#editing),
      keepMine: () => void this.#edits.keepMine(id),
      keepTheirs: () => this.#edits.keepTheirs(id),
    });
    view.item.addEventListener("focusout", ({ relatedTarget }) => this.#blurred(view, relatedTarget as Node | null));
    this.#views.set(id, view);
    return view;
  }

  /** Whoever goes on elsewhere on the page has ended the editing, and loses nothing by it. Who looks at another window has not. */
  #blurred(view: CardView, to: Node | null): void {
    const inside = to !== null && view.item.contains(to);
    if (this.#arranging || this.#editing?.view !== view || inside || !document.hasFocus()) return;
    this.#save(view.typed ?? "");
  }

  #remove(id: string, view: CardView): void {
    view.item.remove();
    this.#views.delete(id);
  }

  /** Puts the elements where their cards are, and leaves the focus where it was. */
  #arrange(cards: ReadonlyMap<string, Card>): void {
    const ordered = [...cards].sort(([a, left], [b, right]) => left.list - right.list || left.rank - right.rank || (a < b ? -1 : 1));
    const focused = document.activeElement as HTMLElement | null;
    this.#arranging = true;
    this.#lists.forEach(({ cards: shown, count }, list) => {
      const items = ordered.filter(([, card]) => card.list === list).map(([id]) => this.#views.get(id)!.item);
      items.forEach((item, index) => shown.children[index] !== item && shown.insertBefore(item, shown.children[index] ?? null));
      count.textContent = String(items.length);
    });
    if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
    this.#arranging = false;
  }

  #showNote(): void {
    const [{ state }, { waiting }] = [this.#room, this.#edits];
    const changes = waiting === 1 ? "1 change waits" : `${waiting} changes wait`;
    const away = state === "waiting" || state === "joining";
    const text = away
      ? waiting === 0
        ? "You are away. You can go on: what you change is sent when you are back."
        : `You are away. ${changes} here and will be sent, once, when you are back.`
      : "";
    this.#note.hidden = text === "" || !this.#room.values.complete;
    if (this.#note.textContent !== text) this.#note.textContent = text;
    this.#root.dataset.away = String(away);
  }

  #makeList(name: string, index: number): List {
    const section = fromTemplate("list-template");
    const [title, input] = [part(section, ".list-name"), part<HTMLTextAreaElement>(section, ".add-input")];
    title.textContent = name;
    title.id = `list-${index}`;
    section.dataset.list = String(index);
    section.setAttribute("aria-labelledby", title.id);
    input.maxLength = TEXT_LENGTH_MAX;
    input.setAttribute("aria-label", `Add a card to ${name}`);
    part(section, ".add").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#add(index, input.value);
      input.value = "";
    });
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      part<HTMLFormElement>(section, ".add").requestSubmit();
    });
    this.#root.append(section);
    return { cards: part(section, ".cards"), count: part(section, ".count") };
  }

  /** A card is dragged into a list, before the card whose middle is below the pointer. */
  #listenToDragging(): void {
    const { signal } = this.#listeners;
    const listen = (type: "dragstart" | "dragover" | "drop" | "dragend", listener: (event: DragEvent) => void) => this.#root.addEventListener(type, listener, { signal });
    const show = (list: Element | null) => {
      for (const section of this.#root.children) section.classList.toggle("target", section === list);
    };
    listen("dragstart", (event) => {
      this.#dragged = (event.target as HTMLElement).dataset.id;
      event.dataTransfer?.setData("text/plain", part(event.target as HTMLElement, ".slip-text").textContent ?? "");
    });
    listen("dragover", (event) => {
      const list = (event.target as Element).closest("[data-list]");
      if (this.#dragged === undefined || !list) return;
      event.preventDefault();
      show(list);
    });
    listen("drop", (event) => {
      const list = (event.target as Element).closest<HTMLElement>("[data-list]");
      if (this.#dragged === undefined || !list) return;
      event.preventDefault();
      this.#put(this.#dragged, Number(list.dataset.list), this.#cardBelow(list, event.clientY));
    });
    listen("dragend", () => {
      this.#dragged = undefined;
      show(null);
    });
  }

  #cardBelow(list: HTMLElement, y: number): string | undefined {
    const below = this.#inList(Number(list.dataset.list)).find((id) => {
      const { top, height } = this.#views.get(id)!.item.getBoundingClientRect();
      return id !== this.#dragged && y < top + height / 2;
    });
    return below;
  }
}

function short(card: Card | null): string {
  const text = card?.text.split("\n")[0] ?? "";
  return text.length > 40 ? `${text.slice(0, 39)}…` : text;
}

function newId(): string {
  return crypto.randomUUID().slice(0, 8);
}

/** How long a card's lock outlives a visitor who is gone. */
const LEASE_MS = 10_000;
