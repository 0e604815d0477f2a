"""Python `websockets` talks to Roomful by protocol/SPEC.md alone, in both subprotocols: `python third_party.py http://127.0.0.1:7400`."""

import base64
import hashlib
import json
import secrets
import sys
import traceback
from contextlib import ExitStack

import msgpack
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

URL = sys.argv[1].replace("http", "ws", 1) + "/v1/ws"
PATIENCE = 10

CLIENT = {"hello": 1, "join": 2, "leave": 3, "publish": 4, "signal": 5, "presence": 6, "history": 7, "refresh": 8, "ping": 9, "batch": 10}
SERVER = {
    32: "welcome", 33: "joined", 34: "event", 35: "advance", 36: "signal", 37: "presence", 38: "ok", 39: "error", 40: "caught_up",
    41: "left", 42: "token_expiring", 43: "goaway", 44: "pong", 45: "batch",
}
FORMATS = ["binary", "json", "text", "msgpack"]
WORDS = {
    "watch": ["none", "occupancy", "members"],
    "recovery": ["live", "recovering", "reset"],
    "reply": ["done", "published", "members", "history", "refreshed"],
    "action": ["get", "set", "watch"],
    "change": ["present", "gone"],
    "direction": ["forward", "backward"],
}


class Msgpack:
    """Frames as MessagePack arrays in binary messages; types and words are numbers."""

    name, subprotocol = "msgpack", "roomful.v1.msgpack"
    trailing, unknown = b"\x92\x09\x05\xc0", b"\x92\x63\x05"

    def encode(self, kind, *fields):
        return msgpack.packb([CLIENT[kind], *fields])

    def decode(self, message):
        assert isinstance(message, bytes), "a text message on a binary subprotocol"
        return msgpack.unpackb(message)

    def kind(self, code):
        return SERVER[code]

    def word(self, words, name):
        return WORDS[words].index(name)

    def payload(self, form, value):
        content = {"json": lambda: json.dumps(value).encode(), "text": lambda: value.encode()}.get(form, lambda: value)
        return [FORMATS.index(form), content()]

    def content(self, payload):
        form, content = FORMATS[payload[0]], payload[1]
        return {"json": json.loads, "text": bytes.decode}.get(form, bytes)(content)


class Json:
    """Frames as JSON arrays in text messages; types and words are names."""

    name, subprotocol = "json", "roomful.v1.json"
    trailing, unknown = '["ping",5] 1', '["hullo",5]'

    def encode(self, kind, *fields):
        return json.dumps([kind, *fields])

    def decode(self, message):
        assert isinstance(message, str), "a binary message on a text subprotocol"
        return json.loads(message)

    def kind(self, name):
        return name

    def word(self, _words, name):
        return name

    def payload(self, form, value):
        return [form, base64.b64encode(value).decode() if form == "binary" else value]

    def content(self, payload):
        form, content = payload
        return base64.b64decode(content) if form == "binary" else content


class Refused(Exception):
    """The server's `error` frame."""

    def __init__(self, fields):
        super().__init__(fields)
        self.code = fields[1]


class Peer:
    """One connection, and what has arrived on it."""

    def __init__(self, wire, room, resume=None):
        key = hashlib.sha256(room.encode()).hexdigest()[:16]
        self.wire, self.frames, self.requests = wire, [], 0
        self.open = ExitStack()
        opening = connect(f"{URL}?k={key}", subprotocols=[wire.subprotocol], open_timeout=PATIENCE)
        self.socket = self.open.enter_context(opening)
        assert self.socket.subprotocol == wire.subprotocol
        self.welcome = self.ask("hello", None, resume, "python websockets")

    def send(self, kind, *fields):
        self.socket.send(self.wire.encode(kind, *fields))

    def receive(self):
        """Waits for one message and keeps its frames."""
        frame = self.wire.decode(self.socket.recv(timeout=PATIENCE))
        frames = frame[1] if self.wire.kind(frame[0]) == "batch" else [frame]
        self.frames += [(self.wire.kind(frame[0]), frame[1:]) for frame in frames]

    def first(self, test):
        """Takes the first frame that passes a test, whatever else waits."""
        while not any(test(*frame) for frame in self.frames):
            self.receive()
        index = next(index for index, frame in enumerate(self.frames) if test(*frame))
        return self.frames.pop(index)

    def next(self, wanted):
        return self.first(lambda kind, _fields: kind == wanted)[1]

    def ask(self, kind, *fields):
        """Sends a request and gives the fields of its one reply."""
        self.requests += 1
        request = self.requests
        self.send(kind, request, *fields)
        reply = {"hello": "welcome", "join": "joined", "ping": "pong"}.get(kind, "ok")
        found, answer = self.first(lambda kind, fields: kind in (reply, "error") and fields[0] == request)
        if found == "error":
            raise Refused(answer)
        return answer

    def join(self, room, since=None, producer=None, watch="none", presence=None):
        fields = self.ask("join", room, since, producer, True, self.wire.word("watch", watch), presence)
        names = ["request", "alias", "member", "position", "head", "recovery", "durability", "revision", "occupancy"]
        return dict(zip(names, fields))

    def publish(self, alias, form, value, op=None):
        reply = self.ask("publish", alias, op, self.wire.payload(form, value))[1]
        assert reply[0] == self.wire.word("reply", "published")
        position, _time, duplicate = reply[1]
        return position, duplicate

    def event(self):
        _alias, (offset, _time, _kind, user, op, payload) = self.next("event")
        return {"offset": offset, "user": user, "op": op, "content": self.wire.content(payload)}

    def assert_quiet(self):
        """Nothing but the answer to a ping is left to come."""
        self.ask("ping")
        assert self.frames == [], self.frames

    def close(self):
        self.open.close()


