// The two dialogs: who one is, and which room to enter.

import { byId, element, paint } from "./dom.js";
import { cleanName, HUES, type Person } from "./person.js";
import { hashOf } from "./settings.js";

/** Asks for name and colour, with a proposal. Resolves with undefined when cancelled, which the first time it can't be. */
export function askPerson(room: string, proposal: Person, first: boolean): Promise<Person | undefined> {
  const dialog = byId<HTMLDialogElement>("name-dialog");
  const input = byId<HTMLInputElement>("name-input");
  byId("name-room").textContent = room;
  byId("name-submit").textContent = first ? "Join the room" : "Save";
  byId("name-cancel").hidden = first;
  input.value = proposal.name;
  const hue = chooseHue(proposal.hue);
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    const listeners = new AbortController();
    const done = (person: Person | undefined) => {
      listeners.abort();
      dialog.close();
      resolve(person);
    };
    const { signal } = listeners;
    byId("name-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const name = cleanName(input.value);
      if (name !== undefined) done({ name, hue: hue() });
    }, { signal });
    byId("name-cancel").addEventListener("click", () => done(undefined), { signal });
    // Escape, or the platform's own way of closing a dialog.
    dialog.addEventListener("close", () => (first ? dialog.showModal() : done(undefined)), { signal });
  });
}

/** Fills the row of colours; gives what is chosen. */
function chooseHue(chosen: number): () => number {
  const row = byId("hues");
  const radios = HUES.map((hue, index) => {
    const label = element("label", "hue");
    const radio = document.createElement("input");
    radio.type = "radio";
    radio.name = "hue";
    radio.checked = hue === chosen || (index === 0 && !HUES.some((known) => known === chosen));
    radio.setAttribute("aria-label", `Colour ${index + 1}`);
    paint(label, hue);
    label.append(radio, element("span", "swatch"));
    row.append(label);
    return { hue, radio };
  });
  row.replaceChildren(...radios.map(({ radio }) => radio.parentElement!));
  return () => radios.find(({ radio }) => radio.checked)?.hue ?? chosen;
}

export function startRoomDialog(room: () => string): void {
  const dialog = byId<HTMLDialogElement>("room-dialog");
  const input = byId<HTMLInputElement>("room-input");
  byId("room-button").addEventListener("click", () => {
    input.value = room();
    dialog.showModal();
    input.select();
  });
  byId("room-cancel").addEventListener("click", () => dialog.close());
  byId("room-form").addEventListener("submit", () => {
    location.hash = hashOf(input.value);
  });
  byId("copy-link").addEventListener("click", () => void copyLink(room()));
}

async function copyLink(room: string): Promise<void> {
  const text = byId("copy-text");
  try {
    await navigator.clipboard.writeText(new URL(hashOf(room), location.href).href);
    text.textContent = "Copied";
  } catch {
    // The platform may refuse; the address bar has the same link.
    text.textContent = "Copy it from the address bar";
  }
  setTimeout(() => (text.textContent = "Copy link"), 2_000);
}
