// socket.io over its WebSocket transport alone. The query names the room; an event goes to everybody in it, its sender included.
import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const io = new Server(http, {
  transports: ["websocket"],
  serveClient: false,
  perMessageDeflate: false,
  httpCompression: false,
});

io.on("connection", (socket) => {
  const { room } = socket.handshake.query;
  socket.join(room);
  socket.emit("joined");
  socket.on("p", (payload) => io.to(room).emit("p", payload));
});

http.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => {
  console.log(`listening address=127.0.0.1:${http.address().port}`);
});