def new_room():
    return f"chat:{secrets.token_hex(6)}"


def refused(code, call):
    try:
        call()
    except Refused as error:
        assert error.code == code, error
    else:
        raise AssertionError(f"not refused with {code}")


def hello_is_answered_by_welcome(wire):
    peer = Peer(wire, new_room())
    _request, session, resumed, user, resume, heartbeat, time, expires, limits = peer.welcome
    assert len(session) == 32 and not resumed and user.startswith("anon-") and resume and heartbeat > 0
    assert expires is None and all(limit > 0 for limit in limits)
    assert peer.ask("ping")[1] >= time
    peer.close()


def a_publish_is_acknowledged_with_the_position_of_its_event(wire):
    room = new_room()
    writer, reader = Peer(wire, room), Peer(wire, room)
    joined = writer.join(room)
    assert (joined["position"][1], joined["recovery"], joined["occupancy"]) == (0, wire.word("recovery", "live"), 1)
    assert reader.join(room)["occupancy"] == 2
    for form, value in [("text", "grüezi"), ("json", {"a": [1, None]}), ("binary", b"\x00\xff")]:
        position, duplicate = writer.publish(joined["alias"], form, value)
        assert not duplicate
        for peer in (writer, reader):
            event = peer.event()
            assert (event["offset"], event["content"], event["user"]) == (position[1], value, writer.welcome[3]), event
    writer.close(), reader.close()


def a_join_since_a_position_recovers_all_after_it(wire):
    room = new_room()
    writer = Peer(wire, room)
    joined = writer.join(room)
    for number in range(1, 21):
        writer.publish(joined["alias"], "text", str(number))
    epoch = joined["position"][0]
    reader = Peer(wire, room)
    back = reader.join(room, since=[epoch, 5])
    assert (back["recovery"], back["position"], back["head"]) == (wire.word("recovery", "recovering"), [epoch, 5], [epoch, 20])
    for number in range(6, 21):
        event = reader.event()
        assert (event["offset"], event["content"]) == (number, str(number))
    assert reader.next("caught_up") == [back["alias"], 20]
    assert Peer(wire, room).join(room, since=[epoch + 1, 5])["recovery"] == wire.word("recovery", "reset")
    writer.close(), reader.close()


def an_op_id_takes_effect_once(wire):
    room = new_room()
    peer = Peer(wire, room)
    op = [secrets.randbelow(2**53), 1]
    alias = peer.join(room, producer=op)["alias"]
    first, again = peer.publish(alias, "text", "once", op), peer.publish(alias, "text", "once", op)
    assert again == (first[0], True), again
    refused(401, lambda: peer.publish(alias, "text", "other", op))
    assert peer.event()["op"] == op
    peer.close()


def presence_shows_who_comes_changes_and_goes(wire):
    room = new_room()
    watcher, comer = Peer(wire, room), Peer(wire, room)
    alias = watcher.join(room, watch="members")["alias"]
    member = comer.join(room, presence=wire.payload("json", {"name": "Ada"}))["member"]

    def change(kind, content):
        def concerns(frame, fields):
            return frame == "presence" and any(change[0] == member for change in fields[3])

        changes = watcher.first(concerns)[1][3]
        found = next(change for change in changes if change[0] == member)
        value = found[3] and wire.content(found[3])
        assert (found[1], found[2], value) == (wire.word("change", kind), comer.welcome[3], content), found

    change("present", {"name": "Ada"})
    kind, page = watcher.ask("presence", alias, [wire.word("action", "get"), None, 10])[1]
    assert kind == wire.word("reply", "members") and (page[1], len(page[2]), page[3]) == (2, 2, None), page
    comer.ask("presence", alias, [wire.word("action", "set"), wire.payload("text", "away")])
    change("present", "away")
    comer.ask("leave", alias)
    change("gone", None)
    watcher.close(), comer.close()


