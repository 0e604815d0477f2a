// A card of the board: what this page writes under a key of the room's state, and what it makes of anything that somebody wrote there.

import type { Json, Position, Value } from "../src/index.js";
import { personOf, type Person } from "./person.js";

/** How the keys of cards begin. */
export const CARD_PREFIX = "card/";

export const LISTS = ["To do", "Doing", "Done"] as const;
export const TEXT_LENGTH_MAX = 1_000;

/** In which list a card lies, and where there: by ascending rank. */
export interface Place {
  /** An index of {@link LISTS}. */
  readonly list: number;
  readonly rank: number;
}

export interface Card extends Place {
  readonly text: string;
  /** Who wrote the text. */
  readonly by: Person;
}

/** A card as it was at a version. */
export interface Known {
  /** Null where there is none. */
  readonly card: Card | null;
  /** Null where nothing is known of the key. */
  readonly version: Position | null;
}

const UNKNOWN: Known = { card: null, version: null };

/** The key of a card, and the name of the lock that guards it. */
export function keyOf(id: string): string {
  return CARD_PREFIX + id;
}

/** What is written for a card. */
export function valueOf({ text, list, rank, by }: Card): Json {
  return { text, list, rank, name: by.name, hue: by.hue };
}

/** What stands under a key. */
export function knownOf(value: Value | undefined): Known {
  if (!value) return UNKNOWN;
  return { card: value.raw && cardOf(value.value), version: value.version };
}

/** Any client may write anything: what is no card of this page is shown as what it is. */
export function cardOf(value: unknown): Card {
  const { text, list, rank } = (typeof value === "object" && value !== null ? value : {}) as { text?: unknown; list?: unknown; rank?: unknown };
  return {
    text: (typeof text === "string" ? text : foreign(value)).slice(0, TEXT_LENGTH_MAX),
    list: typeof list === "number" && LISTS[list] !== undefined ? list : 0,
    rank: typeof rank === "number" && Number.isFinite(rank) ? rank : 0,
    by: personOf(value, "somebody"),
  };
}

/**
 * One card of what two made of the same one, null for its deletion; undefined where both changed the text, or one deleted what the other changed. A
 * place is worth no question: the own one counts.
 */
export function merged(base: Card | null, mine: Card | null, theirs: Card | null): Card | null | undefined {
  const [wrote, theyWrote] = [mine?.text !== base?.text, theirs?.text !== base?.text];
  if (mine?.text === theirs?.text) return mine && theirs && { ...theirs, ...placed(base, mine, theirs) };
  if (wrote && theyWrote) return undefined;
  const text = wrote ? mine : theirs;
  return text && { ...text, ...placed(base, mine ?? text, theirs ?? text) };
}

function placed(base: Card | null, mine: Place, theirs: Place): Place {
  const moved = mine.list !== base?.list || mine.rank !== base?.rank;
  const { list, rank } = moved ? mine : theirs;
  return { list, rank };
}

export function sameCard(a: Card | null, b: Card | null): boolean {
  return a === b || (a !== null && b !== null && a.text === b.text && a.list === b.list && a.rank === b.rank);
}

/** A rank between two others, of which either may be missing. */
export function rankBetween(before: number | undefined, after: number | undefined): number {
  if (before === undefined) return after === undefined ? 0 : after - 1;
  return after === undefined ? before + 1 : (before + after) / 2;
}

function foreign(value: unknown): string {
  if (typeof value === "string") return value;
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  return JSON.stringify(value) ?? "";
}
