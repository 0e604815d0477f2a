// Builds the page into server/assets, byte by byte the same wherever it runs.

import { copyFile, mkdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const page = new URL("./", import.meta.url);
const assets = new URL("../../../server/assets/", import.meta.url);

await mkdir(assets, { recursive: true });
await build({
  absWorkingDir: fileURLToPath(page),
  entryPoints: { app: "main.ts" },
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  outdir: fileURLToPath(assets),
});
await build({
  absWorkingDir: fileURLToPath(page),
  entryPoints: ["app.css"],
  minify: true,
  charset: "utf8",
  outdir: fileURLToPath(assets),
});
for (const file of ["index.html", "favicon.svg"]) await copyFile(new URL(file, page), new URL(file, assets));
