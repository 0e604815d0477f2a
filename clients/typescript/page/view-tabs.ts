// What of the room is shown: the conversation or the board. The tab of what is not shown says what one misses.

import { byId } from "./dom.js";
import type { View } from "./settings.js";

const VIEWS: readonly View[] = ["chat", "board"];

export class ViewTabs {
  readonly #changed: (view: View) => void;
  #view: View = "chat";
  #unread = 0;

  /** `changed` is called when the visitor chooses. */
  constructor(view: View, changed: (view: View) => void) {
    this.#changed = changed;
    for (const name of VIEWS) {
      const tab = tabOf(name);
      tab.addEventListener("click", () => this.#choose(name));
      tab.addEventListener("keydown", ({ key }) => {
        if (key !== "ArrowLeft" && key !== "ArrowRight") return;
        const other = VIEWS.find((view) => view !== name)!;
        this.#choose(other);
        tabOf(other).focus();
      });
    }
    this.show(view);
  }

  show(view: View): void {
    this.#view = view;
    byId("app").dataset.view = view;
    for (const name of VIEWS) {
      tabOf(name).setAttribute("aria-selected", String(name === view));
      tabOf(name).tabIndex = name === view ? 0 : -1;
      byId(name).hidden = name !== view;
    }
    this.#showUnread(view === "chat" ? 0 : this.#unread);
  }

  /** Somebody said something. */
  spoken(): void {
    if (this.#view !== "chat") this.#showUnread(this.#unread + 1);
  }

  /** There are so many cards. */
  counted(cards: number): void {
    byId("tab-board-count").textContent = cards === 0 ? "" : String(cards);
  }

  #choose(view: View): void {
    this.show(view);
    this.#changed(view);
  }

  #showUnread(unread: number): void {
    this.#unread = unread;
    byId("tab-chat-count").textContent = unread === 0 ? "" : `${unread} new`;
  }
}

function tabOf(view: View): HTMLElement {
  return byId(`tab-${view}`);
}
