package handshake

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/flynn/noise"

	"turbotunnel/common/wire"
)

// vectors reads testdata/vectors.txt, which an implementation of its own made
// from the description of the format.
func vectors(t *testing.T) map[string][]byte {
	t.Helper()
	f, err := os.Open("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v := make(map[string][]byte)
	for s := bufio.NewScanner(f); s.Scan(); {
		name, value, ok := strings.Cut(s.Text(), " ")
		if !ok || name == "#" {
			continue
		}
		b, err := hex.DecodeString(value)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v[name] = b
	}
	return v
}

func TestVectors(t *testing.T) {
	v := vectors(t)
	key, id := PrivateKey(v["static.private"]), ID(v["id"])
	pub := key.Public()
	if !bytes.Equal(pub[:], v["static.public"]) {
		t.Errorf("public key %x", pub[:])
	}
	if got, err := ParseID(id.String()); err != nil || got != id || !got.IsFor(pub, time.UnixMilli(1700000000123)) {
		t.Errorf("the session's ID: %v", err)
	}
	if wellKnown := WellKnown.Public(); !bytes.Equal(WellKnown[:], v["wellknown.private"]) || !bytes.Equal(wellKnown[:], v["wellknown.public"]) {
		t.Errorf("the well-known key is %x", WellKnown[:])
	}

	// The server reads message 1 of the vectors.
	responder, hello, err := key.Static().Respond(id, v["message1"])
	if err != nil {
		t.Fatal(err)
	}
	first := wire.AppendDatagram(wire.AppendDatagram(nil, []byte("first")), []byte("words"))
	if hello.Version != 1 || !hello.Time.Equal(time.UnixMilli(1700000000123)) || hello.Engine != "kcp-smux" ||
		!bytes.HasPrefix(hello.Datagrams, first) {
		t.Errorf("hello %+v", hello)
	}
	// Its answer has a key of its own each time; with that of the vectors it is theirs.
	responder.party = fixed(t, v, "responder")
	if _, _, _, err := responder.party.read(v["message1"]); err != nil {
		t.Fatal(err)
	}
	msg2, server, err := responder.Answer(Answer{Status: Accepted, Version: 1}, 9)
	if err != nil || !bytes.Equal(msg2, v["message2"]) {
		t.Errorf("message 2 is %x, %v", msg2, err)
	}

	// The client that has made message 1 reads message 2 of the vectors.
	initiator := fixed(t, v, "initiator")
	if msg, _, _, err := initiator.write(nil, v["hello"]); err != nil || !bytes.Equal(msg, v["message1"]) {
		t.Errorf("message 1 is %x, %v", msg, err)
	}
	i := Initiator{party: initiator, mask: binary.BigEndian.Uint16(v["hello"][9:])}
	a, client, err := i.Finish(bytes.NewReader(v["message2"]))
	if err != nil || a != (Answer{Status: Accepted, Version: 1}) {
		t.Fatalf("answer %+v, %v", a, err)
	}

	toServer, toClient := wire.NewKey([32]byte(v["key.to.server"]), wire.ChaCha20Poly1305), wire.NewKey([32]byte(v["key.to.client"]), wire.ChaCha20Poly1305)
	if !opens(client.Send, toServer) || !opens(toServer, server.Receive) {
		t.Error("the key to the server differs")
	}
	if !opens(server.Send, toClient) || !opens(toClient, client.Receive) {
		t.Error("the key to the client differs")
	}
}

// fixed is one side with the ephemeral key of the vectors.
func fixed(t *testing.T, v map[string][]byte, side string) party {
	t.Helper()
	own := ephemeralOf([EphemeralSize]byte(v[side+".ephemeral.private"]), v[side+".tweak"][0])
	if own == nil {
		t.Fatalf("the key of the %s has no representative", side)
	}
	if !bytes.Equal(own.key.Public, v[side+".ephemeral.public"]) {
		t.Errorf("the key of the %s is %x", side, own.key.Public)
	}
	h := &hidden{DHFunc: noise.DH25519, own: own}
	var peer []byte
	if side == "initiator" {
		peer = v["static.public"]
	} else {
		h.static = PrivateKey(v["static.private"]).Static()
	}
	p, err := newParty(h, ID(v["id"]), [EphemeralSize]byte(v["message1"]), peer)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
