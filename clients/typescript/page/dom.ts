// Small helpers for the document. Text of others only ever becomes text nodes.

/** The element with this id, which the page's HTML has. */
export function byId<E extends Element = HTMLElement>(id: string): E {
  return document.getElementById(id) as unknown as E;
}

/** A copy of a template's one element. */
export function fromTemplate(id: string): HTMLElement {
  return byId<HTMLTemplateElement>(id).content.firstElementChild!.cloneNode(true) as HTMLElement;
}

/** The first match inside; the templates have it. */
export function part<E extends HTMLElement = HTMLElement>(root: Element, selector: string): E {
  return root.querySelector<E>(selector)!;
}

export function element(tag: string, className: string, text = ""): HTMLElement {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Fills an avatar: initials on the person's colour. */
export function paintAvatar(avatar: HTMLElement, person: { name: string; hue: number }): void {
  avatar.textContent = initials(person.name);
  paint(avatar, person.hue);
}

/** Gives an element a person's colour, as the variable `--hue`. */
export function paint(target: HTMLElement, hue: number): void {
  target.style.setProperty("--hue", String(hue));
}

function initials(name: string): string {
  const words = name.split(/\s+/).filter((word) => word !== "");
  const letters = words.length > 1 ? [words[0]!, words[words.length - 1]!] : words;
  return letters.map((word) => Array.from(word)[0]!.toUpperCase()).join("");
}

/** Calls `action` now, and again at most once every so many milliseconds, the last time with the latest argument. */
export function throttled<T>(everyMs: number, action: (value: T) => void): (value: T) => void {
  let readyMs = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  return (value) => {
    clearTimeout(timer);
    const waitMs = readyMs - performance.now();
    const run = () => {
      readyMs = performance.now() + everyMs;
      action(value);
    };
    if (waitMs <= 0) run();
    else timer = setTimeout(run, waitMs);
  };
}
