// One card on the board: its text and version, who edits it, the editor while this visitor does, and the choice after a change that came too late.

import { errorCode, formatPosition, type Position } from "../src/index.js";
import { LISTS, type Card } from "./card.js";
import { element, fromTemplate, paint, paintAvatar, part } from "./dom.js";
import type { Refused } from "./edits.js";
import type { Person } from "./person.js";

/** What a card looks like now. */
export interface Shown {
  readonly card: Card;
  /** Where the room changed it last; undefined for one that is new and not stored yet. */
  readonly version: Position | undefined;
  /** Who else edits it. */
  readonly holder: Person | undefined;
  /** Whether a change of this visitor has no answer yet; `away`: the connection is not there to send it. */
  readonly sending: "no" | "yes" | "away";
  /** A change of this visitor that was refused. */
  readonly refused: { readonly mine: Card | null; readonly stage: Refused } | undefined;
  /** Whether this visitor edits it, and what is to be said of that. */
  readonly editing: { readonly held: boolean; readonly note: string; readonly mayClaim: boolean } | undefined;
}

/** What the visitor does with a card. */
export interface CardActions {
  edit(): void;
  move(direction: Direction): void;
  save(text: string): void;
  cancel(): void;
  remove(): void;
  /** The hold on the card has ended: take it again. */
  claim(): void;
  keepMine(): void;
  keepTheirs(): void;
}

export type Direction = "up" | "down" | "left" | "right";

export class CardView {
  readonly item = fromTemplate("card-template");
  readonly #actions: CardActions;
  readonly #input: HTMLTextAreaElement;
  /** The version that is shown; null before the first. */
  #version: string | undefined | null = null;
  /** What the editor began with; what differs from it was typed. */
  #from: string | undefined;

