// Light, dark, or as the system says.

import { byId } from "./dom.js";
import { rememberTheme, storedTheme, type Theme } from "./settings.js";

const ORDER: readonly Theme[] = ["auto", "light", "dark"];
const LOOK: Record<Theme, { icon: string; label: string }> = {
  auto: { icon: "#i-auto", label: "Theme: as the system" },
  light: { icon: "#i-sun", label: "Theme: light" },
  dark: { icon: "#i-moon", label: "Theme: dark" },
};

export function startTheme(): void {
  let theme = storedTheme();
  apply(theme);
  byId("theme-button").addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length]!;
    rememberTheme(theme);
    apply(theme);
  });
}

function apply(theme: Theme): void {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme-icon").setAttribute("href", LOOK[theme].icon);
  byId("theme-label").textContent = LOOK[theme].label;
  byId("theme-button").title = LOOK[theme].label;
}
