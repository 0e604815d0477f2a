// Who is here: the list, the stack of avatars in the bar, and names for member numbers.

import type { Member } from "../src/index.js";
import { byId, element, fromTemplate, paintAvatar, part } from "./dom.js";
import { personOf, type Person } from "./person.js";

export class People {
  readonly #list = byId<HTMLUListElement>("people");
  readonly #stack = byId("stack");
  #members: ReadonlyMap<number, Member> = new Map();

  /** Shows the members, the own one first. */
  show(members: ReadonlyMap<number, Member>, own: number | undefined): void {
    this.#members = members;
    const ordered = [...members.values()].sort((a, b) => Number(b.member === own) - Number(a.member === own) || a.member - b.member);
    byId("people-count").textContent = String(ordered.length);
    this.#list.replaceChildren(...ordered.slice(0, SHOWN_MAX).map((member) => row(member, member.member === own)));
    if (ordered.length > SHOWN_MAX) this.#list.append(element("li", "person more", `and ${ordered.length - SHOWN_MAX} more`));
    this.#stack.replaceChildren(...ordered.slice(0, STACK_MAX).map((member) => avatar(personOf(member.value, member.user))));
    if (ordered.length > 1) this.#stack.append(element("span", "avatar rest", String(ordered.length)));
  }

  /** Whether a member is there. */
  has(member: number): boolean {
    return this.#members.has(member);
  }

  /** Who a member is. */
  person(member: number, user: string): Person {
    return personOf(this.#members.get(member)?.value, user);
  }
}

function row(member: Member, own: boolean): HTMLElement {
  const item = fromTemplate("person-template");
  const person = personOf(member.value, member.user);
  paintAvatar(part(item, ".avatar"), person);
  const name = part(item, ".person-name");
  name.textContent = person.name;
  name.title = member.user;
  part(item, ".person-note").textContent = own ? "you" : "";
  item.dataset.own = String(own);
  return item;
}

function avatar(person: Person): HTMLElement {
  const made = element("span", "avatar");
  paintAvatar(made, person);
  return made;
}

const SHOWN_MAX = 60;
const STACK_MAX = 3;