  constructor(id: string, actions: CardActions) {
    this.#actions = actions;
    this.item.dataset.id = id;
    this.#input = part<HTMLTextAreaElement>(this.item, ".slip-input");
    for (const name of ["edit", "cancel", "remove", "claim"] as const) this.#on(`[data-do=${name}]`, () => actions[name]());
    this.#on("[data-do=back]", () => actions.move("left"));
    this.#on("[data-do=on]", () => actions.move("right"));
    this.#on("[data-do=mine]", () => actions.keepMine());
    this.#on("[data-do=theirs]", () => actions.keepTheirs());
    this.#on(".slip-text", () => getSelection()?.isCollapsed !== false && actions.edit());
    this.item.addEventListener("keydown", (event) => this.#pressed(event));
    this.#input.addEventListener("input", () => this.#grow());
    // A button must not take the focus from the text: that would save it.
    part(this.item, ".slip-editor").addEventListener("pointerdown", (event) => event.target !== this.#input && event.preventDefault());
    part(this.item, ".slip-editor").addEventListener("submit", (event) => {
      event.preventDefault();
      actions.save(this.#input.value);
    });
  }

  /** The text in the editor, where something was typed. */
  get typed(): string | undefined {
    return this.#from !== undefined && this.#input.value !== this.#from ? this.#input.value : undefined;
  }

  /** Opens the editor with a text. Where it is open, the text takes the place of what nobody has typed in. */
  open(text: string): void {
    const first = this.#from === undefined;
    if (!first && (this.typed !== undefined || this.#from === text)) return;
    this.#from = text;
    this.#input.value = text;
    this.#set("editing", "true");
    this.#grow();
    if (!first) return;
    this.#input.focus();
    this.#input.setSelectionRange(text.length, text.length);
  }

  /** Closes the editor; the focus goes back to the card where it was in there. */
  close(): void {
    const hadFocus = this.item.contains(document.activeElement);
    this.#from = undefined;
    this.#set("editing", undefined);
    if (hadFocus) part(this.item, "[data-do=edit]").focus();
  }

  show(shown: Shown): void {
    const { card, version, holder, sending, refused, editing } = shown;
    const { item } = this;
    part(item, ".slip-text").textContent = card.text;
    paintAvatar(part(item, ".avatar"), card.by);
    part(item, ".slip-by").textContent = card.by.name;
    this.#showVersion(version);
    this.#set("state", refused ? "conflict" : sending === "no" ? "stored" : "pending");
    part(item, ".slip-state").textContent = { no: "", yes: "Storing", away: "Waits" }[sending];
    this.#set("lock", holder ? "other" : editing?.held ? "own" : undefined);
    part(item, ".slip-lock").textContent = holder ? `${holder.name} is editing` : "";
    if (holder) paint(item, holder.hue);
    item.draggable = !holder && !refused && !editing;
    this.#showActions(card, holder);
    part(item, ".slip-note").textContent = editing?.note ?? "";
    part(item, "[data-do=claim]").hidden = !editing?.mayClaim;
    this.#showRefusal(refused, holder);
  }

  /** Draws the eye to a card that has come or changed. */
  flash(): void {
    this.item.classList.add("fresh");
    this.item.addEventListener("animationend", () => this.item.classList.remove("fresh"), { once: true });
  }

  #showVersion(version: Position | undefined): void {
    const shown = part(this.item, ".version");
    const text = version && formatPosition(version);
    if (text === this.#version) return;
    this.#version = text;
    shown.textContent = version ? `v${version.offset}` : "new";
    shown.title = text ? `Version ${text}: where the room changed this card last` : "Not stored yet";
    this.#set("version", text);
  }

  #showActions(card: Card, holder: Person | undefined): void {
    const labels = { edit: "Edit", back: `Move to ${LISTS[card.list - 1]}`, on: `Move to ${LISTS[card.list + 1]}` };
    for (const [name, label] of Object.entries(labels)) {
      const button = part(this.item, `[data-do=${name}]`);
      button.title = holder ? `${holder.name} is editing this card` : label;
      button.setAttribute("aria-label", `${label}: ${card.text}`);
      button.setAttribute("aria-disabled", String(holder !== undefined));
    }
    part(this.item, "[data-do=back]").hidden = card.list === 0;
    part(this.item, "[data-do=on]").hidden = card.list === LISTS.length - 1;
  }

  #showRefusal(refused: Shown["refused"], holder: Person | undefined): void {
    const box = part(this.item, ".slip-conflict");
    box.hidden = !refused;
    if (!refused) return;
    const { mine, stage } = refused;
    const { theirs, error, claiming } = stage;
    part(box, ".slip-why").textContent = why(refused);
    const place = theirs.version ? ` · v${theirs.version.offset}` : "";
    part(box, ".slip-theirs").replaceChildren(element("b", "", theirs.card ? `${theirs.card.by.name}${place}` : "There now"), theirs.card?.text ?? "No card");
    part(box, ".slip-mine").replaceChildren(element("b", "", "You"), mine?.text ?? "Delete it");
    const [take, keep] = [part<HTMLButtonElement>(box, "[data-do=mine]"), part(box, "[data-do=theirs]")];
    take.disabled = claiming;
    take.textContent = claiming ? `Waiting for ${holder?.name ?? "the card"}` : mine ? "Take mine" : "Delete it";
    keep.textContent = theirs.card ? "Take theirs" : error.code === errorCode.conflict ? "Leave it deleted" : "Give it up";
  }

  #pressed(event: KeyboardEvent): void {
    if (event.target === this.#input) {
      // While a text is being composed (as in Japanese), Enter ends the composition.
      if (event.isComposing) return;
      if (event.key === "Escape") this.#actions.cancel();
      else if (event.key === "Enter" && !event.shiftKey) this.#actions.save(this.#input.value);
      else return;
      return event.preventDefault();
    }
    const direction = event.altKey ? ARROWS[event.key] : undefined;
    if (!direction) return;
    event.preventDefault();
    this.#actions.move(direction);
  }

  #grow(): void {
    this.#input.style.height = "auto";
    this.#input.style.height = `${this.#input.scrollHeight}px`;
  }

  #on(selector: string, action: () => void): void {
    part(this.item, selector).addEventListener("click", action);
  }

  #set(name: string, value: string | undefined): void {
    if (value === undefined) delete this.item.dataset[name];
    else this.item.dataset[name] = value;
  }
}

function why({ mine, stage: { error, theirs } }: { mine: Card | null; stage: Refused }): string {
  if (error.code === errorCode.stale_fence) return "Your hold on this card had ended, and somebody else took it";
  if (error.code !== errorCode.conflict) return `Not stored: ${error.message}`;
  if (!theirs.card) return "Somebody deleted this card meanwhile";
  return mine ? `${theirs.card.by.name} changed this card too` : `${theirs.card.by.name} changed this card meanwhile`;
}

const ARROWS: Record<string, Direction | undefined> = { ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right" };
