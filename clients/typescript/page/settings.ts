// What the address and this browser remember: the room, the name, the theme, and which users one has been.

import { cleanName, hueOf, randomPerson, type Person } from "./person.js";

export const DEFAULT_ROOM = "chat:lobby";

export interface Address {
  readonly room: string;
  /** A name for this tab alone; nothing is stored then. */
  readonly name: string | undefined;
  /** A token, for a server that wants one. It stays behind the hash, which no server is sent. */
  readonly token: string | undefined;
  /** What of the room is shown. */
  readonly view: View;
}

export type View = "chat" | "board";

/** Reads `#room=chat:name&name=Ada&token=…&view=board`. */
export function readAddress(): Address {
  const hash = new URLSearchParams(location.hash.slice(1));
  return {
    room: hash.get("room") || DEFAULT_ROOM,
    name: cleanName(hash.get("name") ?? ""),
    token: hash.get("token") ?? undefined,
    view: hash.get("view") === "board" ? "board" : "chat",
  };
}

/** Notes in the address what is shown, so that a link and a reload lead there. */
export function rememberView(view: View): void {
  const others = location.hash.slice(1).split("&").filter((part) => part !== "" && !part.startsWith("view="));
  history.replaceState(null, "", `#${[...others, `view=${view}`].join("&")}`);
}

/** The hash that leads to a room, as this visitor or as another one. */
export function hashOf(room: string, name?: string, view: View = "chat"): string {
  // A room's name has no character that would need to be escaped behind the hash, but for `+` and `=` and `&`.
  const parts = [`room=${room.replace(/[%+&]/g, encodeURIComponent)}`];
  if (name !== undefined) parts.push(`name=${encodeURIComponent(name)}`);
  if (view !== "chat") parts.push(`view=${view}`);
  return `#${parts.join("&")}`;
}

/** Who this visitor is, if that is known: from the address, or from an earlier visit. */
export function knownPerson(address: Address): Person | undefined {
  if (address.name !== undefined) return { name: address.name, hue: hueOf(address.name) };
  const stored = read<Partial<Person>>("person");
  const name = cleanName(String(stored?.name ?? ""));
  return name === undefined ? undefined : { name, hue: Number(stored?.hue) || randomPerson().hue };
}

export function rememberPerson(person: Person): void {
  write("person", person);
}

export type Theme = "auto" | "light" | "dark";

export function storedTheme(): Theme {
  const stored = read<string>("theme");
  return stored === "light" || stored === "dark" ? stored : "auto";
}

export function rememberTheme(theme: Theme): void {
  write("theme", theme);
}

/** The user ids that the server has known this browser by: how old messages are told to be one's own. */
export class OwnUsers {
  readonly #users = new Set((read<unknown[]>("users") ?? []).map(String));

  has(user: string): boolean {
    return this.#users.has(user);
  }

  add(user: string): void {
    if (this.#users.has(user)) return;
    this.#users.add(user);
    write("users", [...this.#users].slice(-OWN_USERS_MAX));
  }
}

const OWN_USERS_MAX = 50;

function read<T>(key: string): T | undefined {
  try {
    return (JSON.parse(localStorage.getItem(`roomful.${key}`) ?? "null") as T | null) ?? undefined;
  } catch {
    // Storage may be switched off, or hold what somebody else wrote.
    return undefined;
  }
}

function write(key: string, value: unknown): void {
  try {
    localStorage.setItem(`roomful.${key}`, JSON.stringify(value));
  } catch {
    // Without storage the page forgets, and works.
  }
}
