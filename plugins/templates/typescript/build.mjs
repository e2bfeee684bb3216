// `npm run build [FILE]`: checks the types, bundles src/plugin.ts into one module, and makes a component of it.
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { componentize } from "@bytecodealliance/componentize-js";
import { build } from "esbuild";

const { name } = JSON.parse(readFileSync("package.json", "utf8"));
const output = process.argv[2] ?? `dist/${name}.wasm`;

const types = spawnSync(process.execPath, ["node_modules/typescript/bin/tsc"], { stdio: "inherit" });
if (types.status !== 0) process.exit(types.status ?? 1);

mkdirSync("dist", { recursive: true });
await build({
  entryPoints: ["src/plugin.ts"],
  outfile: "dist/plugin.js",
  bundle: true,
  format: "esm",
  target: "es2022",
  external: ["kaizen:*", "wasi:*"],
});
const { component } = await componentize({
  sourcePath: "dist/plugin.js",
  witPath: "wit",
  worldName: "plugin",
  disableFeatures: [{{disabled}}],
});
mkdirSync(dirname(output), { recursive: true });
writeFileSync(output, component);
