declare module "kaizen:plugin/progress@0.1.0" {
  /** Shown to people while they wait; percent from 0 to 100. */
  export function report(percent: number | undefined, message: string): void;
}