def a_signal_reaches_the_others_and_not_its_sender(wire):
    room = new_room()
    sender, first, second = Peer(wire, room), Peer(wire, room), Peer(wire, room)
    joined = sender.join(room)
    first.join(room)
    addressed = second.join(room)["member"]
    sender.send("signal", None, joined["alias"], None, "typing", wire.payload("json", True))
    sender.ask("signal", joined["alias"], addressed, None, wire.payload("text", "psst"))
    for peer, expected in [(first, [True]), (second, [True, "psst"])]:
        for content in expected:
            _alias, member, user, key, payload = peer.next("signal")
            assert (member, user, wire.content(payload)) == (joined["member"], sender.welcome[3], content), (wire.content(payload), content)
            assert key == ("typing" if content is True else None)
        peer.assert_quiet()
    sender.assert_quiet()
    sender.close(), first.close(), second.close()


def history_is_paged_both_ways(wire):
    room = new_room()
    peer = Peer(wire, room)
    joined = peer.join(room)
    for number in range(1, 8):
        peer.publish(joined["alias"], "text", str(number))
    for direction, start, offsets, more in [
        ("backward", None, [5, 6, 7], True), ("backward", 5, [2, 3, 4], True), ("backward", 2, [1], False),
        ("forward", None, [1, 2, 3], True), ("forward", 6, [7], False),
    ]:
        start = start and [joined["position"][0], start]
        kind, page = peer.ask("history", joined["alias"], start, wire.word("direction", direction), 3)[1]
        assert kind == wire.word("reply", "history")
        assert ([entry[0] for entry in page[0]], page[1] is not None) == (offsets, more), (direction, start, page)
    peer.close()


def a_slip_gets_a_typed_error_and_the_connection_lives(wire):
    peer = Peer(wire, new_room())
    refused(300, lambda: peer.join("No Such Name"))
    refused(302, lambda: peer.publish(4_711, "text", "x"))
    for message, code in [(wire.trailing, 100), (wire.unknown, 101)]:
        peer.socket.send(message)
        request, found, text, _retry = peer.next("error")[:4]
        assert (request, found) == (5, code) and text
    peer.assert_quiet()
    peer.close()


def a_session_is_resumed_by_its_token(wire):
    room = new_room()
    peer, watcher = Peer(wire, room), Peer(wire, room)
    joined = peer.join(room)
    alias = watcher.join(room)["alias"]
    peer.socket.socket.close()
    watcher.publish(alias, "text", "meanwhile")
    back = Peer(wire, room, resume=peer.welcome[4])
    assert back.welcome[1:4] == [peer.welcome[1], True, peer.welcome[3]], back.welcome
    again = back.join(room, since=joined["position"])
    assert (again["member"], again["occupancy"]) == (joined["member"], 2), again
    assert back.event()["content"] == "meanwhile"
    back.close(), watcher.close()


def the_wrong_kind_of_message_closes_with_1003(wire):
    peer = Peer(wire, new_room())
    message = wire.encode("ping", 9)
    peer.socket.send(message.encode() if isinstance(message, str) else "[]")
    try:
        while True:
            peer.receive()
    except ConnectionClosed as closed:
        assert closed.rcvd is not None and closed.rcvd.code == 1003, closed


CASES = [
    hello_is_answered_by_welcome,
    a_publish_is_acknowledged_with_the_position_of_its_event,
    a_join_since_a_position_recovers_all_after_it,
    an_op_id_takes_effect_once,
    presence_shows_who_comes_changes_and_goes,
    a_signal_reaches_the_others_and_not_its_sender,
    history_is_paged_both_ways,
    a_slip_gets_a_typed_error_and_the_connection_lives,
    a_session_is_resumed_by_its_token,
    the_wrong_kind_of_message_closes_with_1003,
]


def main():
    failed = 0
    for wire in (Msgpack(), Json()):
        for case in CASES:
            name = f"{wire.name}: {case.__name__.replace('_', ' ')}"
            try:
                case(wire)
                print(f"ok   {name}", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    print(f"{2 * len(CASES) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
