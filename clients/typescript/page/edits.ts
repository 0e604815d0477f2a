// What this visitor did to cards and is not stored yet. A change is written under the version that it was made from and, where it was made under the
// card's lock, under that grant. One that comes too late is merged with what others did where nobody loses by that, and else put before the visitor.

import { comparePositions, errorCode, type Position, type Published, type Room, type RoomfulError } from "../src/index.js";
import { keyOf, knownOf, merged, sameCard, valueOf, type Card, type Known } from "./card.js";

/** A change of a card that is not stored yet. */
export interface Edit {
  /** What it was made from. */
  readonly base: Known;
  /** What the card is to become; null: nothing. */
  readonly mine: Card | null;
  /** The grant under which it was made. */
  readonly fence: Position | undefined;
  readonly stage: Stage;
}

export type Stage =
  /** It is on its way, or waits for the connection. */
  | { readonly kind: "sending" }
  /** It is stored, and the room has not told of it yet. */
  | { readonly kind: "stored"; readonly at: Position }
  | Refused;

/** A change that came too late, or may not be: the visitor decides. */
export interface Refused {
  readonly kind: "refused";
  readonly error: RoomfulError;
  /** What is there. */
  readonly theirs: Known;
  /** Whether the visitor wants it all the same, and it waits for the card's lock. */
  readonly claiming: boolean;
}

export interface EditsContext {
  /** An edit came, went, or became something else. */
  changed(): void;
  /** The visitor has to decide. */
  refused(id: string): void;
  /** Takes the lock of a card, as soon as it is free. */
  claim(id: string): Promise<Position>;
}

export class Edits {
  readonly #room: Room;
  readonly #context: EditsContext;
  readonly #edits = new Map<string, Edit>();

  constructor(room: Room, context: EditsContext) {
    this.#room = room;
    this.#context = context;
  }

  get(id: string): Edit | undefined {
    return this.#edits.get(id);
  }

  ids(): Iterable<string> {
    return this.#edits.keys();
  }

  /** How many changes have no answer yet. */
  get waiting(): number {
    return [...this.#edits.values()].filter(({ stage }) => stage.kind === "sending").length;
  }

  /** Whether a card's lock must not be given back yet. */
  needsLock(id: string): boolean {
    const stage = this.#edits.get(id)?.stage;
    return stage?.kind === "sending" || (stage?.kind === "refused" && stage.claiming);
  }

  /** Makes of a card what the visitor wants. */
  write(id: string, base: Known, mine: Card | null, fence?: Position): void {
    const before = this.#edits.get(id);
    // One change of a card at a time is on its way. The next one is made from what becomes of it.
    if (before?.stage.kind === "sending") this.#put(id, { ...before, mine, fence: fence ?? before.fence });
    else this.#send(id, { base, mine, fence, stage: { kind: "sending" } });
  }

  /** Gives a refused change up. */
  keepTheirs(id: string): void {
    this.#edits.delete(id);
    this.#context.changed();
  }

  /** Writes a refused change after all, over what the visitor was shown, once the card's lock is free. */
  async keepMine(id: string): Promise<void> {
    const edit = this.#edits.get(id);
    if (edit?.stage.kind !== "refused" || edit.stage.claiming) return;
    const { stage } = edit;
    const stillWanted = () => {
      const now = this.#edits.get(id)?.stage;
      return now?.kind === "refused" && now.claiming;
    };
    this.#put(id, { ...edit, stage: { ...stage, claiming: true } });
    try {
      const fence = await this.#context.claim(id);
      if (stillWanted()) this.#send(id, { ...edit, base: stage.theirs, fence, stage: { kind: "sending" } });
    } catch (error) {
      if (stillWanted()) this.#refuse(id, edit, stage.theirs, error as RoomfulError);
    }
  }

  /** The room moved on: what it has told of is no edit any more, and what was refused is held against what is there now. */
  followed(): void {
    for (const [id, edit] of this.#edits) {
      const { stage } = edit;
      if (stage.kind === "stored" && this.#told(stage.at)) this.#edits.delete(id);
      if (stage.kind === "refused") this.#edits.set(id, { ...edit, stage: { ...stage, theirs: newer(stage.theirs, knownOf(this.#room.values.get(keyOf(id)))) } });
    }
  }

  #told(at: Position): boolean {
    const { position } = this.#room;
    return position === undefined || position.epoch !== at.epoch || comparePositions(position, at) >= 0;
  }

  #put(id: string, edit: Edit): void {
    this.#edits.set(id, edit);
    this.#context.changed();
  }

  #send(id: string, edit: Edit): void {
    this.#put(id, edit);
    this.#write(id, edit).then(
      ({ position }) => this.#stored(id, edit.mine, position),
      (error: RoomfulError) => this.#failed(id, error),
    );
  }

  async #write(id: string, { base, mine, fence }: Edit): Promise<Published> {
    const [key, { values }] = [keyOf(id), this.#room];
    const conditions = {
      ...(base.version ? { ifVersion: base.version } : { ifAbsent: true }),
      ...(fence && { ifFence: { lock: key, fence } }),
    };
    return mine ? values.put(key, valueOf(mine), conditions) : values.delete(key, conditions);
  }

  #stored(id: string, sent: Card | null, at: Position): void {
    const edit = this.#edits.get(id)!;
    if (edit.mine !== sent) return this.#send(id, { ...edit, base: { card: sent, version: at } });
    if (this.#told(at)) this.#edits.delete(id);
    else this.#edits.set(id, { ...edit, stage: { kind: "stored", at } });
    this.#context.changed();
  }

  #failed(id: string, error: RoomfulError): void {
    const edit = this.#edits.get(id)!;
    const current = error.current.find(({ key }) => key === keyOf(id));
    const theirs = knownOf(current ?? this.#room.values.get(keyOf(id)));
    const both = error.code === errorCode.conflict ? merged(edit.base.card, edit.mine, theirs.card) : undefined;
    if (both === undefined) return this.#refuse(id, edit, theirs, error);
    if (sameCard(both, theirs.card)) return this.keepTheirs(id);
    this.#send(id, { ...edit, base: theirs, mine: both });
  }

  #refuse(id: string, edit: Edit, theirs: Known, error: RoomfulError): void {
    this.#put(id, { ...edit, stage: { kind: "refused", error, theirs, claiming: false } });
    this.#context.refused(id);
  }
}

/** Of two pictures of a card the later one; a card that is gone without a trace stays what was known of its end. */
function newer(known: Known, seen: Known): Known {
  if (!seen.version) return known.card ? seen : known;
  return known.version && comparePositions(known.version, seen.version) >= 0 ? known : seen;
}
