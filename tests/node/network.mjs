// A network between a browser and the server that can be cut: what is on its way is lost, and both ends see a reset.

import { createServer, connect } from "node:net";

export class Network {
  /** Listens on a port of its own and leads to the server. */
  static async start(server) {
    const network = new Network();
    network.server = server;
    network.pairs = new Set();
    network.listener = createServer((near) => network.#join(near));
    await new Promise((resolve) => network.listener.listen(0, "127.0.0.1", resolve));
    network.host = `127.0.0.1:${network.listener.address().port}`;
    network.origin = `http://${network.host}`;
    return network;
  }

  #join(near) {
    const far = connect(Number(this.server.port), this.server.hostname);
    const pair = { near, far, isWebSocket: false };
    this.pairs.add(pair);
    near.on("data", (bytes) => {
      const text = bytes.toString("latin1");
      // The server answers to its own name alone, so a request must carry it. WebSocket frames are left as they are.
      const isHead = !pair.isWebSocket && text.startsWith("GET ");
      pair.isWebSocket ||= /\r\nupgrade: websocket/i.test(text);
      far.write(isHead ? Buffer.from(text.replaceAll(this.host, this.server.host), "latin1") : bytes);
    });
    far.on("data", (bytes) => near.write(bytes));
    for (const [socket, other] of [[near, far], [far, near]]) {
      socket.on("error", () => {});
      socket.on("close", () => {
        this.pairs.delete(pair);
        other.destroy();
      });
    }
  }

  /** Cuts every WebSocket; gives how many there were. */
  cut() {
    const cut = this.webSockets();
    for (const pair of cut) {
      this.pairs.delete(pair);
      pair.near.resetAndDestroy();
      pair.far.resetAndDestroy();
    }
    return cut.length;
  }

  /** The WebSockets that are open. */
  webSockets() {
    return [...this.pairs].filter(({ isWebSocket }) => isWebSocket);
  }

  stop() {
    this.listener.close();
    for (const { near, far } of this.pairs) {
      near.destroy();
      far.destroy();
    }
  }
}
