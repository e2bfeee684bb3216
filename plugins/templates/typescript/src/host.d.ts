// What the server offers to a plugin, as in wit/deps/kaizen-plugin/plugin.wit.

declare module "kaizen:plugin/log@0.1.0" {
  export type Level = "debug" | "info" | "warn" | "error";
  export function write(level: Level, message: string): void;
}

declare module "kaizen:plugin/secrets@0.1.0" {
  /** The value of a secret that a `reveal-secret` capability names. Throws the reason where it is not given. */
  export function reveal(name: string): string;
}
