// Bun's built-in WebSocket with its publish and subscribe, which is uWebSockets inside. The URL names the room; a message goes to
// everybody in it, its sender included.
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch(request, server) {
    if (server.upgrade(request, { data: { room: request.url } })) return undefined;
    return new Response("a WebSocket is expected", { status: 426 });
  },
  websocket: {
    open(socket) {
      socket.subscribe(socket.data.room);
      // The reply to joining, as the tester knows it.
      socket.send(new Uint8Array(0));
    },
    message(socket, message) {
      server.publish(socket.data.room, message);
    },
  },
});

console.log(`listening address=127.0.0.1:${server.port}`);
