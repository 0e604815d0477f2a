// Who somebody says they are: a name and a colour. What comes from others is checked here, once.

export interface Person {
  readonly name: string;
  /** An angle on the colour wheel, 0 to 359. */
  readonly hue: number;
}

export const NAME_LENGTH_MAX = 32;

/** The colours to choose from. */
export const HUES = [25, 60, 95, 145, 180, 220, 255, 290, 325, 0] as const;

/** Reads what another client published or set; what it leaves out is made up from its user id. */
export function personOf(value: unknown, user: string): Person {
  const { name, hue } = (typeof value === "object" && value !== null ? value : {}) as { name?: unknown; hue?: unknown };
  return {
    name: (typeof name === "string" ? cleanName(name) : undefined) ?? user,
    hue: typeof hue === "number" && hue >= 0 && hue < 360 ? Math.round(hue) : hueOf(user),
  };
}

/** A name without control and direction characters and stray spaces; undefined when nothing is left. */
export function cleanName(name: string): string | undefined {
  const clean = name.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "").replace(/\s+/gu, " ").trim();
  return clean === "" ? undefined : Array.from(clean).slice(0, NAME_LENGTH_MAX).join("");
}

export function randomPerson(): Person {
  return { name: `${pick(ADJECTIVES)} ${pick(ANIMALS)}`, hue: pick(HUES) };
}

/** A colour that follows from a text, the same everywhere. */
export function hueOf(text: string): number {
  return Array.from(text).reduce((hash, character) => (hash * 31 + character.codePointAt(0)!) % 360, 7);
}

function pick<T>(from: readonly T[]): T {
  return from[Math.floor(Math.random() * from.length)]!;
}

const ADJECTIVES = ["Brave", "Bright", "Calm", "Clever", "Curious", "Gentle", "Happy", "Keen", "Kind", "Lively", "Lucky", "Merry", "Nimble", "Patient", "Quiet", "Quick", "Sunny", "Swift", "Warm", "Witty"];
const ANIMALS = ["Badger", "Crane", "Dolphin", "Falcon", "Fox", "Hare", "Heron", "Ibex", "Lynx", "Magpie", "Marmot", "Otter", "Owl", "Panda", "Puffin", "Robin", "Seal", "Stork", "Swan", "Wren"];
