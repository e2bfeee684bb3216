// `npm test`: bundles test/*.test.js, with stand-ins for what only the server has, and runs them in Node.js.
import { spawnSync } from "node:child_process";
import { readdirSync, rmSync } from "node:fs";
import { build } from "esbuild";

/** Logging and progress go nowhere; `reveal` gives the secret's name back. */
const server = {
  name: "server",
  setup(bundle) {
    bundle.onResolve({ filter: /^kaizen:/ }, ({ path }) => ({ path, namespace: "server" }));
    bundle.onLoad({ filter: /.*/, namespace: "server" }, () => ({
      contents: "export const reveal = (name) => name, write = () => {}, report = () => {};",
    }));
  },
};

const tests = readdirSync("test").filter((file) => file.endsWith(".test.js"));
rmSync("dist/test", { recursive: true, force: true });
await build({
  entryPoints: tests.map((file) => `test/${file}`),
  outdir: "dist/test",
  bundle: true,
  format: "esm",
  platform: "node",
  plugins: [server],
});
const bundled = tests.map((file) => `dist/test/${file}`);
process.exit(spawnSync(process.execPath, ["--test", ...bundled], { stdio: "inherit" }).status ?? 1);
