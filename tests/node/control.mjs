// Has the server killed and started again, by the program that started it.

import { once } from "node:events";
import { connect } from "node:net";
import { createInterface } from "node:readline";

export class Control {
  /** @param {string} address host and port */
  static async connect(address) {
    const [host, port] = address.split(":");
    const control = new Control();
    control.socket = connect(Number(port), host);
    await once(control.socket, "connect");
    control.answers = createInterface(control.socket);
    return control;
  }

  /** Ends the server as nothing but SIGKILL does. */
  async kill() {
    await this.#order("kill");
  }

  /** Starts it in the same directory and on the same port; it listens then. */
  async start() {
    await this.#order("start");
  }

  async #order(order) {
    const answer = once(this.answers, "line");
    this.socket.write(`${order}\n`);
    await answer;
  }
}
